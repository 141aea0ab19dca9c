"""Binds an engine process to the CPU cores it was given.

vLLM binds cores only for engines with worker processes (`VLLM_CPU_OMP_THREADS_BIND`); ours are one process
on the CPU (docs/adr/0006-one-process-per-cpu-engine.md). vLLM loads this in each of its processes (entry
point group `vllm.general_plugins`), before the process has started a thread of its own that computes.
"""

import multiprocessing
import os
import re

FORM = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
VARIABLE = "THINKING_GATEWAY_ENGINE_CORES"


def cores_of(text: str) -> set[int]:
    """`0-3,8` is the cores 0, 1, 2, 3 and 8.

    Raises:
        ValueError: not of that form, or a range that runs backwards.
    """
    if not FORM.fullmatch(text):
        raise ValueError(f"'{text}' is not a set of cores like 0-3,8")
    cores: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        span = range(int(first), int(last or first) + 1)
        if not span:
            raise ValueError(f"'{part}' is an empty range of cores")
        cores.update(span)
    return cores


def bind() -> None:
    """In an engine process: stay on the cores of `VARIABLE`, if it is set."""
    if multiprocessing.parent_process() is not None and (text := os.environ.get(VARIABLE)):
        os.sched_setaffinity(0, cores_of(text))
