"""`make install` and `install-gpu`: which lock, for which Python, not one over the other; models to carry."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.guides import DEPLOYMENT, blocks

ROOT = Path(__file__).parents[2]


def make(venv: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", f"VENV={venv}", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**kept, "PIP_FIND_LINKS": "/wheels/of/the/cpu"},
    )


def test_the_gpus_lock_is_installed_with_the_python_it_was_made_for(tmp_path: Path) -> None:
    lock = (ROOT / "requirements/gpu.lock").read_text(encoding="utf-8")
    made_for = re.search(r"--python-version (\S+) ", lock)

    told = make(tmp_path, "-n", "install-gpu").stdout

    assert made_for is not None and f"python{made_for[1]} -m venv" in told
    assert f"!= ({made_for[1].replace('.', ', ')})" in told
    (install,) = [line for line in told.splitlines() if "gpu.lock" in line]
    assert install.startswith("UV_FIND_LINKS= ") and "--require-hashes" in install
    assert "cpu.lock" not in told


def test_an_installation_for_the_cpu_is_not_turned_into_one_for_gpus(tmp_path: Path) -> None:
    (tmp_path / ".installed").touch()
    done = make(tmp_path, "install-gpu")

    assert done.returncode != 0 and "make clean first" in done.stdout


def test_one_for_gpus_stays_one(tmp_path: Path) -> None:
    """`make serve` installs first."""
    (tmp_path / ".installed-gpu").touch()

    assert "cpu.lock" not in make(tmp_path, "-n", "install").stdout
    assert "gateway serve" in make(tmp_path, "-n", "serve").stdout


@pytest.mark.parametrize("fetched", [False, True], ids=["built only", "with one from the hub"])
def test_models_are_carried_to_a_machine_without_internet_and_nothing_else_is(
    tmp_path: Path, fetched: bool
) -> None:
    """The guide's own line: tools and containers of tests are in the same cache."""
    (line,) = [each.text for each in blocks(DEPLOYMENT) if "models.tar" in each.text]
    made = ["thinking-gateway/models/a", "thinking-gateway/tools/b", "thinking-gateway/deploy/c"]
    made += ["huggingface/hub/d", "huggingface/token"] if fetched else []
    for name in made:
        path = tmp_path / ".cache" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    environment = {**os.environ, "HOME": str(tmp_path)}

    subprocess.run(["bash", "-euc", line], check=True, cwd=tmp_path, env=environment)
    told = subprocess.check_output(["tar", "-tf", tmp_path / "models.tar"], text=True)

    files = {name for name in told.splitlines() if not name.endswith("/")}
    assert files == {"thinking-gateway/models/a", *(["huggingface/hub/d"] if fetched else [])}
