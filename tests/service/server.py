"""A real gateway process for tests: started, waited for, looked into, ended by its pid."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil

from tests.ports import free_ports

# Slow on purpose: a loaded two-core machine takes minutes where a free one takes 30 s.
START_S = 600
# The guard against hanging for ever where time is not the promise.
PATIENCE_S = 120
POLL_S = 0.2
DEMO = "smollm2-135m"
NANO = "nano-qwen3"


def wait_for(condition: Callable[[], object], within_s: float, what: str) -> None:
    """Poll until the condition holds; the limit is a failure, never a pass."""
    deadline = time.monotonic() + within_s
    while not condition():
        late = time.monotonic() > deadline
        assert not late or condition(), f"not within {within_s} s: {what}"
        time.sleep(POLL_S)


class Gateway:
    """`gateway serve` with some profiles; `with Gateway(...) as gateway` waits until it is ready."""

    def __init__(self, log: Path, *profiles: str, **settings: object) -> None:
        self.log = log
        self.port, self.admin_port = free_ports(2)
        self.url = f"http://127.0.0.1:{self.port}"
        self.admin_url = f"http://127.0.0.1:{self.admin_port}"
        self.args = [f"--profile={name}" for name in profiles]
        kept: dict[str, object] = {"state_dir": log.parent / "state", **settings}
        self.env = {f"GATEWAY_{name.upper()}": str(value) for name, value in kept.items()}

    def __enter__(self) -> "Gateway":
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        family = self.family()
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(timeout=PATIENCE_S)
        finally:
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.kill()
            self.process.wait()

    def start(self) -> None:
        command = [sys.executable, "-m", "gateway", "serve", *self.args]
        command += [f"--port={self.port}", f"--admin-port={self.admin_port}"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, **self.env},
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, f"it ended:\n{self.log.read_text()}"
            return self.ready_status() == 200

        wait_for(ready, START_S, f"ready; its log is {self.log}")

    def ready_status(self) -> int:
        """Status of /health/ready; 0 when nothing listens."""
        try:
            return httpx.get(f"{self.url}/health/ready", timeout=PATIENCE_S).status_code
        except httpx.TransportError:
            return 0

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def family(self) -> list[psutil.Process]:
        """All processes below the gateway now."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def engine_process(self) -> psutil.Process:
        """The EngineCore process of the (only) engine."""
        cores = [process for process in self.family() if "EngineCore" in title(process)]
        assert len(cores) == 1, [title(process) for process in self.family()]
        return cores[0]

    def metrics(self) -> str:
        """All metrics, as the admin listener has them."""
        return httpx.get(f"{self.admin_url}/metrics", timeout=PATIENCE_S).text

    def metric(self, name: str, model: str) -> float:
        """Sum of a metric's samples for a model, from the admin listener."""
        text = self.metrics()
        pattern = re.compile(
            rf'^{re.escape(name)}{{.*model_name="{model}".*}} (\S+)$', re.MULTILINE
        )
        values = [float(value) for value in pattern.findall(text)]
        assert values, f"no metric {name} of {model}"
        return sum(values)

    def idle(self, model: str) -> bool:
        """No request runs or waits in the engine and no KV block is held."""
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        return all(self.metric(f"vllm:{name}", model) == 0 for name in names)


def title(process: psutil.Process) -> str:
    """What the process calls itself; empty when it is gone or a zombie."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.is_running() and title(process)]
