"""When a request has to be done: `deadline_s` of a native route, or the header `Request-Timeout-Ms`."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import TypeVar

from gateway.errors import DeadlineExceeded
from gateway.thinking.budget import MIN_RESERVE, fitting
from gateway.thinking.effort import Plan

T = TypeVar("T")
ANSWER_SHARE = 0.25  # of the time left when a thought begins: kept for its answer


@dataclass(frozen=True, slots=True)
class Deadline:
    """`at` is on `time.monotonic`, which is the event loop's clock."""

    at: float
    seconds: float  # as it was asked for, from the request's arrival
    param: str  # the field or header

    def left(self) -> float:
        return self.at - time.monotonic()

    def exceeded(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"not done within {self.seconds:g} s", self.param)


def sooner(one: Deadline | None, other: Deadline | None) -> Deadline | None:
    given = [each for each in (one, other) if each is not None]
    return min(given, key=lambda each: each.at, default=None)


async def within(
    deadline: Deadline | None, items: AsyncGenerator[T, None]
) -> AsyncGenerator[T, None]:
    """The items, as long as they come before the deadline.

    Raises:
        DeadlineExceeded: time ran out; their source is closed, which aborts the work.
    """
    async with aclosing(items):
        while True:
            try:
                async with asyncio.timeout_at(None if deadline is None else deadline.at):
                    item = await anext(items, None)
            except TimeoutError as error:
                if deadline is None:
                    raise
                raise deadline.exceeded() from error
            if item is None:
                return
            yield item


@contextmanager
def thinking_within(
    deadline: Deadline | None, plan: Plan, speed: float | None, forced: int
) -> Iterator[None]:
    """Think no longer than leaves time for the answer.

    The budget is cut to the tokens that fit, by the model's `speed` (tokens per second; None: unknown, not
    cut), and a thought that still runs when the answer's share of the time begins is ended. `forced` is the
    length of the phrase that ends a thought.
    """
    if deadline is None or not plan.thinks:
        yield
        return
    left = max(0.0, deadline.left())
    kept = left * ANSWER_SHARE
    if speed is not None:
        ceiling = fitting(int(speed * left), forced)
        plan.ceiling = ceiling if plan.ceiling is None else min(plan.ceiling, ceiling)
        kept = min(max(kept, MIN_RESERVE / speed), left / 2)
    loop = asyncio.get_running_loop()
    timer = loop.call_at(deadline.at - kept, plan.answer_now, "deadline")
    try:
        yield
    finally:
        timer.cancel()
