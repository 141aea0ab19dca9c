"""Disks and GPUs of this machine, which may take their time: asked in a thread, and not at every question.

A file system that is mounted from elsewhere, or a driver that resets its card, would hold up every request.
"""

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine_config import hardware
from engine_config.hardware import GpuLoad

log = logging.getLogger(__name__)

EVERY_S = 5.0
PATIENCE_S = 1.0  # for them to answer; then what they said last is told


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system that a folder is on, bytes."""

    folder: Path
    free: int
    size: int


@dataclass(frozen=True, slots=True)
class Seen:
    """At one moment. A disk that cannot be asked is left out."""

    disks: tuple[Disk, ...] = ()
    gpus: tuple[GpuLoad, ...] = ()


class Machine:
    """`seen` is what was seen last; `look()` sees to it that this was not long ago."""

    def __init__(self) -> None:
        self.folders: Sequence[Path] = ()
        self.seen = Seen()
        self._began = 0.0
        self._looking: asyncio.Task[None] | None = None

    def watch(self, folders: Iterable[Path]) -> None:
        """Tell the disks of these, from the next look on."""
        self.folders = sorted(set(folders))

    async def look(self) -> Seen:
        """What is there now, or was a few seconds ago; of what does not answer, what it said last."""
        now = time.monotonic()
        if self._looking is None or (self._looking.done() and now - self._began >= EVERY_S):
            self._began = now
            self._looking = asyncio.create_task(self._look())
        if not self._looking.done():  # one that hangs is waited for once, and never asked twice
            left = max(0.0, self._began + PATIENCE_S - now)
            await asyncio.wait({self._looking}, timeout=left)
        return self.seen

    async def _look(self) -> None:
        try:
            self.seen = await asyncio.to_thread(_see, self.folders)
        except Exception:  # whatever a driver raises: what was seen last is better than no metrics
            log.exception("disks and GPUs could not be asked")


def _see(folders: Sequence[Path]) -> Seen:
    disks = [disk for folder in folders if (disk := _disk(folder)) is not None]
    return Seen(tuple(disks), tuple(hardware.gpu_loads()))


def _disk(folder: Path) -> Disk | None:
    with contextlib.suppress(OSError):
        # A folder that is made with its first file lies on its parent's disk.
        there = next((path for path in (folder, *folder.parents) if path.exists()), None)
        if there is not None:
            usage = shutil.disk_usage(there)
            return Disk(folder, usage.free, usage.total)
    return None
