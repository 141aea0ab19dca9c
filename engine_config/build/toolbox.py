"""The quantising tools' own environment: made at the first use, whole or not at all.

    <cache root>/tools/
      quantize-3f9c0a12b4de/        a virtual environment; its name is the lock's hash
        .complete                   written last: without it the folder is thrown away
      .quantize-3f9c0a12b4de.lock   held while somebody makes it

Why it is apart from the gateway's: docs/adr/0008-own-environment-for-quantising.md.
"""

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from engine_config.build.cache import ModelCacheError, Progress, cache_root, locked
from engine_config.build.packages import SIGNS_OF_A_FULL_DISK, SIGNS_OF_NO_NETWORK

LOCK = Path(__file__).parent / "quantizing" / "quantize.lock"
LOCKED_PYTHON = (3, 11)  # the lock has the files of this version
COMPLETE = ".complete"
NEEDED_BYTES = 2_500_000_000
POLL_S = 0.5
PINNED = re.compile(r"^([\w.-]+)==", re.MULTILINE)

# What uv says where pip says one of packages.SIGNS_OF_NO_NETWORK.
SIGNS_OF_NO_NETWORK_FROM_UV = (
    "error sending request",
    "Could not connect",
    "dns error",
    "tcp connect error",
    "operation timed out",
    "No route to host",
    "network was disabled",
)
SIGNS_OF_NO_TORCH = ("no version of torch", "No matching distribution found for torch")
SIGNS_OF_ANOTHER_FILE = ("DO NOT MATCH THE HASHES", "Hash mismatch")


class ToolboxError(ModelCacheError):
    """The quantising tools cannot be installed."""


def folder() -> Path:
    """Where the environment of this lock is, whether it is there or not."""
    return cache_root() / "tools" / f"quantize-{lock_hash()[:12]}"


def lock_hash() -> str:
    return hashlib.sha256(LOCK.read_bytes()).hexdigest()


def python_of(environment: Path) -> Path:
    return environment / "bin" / "python"


def ensure(progress: Progress) -> Path:
    """The tools' Python interpreter; installs them first if they are not there.

    Safe to call from several processes: one installs, the others wait.

    Raises:
        ToolboxError: another Python than the lock's, no network, no CPU build of torch, a full
            disk, or whatever else the installer says.
    """
    environment = folder()
    if (environment / COMPLETE).is_file():
        return python_of(environment)
    _require()
    environment.parent.mkdir(parents=True, exist_ok=True)
    waiting = "waiting: another process is installing the quantising tools"
    lock = environment.parent / f".{environment.name}.lock"
    with locked(lock, lambda: progress(waiting, 0.0)):
        if not (environment / COMPLETE).is_file():
            _make(environment, progress)
    return python_of(environment)


def commands(environment: Path) -> list[list[str]]:
    """What is run to make it: uv if this interpreter has it, else venv and pip."""
    python = str(python_of(environment))
    locked_files = ["--no-deps", "--require-hashes", "-r", str(LOCK)]
    if uv := _uv():
        create = [*uv, "venv", "--python", sys.executable, str(environment)]
        install = [*uv, "pip", "install", "--python", python, "--compile-bytecode"]
        return [create, [*install, *torch_source(), *locked_files]]
    index = os.environ.get("TORCH_INDEX")
    create = [sys.executable, "-m", "venv", str(environment)]
    install = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    return [create, [*install, *(["--extra-index-url", index] if index else []), *locked_files]]


def torch_source() -> list[str]:
    """uv's options for the CPU build of torch, by the same names as in the Makefile."""
    if index := os.environ.get("TORCH_INDEX"):
        return ["--extra-index-url", index, "--index-strategy", "unsafe-best-match"]
    return [] if _wheels() else ["--torch-backend", "cpu"]


def _wheels() -> str:
    return os.environ.get("WHEELS") or os.environ.get("PIP_FIND_LINKS") or ""


def _uv() -> list[str] | None:
    beside = Path(sys.executable).with_name("uv")
    if beside.is_file():
        return [str(beside)]
    if importlib.util.find_spec("uv"):
        return [sys.executable, "-m", "uv"]
    found = shutil.which("uv")
    return [found] if found else None


def _require() -> None:
    if sys.version_info[:2] != LOCKED_PYTHON:
        wanted = ".".join(map(str, LOCKED_PYTHON))
        raise ToolboxError(f"the quantising tools are locked for Python {wanted}; run it with that")
    place = cache_root()
    place.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(place).free) < NEEDED_BYTES:
        raise ToolboxError(
            f"the quantising tools need {NEEDED_BYTES / 1e9:.1f} GB and {place} has "
            f"{free / 1e9:.1f} GB free. Make room, or set GATEWAY_CACHE_DIR to another disk."
        )


def _make(environment: Path, progress: Progress) -> None:
    shutil.rmtree(environment, ignore_errors=True)  # half of one, of a run that was killed
    total = len(PINNED.findall(LOCK.read_text(encoding="utf-8")))

    def tick() -> None:
        there = sum(1 for _ in environment.glob("lib/python*/site-packages/*.dist-info"))
        text = f"installing the quantising tools, once ({there} of {total} packages, 1.5 GB)"
        progress(text, min(1.0, there / total))

    try:
        for command in commands(environment):
            _run(command, tick)
        (environment / COMPLETE).write_text(f"{lock_hash()}\n", encoding="utf-8")
    except BaseException:  # Ctrl-C too: 1.5 GB that nobody uses
        shutil.rmtree(environment, ignore_errors=True)
        raise


def _run(command: list[str], tick: Callable[[], None]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    if wheels := _wheels():
        environment |= {"UV_FIND_LINKS": wheels, "PIP_FIND_LINKS": wheels}
    log = cache_root() / "tools" / "install.log"
    with (
        log.open("w", encoding="utf-8") as sink,
        subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink
        ) as process,
    ):
        try:
            tick()
            while process.poll() is None:
                time.sleep(POLL_S)
                tick()
        finally:
            process.kill()  # does nothing to one that has ended
    if process.returncode != 0:
        raise explain(log.read_text(encoding="utf-8", errors="replace"), log)


def explain(output: str, log: Path) -> ToolboxError:
    """The error that fits what uv or pip said."""

    def says(*signs: str) -> bool:
        return any(sign in output for sign in signs)

    if says(*SIGNS_OF_A_FULL_DISK):
        return ToolboxError("the disk filled up while the quantising tools were installed.")
    if says(*SIGNS_OF_ANOTHER_FILE):
        return ToolboxError(f"a quantising tool is not the file that was pinned. {_tail(output)}")
    if says(*SIGNS_OF_NO_TORCH):
        return ToolboxError(
            "the CPU build of torch was not found: set WHEELS (or PIP_FIND_LINKS) to a folder of "
            "wheels, or TORCH_INDEX to an index that has it."
        )
    if says(*SIGNS_OF_NO_NETWORK, *SIGNS_OF_NO_NETWORK_FROM_UV):
        return ToolboxError(
            "the quantising tools cannot be fetched, which is needed once. Check network, proxy "
            f"and pip's or uv's index settings. {_tail(output)}"
        )
    return ToolboxError(f"the quantising tools cannot be installed; see {log}. {_tail(output)}")


def _tail(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return "The installer said: " + " | ".join(lines[-3:])
