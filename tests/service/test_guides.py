"""The guides, word by word in an empty folder; only ports and folders are this test's."""

import contextlib
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from gateway.policy import keyfile
from tests.guides import DEPLOYMENT, OPERATIONS, blocks, walk
from tests.ports import free_ports
from tests.service.server import PATIENCE_S, START_S, Gateway, wait_for
from tests.tenants import ADMIN, bearer, write_keys

ROOT = Path(__file__).parents[2]


def follow(guide: Path, folder: Path, ports: tuple[int, ...], **variables: str) -> str:
    """What the guide's commands print; they run in the folder, which is also the home."""
    (folder / "bin").mkdir()
    command = folder / "bin" / "gateway"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m gateway "$@"\n', encoding="utf-8")
    command.chmod(0o700)
    script = re.sub("800[01]", lambda found: str(ports[int(found[0]) - 8000]), walk(guide))
    kept = {name: text for name, text in os.environ.items() if not name.startswith("GATEWAY_")}
    caches = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    own = {
        "HOME": str(folder),
        "XDG_CACHE_HOME": caches,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:{kept['PATH']}",
        "GATEWAY_PORT": str(ports[0]),
        "GATEWAY_ADMIN_PORT": str(ports[1]),
    }
    (folder / "empty").mkdir()
    done = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        timeout=2 * START_S,
        check=False,
        cwd=folder / "empty",
        env={**kept, **own, **variables},
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.slow
def test_a_newcomer_walks_through_the_deployment_guide(tmp_path: Path) -> None:
    here = tmp_path / "empty" / "gateway"
    try:
        told = follow(DEPLOYMENT, tmp_path, tuple(free_ports(2)))
        process = running(here)
        if process is not None:  # the guide's last word to it was SIGTERM
            process.wait(PATIENCE_S)
    finally:
        if (process := running(here)) is not None:
            process.kill()

    assert '"answer":' in told and "checks passed" in (here / "validation.md").read_text()
    assert (here / "gateway.env").stat().st_mode & 0o077 == 0
    assert (tmp_path / "empty" / "report" / "validation.json").is_file()


def running(folder: Path) -> psutil.Process | None:
    """The gateway that was deployed into the folder, while it runs."""
    try:
        return psutil.Process(int((folder / "gateway.pid").read_text(encoding="ascii")))
    except (OSError, ValueError, psutil.NoSuchProcess):
        return None


def test_an_operator_walks_through_the_operations_guide(tmp_path: Path) -> None:
    """The gateway has keys and, as the operator, no setting that names its state folder."""
    keys, empty = tmp_path / "keys.yaml", tmp_path / "empty"
    given = write_keys(keys, admin=True, first={})
    state = (
        tmp_path / ".local" / "state" / "thinking-gateway"
    )  # follow() makes this folder the home
    with Gateway(tmp_path / "serve.log", "demo", keys_file=keys, state_dir=state) as gateway:
        variables = {
            "GATEWAY_KEYS_FILE": str(keys),
            "GATEWAY_ADMIN_KEY": given[ADMIN],
            "ADMIN": given[ADMIN],
            "KEY": given["first"],
        }
        told = follow(OPERATIONS, tmp_path, (gateway.port, gateway.admin_port), **variables)
        made = (empty / "search-team.key").read_text(encoding="utf-8").strip()
        with httpx.Client(headers=bearer(made), timeout=PATIENCE_S) as client:
            wait_for(
                lambda: client.get(f"{gateway.url}/stats").status_code == 200,
                PATIENCE_S,
                "the gateway takes the key that the guide makes",
            )

    assert '"status":"ready"' in told and "gateway_ready 1.0" in told and "search-team" in told
    with contextlib.closing(sqlite3.connect(empty / "restored" / "usage.db")) as database:
        assert database.execute("SELECT count(*) FROM gateway_usage").fetchone()[0] > 0
    restored = keyfile.read(empty / "restored" / "keys.yaml")
    assert {key.tenant for key in restored.keys} == {"first", ADMIN, "search-team"}
    evidence = {path.name: path.read_text(encoding="utf-8") for path in empty.glob("evidence/*")}
    assert (
        '"status":"ready"' in evidence["health.json"] and "gateway_ready" in evidence["metrics.txt"]
    )
    assert evidence["doctor.json"].startswith("{") and evidence["stats.json"].startswith("{")


def test_the_guides_backup_is_refused_where_there_is_nothing_to_back_up(tmp_path: Path) -> None:
    (backup,) = (block.text for block in blocks(OPERATIONS) if "mkdir -p backup" in block.text)

    done = subprocess.run(
        ["bash", "-c", f"set -eu\n{backup}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]},
    )

    assert done.returncode != 0 and "unable to open database file" in done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
