"""The quantising tools' environment: hash-locked, made once, whole or not at all.

The real uv and pip make the real thing, of a lock with one small wheel of ours.
"""

import hashlib
import re
from pathlib import Path

import pytest

from engine_config.build import toolbox
from engine_config.build.toolbox import COMPLETE, ToolboxError, ensure, python_of
from tests.unit.test_packages import write_wheel

ROOT = Path(__file__).resolve().parent.parent.parent
NOBODY_LISTENS = "http://127.0.0.1:9/simple"


def quiet(text: str, fraction: float) -> None:
    pass


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lock of one wheel, a folder that has it, and an empty cache."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel = wheels / "gateway_toy-1.0-py3-none-any.whl"
    write_wheel(wheel)
    lock = tmp_path / "toy.lock"
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    lock.write_text(f"gateway-toy==1.0 \\\n    --hash=sha256:{sha256}\n")
    monkeypatch.setattr(toolbox, "LOCK", lock)
    monkeypatch.setenv("GATEWAY_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WHEELS", str(wheels))
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.delenv("TORCH_INDEX", raising=False)
    return lock


def installed(environment: Path) -> list[str]:
    return [path.name for path in environment.glob("lib/python*/site-packages/gateway_toy-*")]


def test_the_lock_has_a_hash_for_everything_and_no_host_or_path() -> None:
    text = toolbox.LOCK.read_text(encoding="utf-8")
    pinned = [line for line in text.splitlines() if re.match(r"[\w.-]+==", line)]
    body = "\n".join(line for line in text.splitlines() if not line.startswith("#"))

    assert pinned
    assert all(line.endswith("\\") for line in pinned), "each is followed by its hashes"
    assert "/" not in body and "://" not in text
    names = {line.partition("==")[0] for line in pinned}
    assert {"auto-round", "llmcompressor", "torch", "transformers"} <= names
    assert names.isdisjoint({"torchvision", "torchaudio", "torchcodec", "triton"})
    assert "\ntorch==2.13.0+cpu " in text


def test_it_is_made_once(lock: Path) -> None:
    seen: list[str] = []

    python = ensure(lambda text, fraction: seen.append(text))
    again = ensure(lambda text, fraction: seen.append("again"))

    environment = toolbox.folder()
    assert python == again == python_of(environment)
    assert environment.name.startswith("quantize-") and installed(environment)
    assert any(text.startswith("installing the quantising tools, once (") for text in seen)
    assert "again" not in seen


def test_half_of_one_is_never_used(lock: Path) -> None:
    environment = toolbox.folder()
    python_of(environment).parent.mkdir(parents=True)
    python_of(environment).write_text("#!/bin/sh\nexit 1\n")

    ensure(quiet)

    assert (environment / COMPLETE).is_file() and installed(environment)
    assert python_of(environment).is_symlink()


def test_stopping_the_installation_leaves_nothing(lock: Path) -> None:
    def stop(text: str, fraction: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure(stop)

    assert not toolbox.folder().exists()


def test_another_file_than_the_pinned_one_is_refused(lock: Path) -> None:
    lock.write_text(f"gateway-toy==1.0 \\\n    --hash=sha256:{'0' * 64}\n")

    with pytest.raises(ToolboxError, match="not the file that was pinned"):
        ensure(quiet)

    assert not toolbox.folder().exists()


def test_another_lock_is_another_environment(lock: Path) -> None:
    before = toolbox.folder()
    lock.write_text(lock.read_text() + "# changed\n")

    assert toolbox.folder() != before


def test_without_network_the_message_says_so(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UV_OFFLINE")
    monkeypatch.setenv("UV_DEFAULT_INDEX", NOBODY_LISTENS)
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("UV_NO_CACHE", "1")
    lock.write_text(f"gateway-other==1.0 \\\n    --hash=sha256:{'0' * 64}\n")

    with pytest.raises(ToolboxError, match=r"cannot be fetched, which is needed once\. Check"):
        ensure(quiet)


def test_without_uv_it_is_venv_and_pip(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolbox, "_uv", lambda: None)
    monkeypatch.setenv("PIP_NO_INDEX", "1")

    ensure(quiet)

    assert installed(toolbox.folder())


@pytest.mark.parametrize(
    ("variables", "options"),
    [
        ({"TORCH_INDEX": "I", "WHEELS": "W"}, ["--extra-index-url", "I"]),
        ({"WHEELS": "W"}, []),
        ({"PIP_FIND_LINKS": "W"}, []),
        ({}, ["--torch-backend", "cpu"]),
    ],
)
def test_torch_comes_from_where_the_makefile_takes_it(
    variables: dict[str, str], options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TORCH_INDEX", "WHEELS", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert toolbox.torch_source()[:2] == options


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("error: No space left on device (os error 28)", "the disk filled up"),
        ("there is no version of torch==2.13.0+cpu", "set WHEELS .* or TORCH_INDEX"),
        ("something new", "see .*install.log. The installer said: something new"),
    ],
)
def test_what_the_installer_complains_about_is_a_sentence(said: str, read: str) -> None:
    with pytest.raises(ToolboxError, match=read):
        raise toolbox.explain(said, Path("install.log"))
