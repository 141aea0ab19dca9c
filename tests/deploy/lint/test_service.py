"""The systemd unit and its installer, as far as they go without systemd as process 1."""

import configparser
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gateway.settings import Settings
from tests.deploy.tools import ROOT, run, told

UNIT = ROOT / "deploy/systemd/thinking-gateway.service"


def install(folder: Path) -> str:
    done = run(str(ROOT / "deploy/start_service.sh"), DESTDIR=str(folder))
    assert done.returncode == 0, told(done)
    return (folder / "etc/thinking-gateway/gateway.env").read_text()


def test_the_installer_makes_a_key_once_and_keeps_it(tmp_path: Path) -> None:
    first = install(tmp_path)
    assert re.search(r"^GATEWAY_API_KEY=[0-9a-f]{64}$", first, re.MULTILINE)
    assert install(tmp_path) == first
    assert (tmp_path / "etc/thinking-gateway/gateway.env").stat().st_mode & 0o077 == 0
    unit = tmp_path / "etc/systemd/system/thinking-gateway.service"
    assert unit.read_text() == UNIT.read_text()


def test_systemd_waits_longer_than_the_gateway_drains_and_signals_it_alone() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(UNIT.read_text())
    drain = Settings.model_fields["drain_timeout_s"].default
    assert int(unit["Service"]["TimeoutStopSec"]) > drain + 10
    assert unit["Service"]["KillMode"] == "mixed"
    assert unit["Service"]["NoNewPrivileges"] == "yes"


# Notes its arguments; fails where a file of its name and its verb is.
STAND_IN = """#!/bin/sh
echo "${{0##*/}} $*" >> {folder}/calls
test ! -e "{folder}/${{0##*/}}-$1"
"""
TOOLS = ("systemctl", "systemd-run", "journalctl", "nvidia-smi", "sleep")


class Service(BaseHTTPRequestHandler):
    """A gateway that loads for two questions."""

    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_response(200 if type(self).asked > 2 else 503)
        self.send_header("content-length", "0")
        self.end_headers()


@pytest.fixture
def port() -> Iterator[int]:
    Service.asked = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def restart(
    folder: Path, port: int, *failing: str
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """The script among stand-ins for systemd's programs, and what it called."""
    (folder / "bin").mkdir()
    for name in TOOLS:
        program = folder / "bin" / name
        program.write_text(STAND_IN.format(folder=folder))
        program.chmod(0o700)
    for name in failing:
        (folder / name).touch()
    settings = folder / "gateway.env"
    settings.write_text(f"GATEWAY_HOST=0.0.0.0\nGATEWAY_PORT='{port}'\n")
    script = ROOT / "deploy/systemd/restart.sh"
    path = f"{folder / 'bin'}:/usr/bin:/bin"
    done = run("env", f"PATH={path}", str(script), str(settings), PYTHON=sys.executable)
    return done, (folder / "calls").read_text().splitlines()


def test_a_second_run_starts_it_anew_and_waits_until_it_is_ready(tmp_path: Path, port: int) -> None:
    done, calls = restart(tmp_path, port)

    assert done.returncode == 0 and done.stdout.endswith("ready\n"), told(done)
    assert "systemctl restart thinking-gateway" in calls
    assert Service.asked >= 3, "it waited"
    assert any(call.startswith("nvidia-smi --query-gpu") for call in calls)
    (doctor,) = [call for call in calls if call.startswith("systemd-run")]
    assert f"EnvironmentFile={tmp_path}/gateway.env" in doctor and doctor.endswith("gateway doctor")


def test_one_that_dies_is_told_with_its_log(tmp_path: Path, port: int) -> None:
    done, calls = restart(tmp_path, port, "systemctl-is-active")

    assert done.returncode == 1 and "it ended at its start" in done.stderr
    assert calls[-1].startswith("journalctl --unit thinking-gateway")


def test_what_the_doctor_fails_is_not_started(tmp_path: Path, port: int) -> None:
    done, calls = restart(tmp_path, port, "systemd-run---quiet")

    assert done.returncode == 1 and "nothing was started" in done.stderr
    assert not any(call.startswith("systemctl") for call in calls)


def test_the_installer_ends_with_it() -> None:
    text = (ROOT / "deploy/start_service.sh").read_text()

    assert text.endswith('deploy/systemd/restart.sh "$settings"\n')
    assert "start" not in text.split('[ -z "$root" ] || exit 0')[1].replace("restart.sh", "")


def test_the_unit_and_the_doctor_have_the_same_folders_and_user() -> None:
    unit, script = UNIT.read_text(), (ROOT / "deploy/systemd/restart.sh").read_text()
    own = script.replace("$service", "thinking-gateway")

    for each in ("User", "Group", "StateDirectory", "CacheDirectory", "WorkingDirectory"):
        (value,) = re.findall(rf"^{each}=(.*)$", unit, re.MULTILINE)
        assert f"--property={each}={value} " in own
    for each in ("HOME", "XDG_CACHE_HOME", "GATEWAY_STATE_DIR"):
        (value,) = re.findall(rf"\b{each}=(\S+)", unit)
        assert f"--setenv={each}={value} " in own
