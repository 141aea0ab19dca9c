"""`gateway deploy --target local` with the real engine: deployed, then a bad one rolled back to it."""

import os
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from tests.ports import free_ports
from tests.service.server import PATIENCE_S, START_S

ROOT = Path(__file__).parents[2]
# An engine finds no room for a single block, which only its start can find out.
BROKEN = """
name: broken
title: Does not start.
extends: demo
vllm:
  kv_cache_memory_bytes:
    value: 1
    reason: So that an engine cannot start with it.
    source: this test
"""


def deploy(
    folder: Path, profile: str, port: int, admin_port: int
) -> subprocess.CompletedProcess[str]:
    path = folder / "deploy.yaml"
    path.write_text(
        f"settings: {{profiles: {profile}, profiles_dir: {folder}/own, state_dir: {folder}/state,\n"
        f"  port: {port}, admin_port: {admin_port}}}\n"
        f"wait_s: {START_S}\nlocal: {{folder: {folder}/here}}\n",
        encoding="utf-8",
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    return subprocess.run(
        [sys.executable, "-m", "gateway", "deploy", "--target", "local", "--config", str(path)],
        capture_output=True,
        text=True,
        timeout=3 * START_S,
        check=False,
        cwd=ROOT,
        env={**kept, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.slow
def test_a_deployment_is_validated_and_a_bad_one_is_rolled_back_to_it(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "broken.yaml").write_text(BROKEN, encoding="utf-8")
    ports = free_ports(2)
    here = tmp_path / "here"
    try:
        first = deploy(tmp_path, "demo", *ports)
        assert first.returncode == 0, first.stderr + (here / "gateway.log").read_text()
        assert "checks passed" in first.stderr and (here / "validation.md").is_file()
        written = (here / "gateway.env").read_text(encoding="utf-8")

        second = deploy(tmp_path, "broken", *ports)

        assert second.returncode == 1 and "rolled back" in second.stderr, second.stderr
        assert "it ended at its start" in second.stderr
        assert (here / "gateway.env").read_text(encoding="utf-8") == written
        health = httpx.get(f"http://127.0.0.1:{ports[0]}/health", timeout=PATIENCE_S).json()
        assert [model["profile"] for model in health["models"]] == ["demo"]
        assert health["status"] == "ready"
    finally:
        if (here / "gateway.pid").is_file():
            process = psutil.Process(int((here / "gateway.pid").read_text(encoding="ascii")))
            process.terminate()
            process.wait(PATIENCE_S)
