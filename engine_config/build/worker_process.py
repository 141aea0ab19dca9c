"""Runs one job of the quantising worker as a child process, and says in a sentence why it failed."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

from engine_config.build.cache import Progress, cache_root
from engine_config.build.checkpoint import QuantizeError
from engine_config.build.packages import SIGNS_OF_A_FULL_DISK

WORKER_ROOT = Path(__file__).parent / "quantizing"  # holds the package `worker`

SIGNS_OF_NO_MEMORY = (
    "MemoryError",
    "can't allocate memory",
    "Cannot allocate memory",
    "not enough memory",
    "bad_alloc",
)
SIGNS_OF_POOR_TEXT = ("not positive-definite", "_LinAlgError", "LinAlgError")


def run(python: Path, job: dict[str, Any], scratch: Path, progress: Progress) -> dict[str, Any]:
    """Do the job with the tools' interpreter and return its result.

    Leaving this call, by Ctrl-C too, ends the child; should this process be killed, the child ends
    by itself, because its stdin does.

    Raises:
        QuantizeError: the worker refused the job or failed at it.
    """
    log = scratch / "worker.log"
    with (
        log.open("w", encoding="utf-8") as errors,
        subprocess.Popen(
            [str(python), "-m", "worker"],
            cwd=scratch,
            env=environment(job),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # a terminal's Ctrl-C is for us; we end the child
        ) as process,
    ):
        try:
            result = _follow(process, job, progress)
            code = process.wait()
        finally:
            process.kill()  # does nothing to one that has ended
    if result is not None and code == 0:
        return result
    raise explain(code, log.read_text(encoding="utf-8", errors="replace"), keep(log))


def environment(job: dict[str, Any]) -> dict[str, str]:
    """The gateway's, without what would lead the child to the gateway's libraries or to the hub."""
    hidden = ("PYTHONHOME", "VIRTUAL_ENV", "PYTHONWARNINGS")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    # torch's threads spin while they wait for each other. Beside a busy neighbour that made a column
    # of GPTQ take 4 ms instead of 0.1 (2 cores, an engine running).
    kept.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    kept |= {"PYTHONPATH": str(WORKER_ROOT), "PYTHONNOUSERSITE": "1", "DO_NOT_TRACK": "1"}
    if job["action"] != "download":  # a folder has all; nothing is asked of a hub
        kept |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    return kept


def explain(code: int, output: str, log: Path) -> QuantizeError:
    """The error that fits how the child ended and what it wrote."""

    def says(signs: tuple[str, ...]) -> bool:
        return any(sign in output for sign in signs)

    if says(SIGNS_OF_A_FULL_DISK):
        return QuantizeError("the disk filled up while the checkpoint was written. Make room.")
    if code == -signal.SIGKILL or says(SIGNS_OF_NO_MEMORY):
        return QuantizeError(
            "the quantising worker ran out of memory and was stopped. Give fewer --samples, a "
            "shorter --seq-len, or take a larger machine."
        )
    if says(SIGNS_OF_POOR_TEXT):
        return QuantizeError(
            "the calibration text does not move every input of a layer: give more or more varied "
            "text, or more --samples."
        )
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    last = lines[-1][:300] if lines else "nothing"
    return QuantizeError(f"the quantising worker failed ({code}); see {log}. It said: {last}")


def keep(log: Path) -> Path:
    """Where a failed worker's words can be read afterwards."""
    kept = cache_root() / "tools" / "last-failure.log"
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(log, kept)
    return kept


def _follow(
    process: subprocess.Popen[str], job: dict[str, Any], progress: Progress
) -> dict[str, Any] | None:
    """Give it the job and pass its progress on; its result, or None if it ended without one."""
    if process.stdin is None or process.stdout is None:
        raise ValueError("the worker is started with pipes")
    with contextlib.suppress(BrokenPipeError):  # it died first: its exit code tells why
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
    result: dict[str, Any] | None = None
    for line in process.stdout:
        event = json.loads(line)
        if "refused" in event:
            raise QuantizeError(event["refused"])
        if "progress" in event:
            progress(event["progress"], event["fraction"])
        result = event.get("result", result)
    return result
