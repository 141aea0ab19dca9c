"""What `/stats` tells of the last while: quantiles of the last requests, and rates of the last seconds."""

import statistics
import time
from collections import deque
from collections.abc import Iterable

WINDOW = 1000  # requests
LIVE_S = 10.0

Quantiles = dict[str, float | int | None]


class Recent:
    """The last values of something, with the time they came. Seconds."""

    def __init__(self) -> None:
        self.values: deque[tuple[float, float]] = deque(maxlen=WINDOW)

    def add(self, value: float) -> None:
        self.values.append((time.monotonic(), value))

    def quantiles(self) -> Quantiles:
        return quantiles(value for _, value in self.values)

    def latest(self, seconds: float = LIVE_S) -> float | None:
        """Median of those that came in the last seconds; None: none did."""
        since = time.monotonic() - seconds
        fresh = [value for at, value in self.values if at >= since]
        return round(statistics.median(fresh), 6) if fresh else None


def quantiles(values: Iterable[float]) -> Quantiles:
    """p50, p95 and p99 in seconds, of how many."""
    ordered = list(values)
    result: Quantiles = {"p50": None, "p95": None, "p99": None}
    if len(ordered) == 1:
        result = dict.fromkeys(result, round(ordered[0], 6))
    elif ordered:
        cuts = statistics.quantiles(ordered, n=100, method="inclusive")
        result = {f"p{p}": round(cuts[p - 1], 6) for p in (50, 95, 99)}
    return result | {"count": len(ordered)}


class Rates:
    """How fast some counters rose over the last seconds; fed once a second or so."""

    def __init__(self, window_s: float = LIVE_S) -> None:
        self.window_s = window_s
        self.samples: deque[tuple[float, dict[str, float]]] = deque()

    def add(self, now: float, counters: dict[str, float]) -> None:
        self.samples.append((now, counters))
        while len(self.samples) > 2 and now - self.samples[1][0] >= self.window_s:
            self.samples.popleft()

    def per_second(self, prefix: str) -> float | None:
        """Of all counters with that prefix together; one that is new has risen from 0.

        None: there are no two samples yet.
        """
        if len(self.samples) < 2:
            return None
        (began, old), (ended, new) = self.samples[0], self.samples[-1]
        risen = sum(
            max(0.0, value - old.get(name, 0.0))
            for name, value in new.items()
            if name.startswith(prefix)
        )
        return round(risen / max(ended - began, 1e-9), 2)
