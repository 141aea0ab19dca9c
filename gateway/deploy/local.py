"""On this machine: an env file, a start script, a process of its own session with a pid file and a log.

The old process is stopped before the new one starts (they have the same port), so callers see a short
outage; `gateway switch` changes a model without one. For a start at boot there is the systemd unit, which
reads the same env file (docs/deployment_guide.md).
"""

import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
from dotenv import dotenv_values

from gateway.deploy.config import DeployError, Deployment
from gateway.deploy.steps import Files, Step, Validated
from gateway.settings import PREFIX, Settings
from gateway.validate.target import Address

DOCTOR_S = 60
STOP_S = 60  # beside the drain
POLL_S = 0.5
ASK_S = 5.0
LAST_LINES = 8
EXECUTABLE = 0o700
SCRIPT = """#!/bin/sh
# Written by `gateway deploy`. Starts the gateway in the foreground; SIGTERM drains and stops it.
set -a
. {folder}/gateway.env
set +a
cd {folder}
exec {python} -m gateway serve
"""


def steps(deployment: Deployment) -> list[Step]:
    """Nothing is touched before the doctor has seen the new settings."""
    here = Place(deployment.local.folder.expanduser().absolute(), deployment)
    # Its certificate is for the name callers use, not for the address a process is asked at here.
    address = Address(here.url, verify=False, host=deployment.host)
    return [
        Examined(here),
        Stopped(here),
        Files(here.contents(), {here.script: EXECUTABLE}),
        Started(here),
        Validated(address, deployment.key, deployment.wait_s, here.folder),
    ]


@dataclass(frozen=True)
class Place:
    """The folder and what is in it."""

    folder: Path
    deployment: Deployment

    @property
    def script(self) -> Path:
        return self.folder / "start.sh"

    @property
    def log(self) -> Path:
        return self.folder / "gateway.log"

    @property
    def pid_file(self) -> Path:
        return self.folder / "gateway.pid"

    @property
    def env_file(self) -> Path:
        return self.folder / "gateway.env"

    @property
    def url(self) -> str:
        return url_of(self.deployment.variables())

    def old_url(self) -> str:
        """By the env file that is there now."""
        return url_of(dotenv_values(self.env_file))

    def contents(self) -> dict[Path, str]:
        lines = [
            f"{name}={shlex.quote(text)}" for name, text in self.deployment.variables().items()
        ]
        script = SCRIPT.format(
            folder=shlex.quote(str(self.folder)), python=shlex.quote(sys.executable)
        )
        return {self.env_file: "\n".join([*lines, ""]), self.script: script}

    def environment(self) -> dict[str, str]:
        """Ours without our own settings: the env file has them all."""
        return {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}

    def running(self) -> psutil.Process | None:
        """The gateway of the pid file, if that process is one."""
        try:
            process = psutil.Process(int(self.pid_file.read_text(encoding="ascii")))
            ours = process.status() != psutil.STATUS_ZOMBIE and self._started(process)
        except (OSError, ValueError, psutil.Error):
            return None
        return process if ours else None

    def _started(self, process: psutil.Process) -> bool:
        """Whether it is our script or what that became: a number may be another process's by now."""
        if Path(process.cwd()) != self.folder.resolve():
            return False
        line = process.cmdline()
        # Without one in the moment in which the shell becomes the gateway.
        return not line or str(self.script) in line or {"gateway", "serve"} <= set(line)

    def start(self) -> "subprocess.Popen[bytes]":
        """In the folder from its first moment on, by which `running` knows it."""
        with self.log.open("ab") as log:
            started = subprocess.Popen(
                [str(self.script)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=self.environment(),
                start_new_session=True,
            )
        self.pid_file.write_text(f"{started.pid}\n", encoding="ascii")
        return started

    def stop(self) -> None:
        """SIGTERM, which drains; what is left after its time is killed."""
        if (process := self.running()) is None:
            return
        drain_s = self.drain_s()
        process.terminate()
        try:
            process.wait(drain_s + STOP_S)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(STOP_S)
        self.pid_file.unlink(missing_ok=True)

    def drain_s(self) -> float:
        """Of the process that runs, so by the env file that it was started with, seconds."""
        told = dotenv_values(self.env_file).get(f"{PREFIX}DRAIN_TIMEOUT_S")
        try:
            return float(told or Settings.model_fields["drain_timeout_s"].default)
        except ValueError as error:
            raise DeployError(
                f"{self.env_file}: {PREFIX}DRAIN_TIMEOUT_S is no number of seconds: {told}"
            ) from error

    def refuse_another(self) -> None:
        """Raises DeployError if somebody listens where ours shall: it would be taken for ours."""
        parts = urlsplit(self.url)
        try:
            socket.create_connection((parts.hostname or "", parts.port or 0), timeout=ASK_S).close()
        except OSError:
            return
        raise DeployError(
            f"another process listens at {self.url}: end it (`ss -ltnp 'sport = :{parts.port}'` names it), "
            "or choose another settings.port"
        )

    def await_ready(self, url: str, started: "subprocess.Popen[bytes]") -> None:
        """Raises DeployError with the end of the log if it ends, or is not ready in time."""
        deadline = time.monotonic() + self.deployment.wait_s
        while True:
            ready = _ready(url)
            # Asked last: whoever answers there is not ours if ours has ended.
            if started.poll() is not None:
                raise DeployError(f"it ended at its start; {self.log}: {self._end_of_log()}")
            if ready:
                return
            if time.monotonic() > deadline:
                raise DeployError(
                    f"not ready within {self.deployment.wait_s:.0f} s; see {self.log}"
                )
            time.sleep(POLL_S)

    def _end_of_log(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return " / ".join(lines[-LAST_LINES:])


def url_of(variables: Mapping[str, str | None]) -> str:
    """Where a gateway with these variables is asked from this machine."""
    fields = Settings.model_fields
    host = variables.get(f"{PREFIX}HOST") or str(fields["host"].default)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    port = variables.get(f"{PREFIX}PORT") or fields["port"].default
    scheme = "https" if variables.get(f"{PREFIX}TLS_CERT") else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _ready(url: str) -> bool:
    try:
        # Its certificate is for the name callers use, not for this address; nothing secret is sent.
        told = httpx.get(f"{url}/health/ready", timeout=ASK_S, verify=False)
    except httpx.HTTPError:
        return False
    return told.status_code == httpx.codes.OK


@dataclass(frozen=True)
class Examined:
    """`gateway doctor` with the new settings."""

    place: Place
    plan: str = "gateway doctor, with the new settings"

    def do(self) -> str:
        self.place.folder.mkdir(parents=True, exist_ok=True)
        try:
            done = subprocess.run(
                [sys.executable, "-m", "gateway", "doctor", "--json"],
                capture_output=True,
                text=True,
                timeout=DOCTOR_S,
                check=False,
                cwd=self.place.folder,
                env=self.place.environment() | self.place.deployment.variables(),
            )
        except subprocess.TimeoutExpired as error:
            raise DeployError(
                f"gateway doctor did not end within {DOCTOR_S} s: something that it asks hangs"
            ) from error
        if not done.stdout:
            raise DeployError(f"gateway doctor: {done.stderr.strip()[-500:]}")
        found = json.loads(done.stdout)["findings"]
        bad = [
            f"{each['name']}: {each['told']} {each['remedy']}"
            for each in found
            if each["level"] == "fail"
        ]
        if bad:
            raise DeployError("; ".join(bad))
        return f"examined: {len(found)} findings, none of them keeps it from serving"

    def undo(self) -> None:
        pass


@dataclass
class Stopped:
    """The gateway of an earlier deployment, which is started again if the new one fails."""

    place: Place
    plan: str = "stop the gateway of the last deployment, if it runs"
    url: str = ""  # where the old one answered, as far as it did

    def do(self) -> str:
        """Nobody else may have the new one's address; another port is looked at before an outage."""
        if self.place.running() is None:
            self.place.refuse_another()
            return "nothing ran"
        self.url = self.place.old_url()
        if urlsplit(self.url).port != urlsplit(self.place.url).port:
            self.place.refuse_another()
        self.place.stop()
        self.place.refuse_another()
        return "stopped: the old one"

    def undo(self) -> None:
        """By then the files are the old ones again."""
        if self.url and self.place.running() is None:
            self.place.await_ready(self.url, self.place.start())


@dataclass(frozen=True)
class Started:
    place: Place

    @property
    def plan(self) -> str:
        return f"start {self.place.script}, and wait until {self.place.url} is ready"

    def do(self) -> str:
        self.place.await_ready(self.place.url, self.place.start())
        return f"ready: {self.place.url}; log: {self.place.log}; stop: kill $(cat {self.place.pid_file})"

    def undo(self) -> None:
        self.place.stop()
        self.place.pid_file.unlink(missing_ok=True)
