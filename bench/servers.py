"""Start a server, wait until it is ready, read what it costs, end it and its children for sure."""

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

BOOT_S = 600.0  # a compiled model on two cores takes a minute and a half
STOP_S = 40.0  # the gateway may finish its running requests first
ORPHANS_S = 10.0  # for children that outlive their parent
POLL_S = 0.25


@dataclasses.dataclass(frozen=True, slots=True)
class Side:
    """One of the two servers compared: how to start it and how to know that it is ready."""

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str]  # on top of this process's own
    url: str
    ready_path: str  # answers 200 once requests are welcome


@dataclasses.dataclass(frozen=True, slots=True)
class Used:
    """CPU seconds since the start; memory now, in MB (10^6 bytes).

    RSS has file pages in it and can differ by a tenth between two starts of the same server.
    `private_mb` is RSS without them: what the server itself took.
    """

    cpu_s: float
    rss_mb: float
    private_mb: float


@dataclasses.dataclass(frozen=True, slots=True)
class Usage:
    """`front` is the process we started, the one that speaks HTTP; `tree` has the engine too."""

    front: Used
    tree: Used


class ServerFailedError(Exception):
    """A server ended, or did not become ready; the message has the end of its log."""


def free_port() -> int:
    """A port nobody listens on at the moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def running(side: Side) -> Iterator[psutil.Process]:
    """Start `side`, wait until it is ready, and end it and all its children on the way out.

    Raises:
        ServerFailedError: it ended, or was not ready after BOOT_S.
    """
    with tempfile.NamedTemporaryFile(prefix=f"bench-{side.name}-", suffix=".log") as log:
        # Its own session: Ctrl-C reaches only us, and we end the servers in order.
        process = subprocess.Popen(
            side.command,
            env=os.environ | dict(side.env),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait_until_ready(side, process, Path(log.name))
            yield psutil.Process(process.pid)
        finally:
            stop(process)


def _wait_until_ready(side: Side, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + BOOT_S
    while not answers(side.url + side.ready_path):
        if process.poll() is not None or time.monotonic() > deadline:
            tail = log.read_text(encoding="utf-8", errors="replace")[-3000:]
            raise ServerFailedError(f"{side.name} is not ready (exit {process.poll()}):\n{tail}")
        time.sleep(POLL_S)


def answers(url: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return int(response.status) == 200
    except (urllib.error.URLError, OSError):
        return False


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the server itself, so that it ends its engine; SIGKILL to what is left of both.

    A second Ctrl-C while waiting skips to the SIGKILL.
    """
    family = _family(process.pid)
    process.terminate()
    try:
        psutil.wait_procs(family[:1], timeout=STOP_S)
        psutil.wait_procs(family[1:], timeout=ORPHANS_S)
    finally:
        # The group outlives its leader while a child is in it; none left is what we want.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        left = [member for member in psutil.wait_procs(family, timeout=5)[1] if _lives(member)]
        for member in left:
            sys.stderr.write(f"still there, ended by force: {member}\n")
            member.kill()


def _family(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        leader = psutil.Process(pid)
        return [leader, *leader.children(recursive=True)]
    return []


def _lives(process: psutil.Process) -> bool:
    # A container's first process may never reap an orphan: a zombie is gone for us.
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def usage(server: psutil.Process) -> Usage:
    """What the server has used up to now.

    Raises:
        ServerFailedError: it has ended.
    """
    each: list[Used] = []
    for member in _family(server.pid):
        with contextlib.suppress(psutil.NoSuchProcess), member.oneshot():
            times, memory = member.cpu_times(), member.memory_info()
            private = (memory.rss - memory.shared) / 1e6
            each.append(Used(times.user + times.system, memory.rss / 1e6, private))
    if not each:
        raise ServerFailedError(f"process {server.pid} ended while it was measured")
    sums = (sum(column) for column in zip(*map(dataclasses.astuple, each), strict=True))
    return Usage(each[0], Used(*sums))
