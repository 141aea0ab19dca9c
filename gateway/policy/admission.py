"""The queue in front of one served model's engine: bounded, fair, in classes.

Where nobody waits and there is room, a request passes without a task or an await. Who is next is
`line.py`'s business, whether there is room `places.py`'s; here are futures, time-outs and clean-up.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from gateway.errors import InvalidRequest, QueueFull, QueueTimeout
from gateway.policy.line import Line, Ticket
from gateway.policy.places import Places, Room, Verdict
from gateway.policy.tenant import ANYBODY, Priority
from gateway.settings import Settings

DRAIN_WINDOW_S = 60.0
MAX_RETRY_S = 300
# So long may others pass the one who is next when its long prompt finds no room beside those being read;
# then they wait, until the engine has read what it has.
PASSED_S = 1.0
LEARN_FROM = 16  # tokens of a sequence: fewer say too little about speed
LEARN = 0.2  # how much the last request counts in the moving estimate


class Engine(Protocol):
    @property
    def limits(self) -> Room: ...


class Slot(Protocol):
    """As `gateway.engines.slot.Slot`."""

    places: Places
    in_flight: int

    @property
    def engine(self) -> Engine: ...


S = TypeVar("S", bound=Slot)


@dataclass(frozen=True)
class Source(Generic[S]):
    """Where places are: the slot that takes requests now, and the way to wait for one."""

    ready: Callable[[], S | None]  # None: none does
    take: Callable[[], Awaitable[S]]  # waits while the engine is replaced; raises what it is


class Admission(Generic[S]):
    """Of one served model; its slots come and go."""

    def __init__(self, name: str, settings: Settings, source: Source[S]) -> None:
        self.name = name
        self.settings = settings
        self.source = source
        self.line = Line()
        self.speed: float | None = None  # tokens per second of one sequence, of late; None: unknown
        self.observe: Callable[[Priority, float], None] = lambda priority, seconds: None
        self._futures: dict[Ticket, asyncio.Future[S | None]] = {}
        self._left: deque[float] = deque(maxlen=1024)  # when requests left the engine

    @property
    def queued(self) -> int:
        return len(self._futures)

    @property
    def running(self) -> int:
        return sum(len(account.running) for account in self.line.accounts.values())

    def enter_now(self, ticket: Ticket) -> "Place[S] | None":
        """A place, if there is one and nobody waits; else `enter` is the way.

        Raises:
            InvalidRequest: the engine never has so many places.
        """
        now = time.monotonic()
        self.line.fair, self.line.shared = self.settings.fair, self.settings.shared
        self.line.arrive(ticket, now)
        slot = None if self._futures else self.source.ready()
        if slot is not None:
            self._refuse_if_too_many(ticket, slot)
        if slot is None or self._verdict(slot, ticket, now) is not Verdict.FITS:
            return None
        self._give(slot, ticket)
        self.observe(ticket.priority, 0.0)
        return Place(self, slot, ticket, now, 0.0)

    async def enter(self, ticket: Ticket) -> "Place[S]":
        """Wait for a place.

        Raises:
            InvalidRequest: the engine never has so many places.
            QueueFull: too many wait already, all together or of this tenant.
            QueueTimeout: it took longer than the operator allows.
            EngineUnavailable: the engine went away meanwhile.
        """
        came = time.monotonic()
        admitted = self.source.ready() is None  # to wait at the gate, which has bounds of its own
        while True:
            self._refuse_if_too_many(ticket, await self.source.take())
            if not admitted:
                self._refuse_if_full(ticket)
            admitted = True
            if (slot := await self._wait(ticket)) is not None:
                now = time.monotonic()
                self.observe(ticket.priority, now - came)
                return Place(self, slot, ticket, now, now - came)

    def pump(self) -> None:
        """Let in whoever can go in now. Called whenever something left, was read, or came back."""
        slot = self.source.ready() if self._futures else None
        if slot is None:
            return
        now = time.monotonic()
        while (ticket := self._next(slot, now)) is not None:
            future = self._futures.pop(ticket)
            gone = future.done()  # cancelled, and its request has not had its turn to clean up yet
            if not gone:
                self._give(slot, ticket)
                future.set_result(slot)
            self.line.leave(ticket)

    def recheck(self, refusal: Exception | None = None) -> None:
        """The engine is not what it was: all that wait look again whether it may be waited for, or are
        refused.
        """
        waiting, self._futures = self._futures, {}
        for ticket, future in waiting.items():
            self.line.leave(ticket)
            if future.done():  # as in `pump`
                continue
            if refusal is None:
                future.set_result(None)
            else:
                future.set_exception(refusal)

    def leave(self, place: "Place[S]") -> None:
        """A request is over; the next one's turn."""
        now = time.monotonic()
        self._learn(place, now)
        self._left.append(now)
        self._take_back(place.slot, place.ticket)

    def retry_after_s(self, ahead: int) -> int:
        """When so many will have been served, by the rate at which requests left in the last minute."""
        now = time.monotonic()
        while self._left and now - self._left[0] > DRAIN_WINDOW_S:
            self._left.popleft()
        if not self._left:
            return min(MAX_RETRY_S, math.ceil(DRAIN_WINDOW_S))
        rate = len(self._left) / max(now - self._left[0], 1.0)
        return min(MAX_RETRY_S, max(1, math.ceil(ahead / rate)))

    async def _wait(self, ticket: Ticket) -> S | None:
        """The slot in which it has its places; None: look again at the engine."""
        future: asyncio.Future[S | None] = asyncio.get_running_loop().create_future()
        self._futures[ticket] = future
        self.line.wait(ticket)
        self.pump()
        try:
            async with asyncio.timeout(self.settings.queue_timeout_s):
                return await future
        except BaseException as error:
            self._give_up(ticket, future)
            if isinstance(error, TimeoutError):
                raise self._timed_out() from error
            raise

    def _give_up(self, ticket: Ticket, future: "asyncio.Future[S | None]") -> None:
        """Out of time, or the caller left: out of the queue, and out of a place given in that moment."""
        if self._futures.get(ticket) is future:
            del self._futures[ticket]
            self.line.leave(ticket)
            self.pump()
        elif not future.cancelled() and not future.exception() and (slot := future.result()):
            self._take_back(slot, ticket)

    def _timed_out(self) -> QueueTimeout:
        return QueueTimeout(
            f"the engine of '{self.name}' is busy; no place was free within "
            f"{self.settings.queue_timeout_s:g} s (GATEWAY_QUEUE_TIMEOUT_S)",
            self.retry_after_s(self.queued),
        )

    def _refuse_if_too_many(self, ticket: Ticket, slot: S) -> None:
        """It would wait for an empty engine, and keep other tenants out until it has been through."""
        most = slot.engine.limits.max_num_seqs
        if self.settings.shared and ticket.sequences > most:
            raise InvalidRequest(
                f"the request makes {ticket.sequences} sequences ('n' or 'samples', for each prompt); "
                f"the engine of '{self.name}' runs {most} at once. Send fewer in one request"
            )

    def _refuse_if_full(self, ticket: Ticket) -> None:
        most = self.settings.max_queued
        if self.queued >= most:
            raise QueueFull(
                f"the engine of '{self.name}' is busy and {most} requests wait already",
                self.retry_after_s(self.queued),
            )
        own = self.line.account(ticket.tenant).queued
        if ticket.tenant == ANYBODY.name:  # without keys there is nobody to leave room for
            return
        if own >= math.ceil(most * self.settings.tenant_queue_share):
            raise QueueFull(
                f"the engine of '{self.name}' is busy and {own} requests of tenant "
                f"'{ticket.tenant}' wait already",
                self.retry_after_s(own),
            )

    def _next(self, slot: S, now: float) -> Ticket | None:
        heads = self.line.heads()
        if len(heads) > 1:
            self.line.settle()
            heads = self.line.heads()
        for ticket in heads:
            verdict = self._verdict(slot, ticket, now)
            if verdict is Verdict.FITS:
                return ticket
            if verdict is Verdict.FULL:
                return None
            if verdict is Verdict.READING and ticket is heads[0] and _passed(ticket, now):
                return None
        return None

    def _verdict(self, slot: S, ticket: Ticket, now: float) -> Verdict:
        several = self.line.several(now)
        return slot.places.verdict(ticket, slot.engine.limits, self.line, several)

    def _give(self, slot: S, ticket: Ticket) -> None:
        """At once, not when the request wakes: a drain must see it."""
        slot.places.take(ticket)
        slot.in_flight += 1
        self.line.run(ticket)

    def _take_back(self, slot: S, ticket: Ticket) -> None:
        slot.places.give_back(ticket)
        slot.in_flight -= 1
        self.line.end(ticket, time.monotonic())
        self.pump()

    def _learn(self, place: "Place[S]", now: float) -> None:
        drawn = sum(each.output for each in place.ticket.drawn) / place.ticket.sequences
        if drawn >= LEARN_FROM and now > place.since:
            speed = drawn / (now - place.since)
            known = speed if self.speed is None else self.speed
            self.speed = known + LEARN * (speed - known)


def _passed(ticket: Ticket, now: float) -> bool:
    """Others have gone before it for long enough; short prompts that come and come would do so for ever."""
    if ticket.held_at is None:
        ticket.held_at = now
    return now - ticket.held_at >= PASSED_S


@dataclass(frozen=True)
class Place(Generic[S]):
    """Places in a slot, to be left once."""

    admission: Admission[S]
    slot: S
    ticket: Ticket
    since: float
    queued_s: float

    def leave(self) -> None:
        self.admission.leave(self)
