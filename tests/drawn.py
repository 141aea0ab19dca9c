"""What scripted generations draw, told to the meter as every engine tells it."""

import time
from dataclasses import dataclass

from gateway.observability.spans import OFF
from gateway.policy.line import TICKET
from gateway.policy.meter import METER


@dataclass
class Drawn:
    """What one generation drew, as vLLM's state of a sequence tells it."""

    prompt: int
    cached: int = 0
    output: int = 0
    name: str = ""
    first_at: float | None = None
    last_at: float | None = None

    def draw(self, n: int) -> None:
        """So many tokens more, now."""
        self.output += n
        self.last_at = time.perf_counter()
        self.first_at = self.first_at or self.last_at


def drawing(prompt: int, cached: int = 0, output: int = 0, name: str = "") -> Drawn:
    """Known to the request's meter from now on, as every engine's generations are."""
    drawn = Drawn(prompt, cached, name=name)
    if output:
        drawn.draw(output)
    for asking in (METER.get(), TICKET.get()):
        if asking is not None:
            asking.drawn.append(drawn)
    if (meter := METER.get()) is not None:
        meter.notes.get("render", OFF).end()
    return drawn
