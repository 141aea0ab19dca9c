"""What each tenant used in the last minute and today, and what runs now; `redis_ledger.py` shares it.

A request is admitted whole or not at all, and what is refused costs nothing. Its tokens are reserved when
it is admitted and settled to the true count when it is over, in the second they were reserved in.
"""

import itertools
import math
import time
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Protocol

from gateway.policy.tenant import Limits

WINDOW_S = 60
DAY_S = 86_400
RETRY_RUNNING_S = 1  # nobody knows when one of the running requests ends
REQUESTS, TOKENS, RUNNING, DAY = "rpm", "tpm", "max_concurrent", "daily_tokens"


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request would use, at most."""

    tenant: str
    limits: Limits
    requests: int  # more than 1: a batch
    tokens: int


@dataclass(frozen=True, slots=True)
class Standing:
    """What the tenant has used, the request included if it was admitted."""

    requests: int
    tokens: int
    today: int
    running: int
    reset_requests_s: int  # until the minute is empty again if nothing more comes
    reset_tokens_s: int


@dataclass(frozen=True, slots=True)
class Grant:
    """An admitted request, to be settled once."""

    ledger: "Ledger"
    lease: str
    ask: Ask
    standing: Standing
    second: int
    day: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """Which limit it was; a field of `Limits`."""

    limit: str
    wait_s: int
    standing: Standing


class Ledger(Protocol):
    async def admit(self, ask: Ask) -> Grant | Refusal:
        """Reserve, or say which limit stands against it.

        Raises:
            DependencyUnavailable: the count cannot be reached, and the operator wants no guess.
        """
        ...

    async def settle(self, grant: Grant, used: int) -> None:
        """Correct the reservation to the tokens that were used; the request does not run any more."""
        ...


class Window:
    """Amounts of the last minute, by the second. Whole seconds: a minute lasts up to 61 of them."""

    def __init__(self) -> None:
        self.amounts: deque[list[int]] = deque()  # [second, amount], ascending
        self.total = 0

    def at(self, now: int) -> int:
        while self.amounts and now - self.amounts[0][0] > WINDOW_S:
            self.total -= self.amounts.popleft()[1]
        return self.total

    def add(self, second: int, amount: int) -> None:
        if not self.amounts or self.amounts[-1][0] < second:
            self.amounts.append([second, 0])
        self.amounts[-1][1] += amount
        self.total += amount

    def correct(self, second: int, by: int) -> None:
        """In the second it was added in, if that still counts."""
        for entry in self.amounts:
            if entry[0] == second:
                entry[1] += by
                self.total += by

    def wait(self, now: int, excess: int) -> int:
        """Seconds until so much has fallen out."""
        for second, amount in self.amounts:
            excess -= amount
            if excess <= 0:
                return second + WINDOW_S + 1 - now
        return WINDOW_S + 1

    def reset(self, now: int) -> int:
        return self.amounts[-1][0] + WINDOW_S + 1 - now if self.amounts else 0


@dataclass(slots=True)
class _Account:
    requests: Window = field(default_factory=Window)
    tokens: Window = field(default_factory=Window)
    day: int = 0
    today: int = 0
    running: dict[str, int] = field(default_factory=dict)


class MemoryLedger:
    """Of this gateway alone. Minutes by the monotonic clock, days by UTC."""

    def __init__(self) -> None:
        self._accounts: defaultdict[str, _Account] = defaultdict(_Account)
        self._numbers = itertools.count()

    async def admit(self, ask: Ask) -> Grant | Refusal:
        account = self._accounts[ask.tenant]
        now, day = int(time.monotonic()), int(time.time()) // DAY_S
        if account.day != day:
            account.day, account.today = day, 0
        if (refusal := self._refusal(account, ask, now)) is not None:
            return refusal
        lease = str(next(self._numbers))
        account.requests.add(now, ask.requests)
        account.tokens.add(now, ask.tokens)
        account.today += ask.tokens
        account.running[lease] = ask.requests
        return Grant(self, lease, ask, _standing(account, now), now, day)

    def _refusal(self, account: _Account, ask: Ask, now: int) -> Refusal | None:
        limits, running = ask.limits, sum(account.running.values())
        used = (
            (RUNNING, running + ask.requests, limits.max_concurrent),
            (REQUESTS, account.requests.at(now) + ask.requests, limits.rpm),
            (TOKENS, account.tokens.at(now) + ask.tokens, limits.tpm),
            (DAY, account.today + ask.tokens, limits.daily_tokens),
        )
        for name, value, limit in used:
            if limit is not None and value > limit:
                wait_s = _wait(account, name, value - limit, now)
                return Refusal(name, wait_s, _standing(account, now))
        return None

    async def settle(self, grant: Grant, used: int) -> None:
        account = self._accounts[grant.ask.tenant]
        account.running.pop(grant.lease, None)
        by = used - grant.ask.tokens
        account.tokens.correct(grant.second, by)
        if account.day == grant.day:
            account.today += by


def _wait(account: _Account, limit: str, excess: int, now: int) -> int:
    if limit == REQUESTS:
        return account.requests.wait(now, excess)
    if limit == TOKENS:
        return account.tokens.wait(now, excess)
    return until_midnight() if limit == DAY else RETRY_RUNNING_S


def until_midnight() -> int:
    """Seconds until the next day of UTC."""
    return math.ceil(DAY_S - time.time() % DAY_S)


def _standing(account: _Account, now: int) -> Standing:
    return Standing(
        account.requests.total,
        account.tokens.total,
        account.today,
        sum(account.running.values()),
        account.requests.reset(now),
        account.tokens.reset(now),
    )
