"""The worker's side of the pipe: events as JSON lines on stdout, one job as a JSON line on stdin."""

import json
import os
import re
import threading
from collections.abc import Callable
from typing import Any

from tqdm import std as tqdm_std

# "(3/31): Calibrating" of llm-compressor; auto-round counts blocks by the bar itself.
STEP_IN_TEXT = re.compile(r"\((\d+)/(\d+)\)")
BAR_OF_BLOCKS = "Quantizing"


class Refused(Exception):
    """The job cannot be done; the message is the sentence a user reads."""


class Pipe:
    """The pipe to the gateway. It takes stdout for itself; what libraries print goes to stderr."""

    def __init__(self) -> None:
        self._events = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def job(self) -> dict[str, Any]:
        """The job; from now on this process ends when the gateway's does."""
        with open(0, "rb", buffering=0, closefd=False) as stdin:
            job: dict[str, Any] = json.loads(stdin.readline())
        threading.Thread(target=_end_with_the_gateway, daemon=True).start()
        return job

    def tell(self, **event: Any) -> None:
        self._events.write(json.dumps(event) + "\n")
        self._events.flush()

    def progress(self, text: str, fraction: float) -> None:
        self.tell(progress=text, fraction=fraction)


def _end_with_the_gateway() -> None:
    # The gateway never writes a second line: the pipe ends when it lets go of it or dies. Not by
    # sys.stdin, whose lock this thread would still hold when the interpreter ends: that aborts it.
    os.read(0, 1)
    os._exit(1)


def watch_bars(tell: Callable[[float], None]) -> None:
    """Report the progress bars that the tools draw, 0 to 1, instead of drawing them."""

    def display(bar: Any, *args: Any, **kwargs: Any) -> bool:
        text = str(bar.desc or "")
        if step := STEP_IN_TEXT.search(text):
            tell((int(step[1]) - 1) / int(step[2]))
        elif text.startswith(BAR_OF_BLOCKS) and bar.total:
            tell(bar.n / bar.total)
        return True

    tqdm_std.tqdm.display = display
