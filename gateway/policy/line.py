"""Who is next: a virtual token counter for each tenant, classes in front of it. Pure; time is passed in.

Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024: each tenant has a counter of the work
that was done for it, divided by its weight, and the least counter is next. Whoever was away is lifted to
the least counter of those who are there, so nobody saves up. docs/adr/0011-admission.md has the reasons.
"""

import itertools
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

from gateway.policy.tenant import CLASSES, Priority

OUTPUT_WEIGHT = 2.0  # a drawn token costs an engine more than one that is read; the paper's weight
LATELY_S = 60.0  # for so long after its last request a tenant counts as one that may come back


class Drawn(Protocol):
    """One generation inside an engine, as `gateway.policy.meter` has it."""

    @property
    def prompt(self) -> int: ...
    @property
    def cached(self) -> int: ...
    @property
    def output(self) -> int: ...


@dataclass(slots=True, eq=False)
class Ticket:
    """One request that wants places of an engine, or has them."""

    tenant: str
    weight: float
    priority: Priority
    prompt: int  # tokens, estimated
    sequences: int = 1
    drawn: list[Drawn] = field(default_factory=list)  # by its generations; they know the truth
    number: int = 0  # of arrival
    charged: float = 0.0  # of the tenant's counter
    held_at: float | None = (
        None  # when it was next, and the prompts being read left no room for its own
    )

    @property
    def reading(self) -> bool:
        """Its prompt is not through yet: no token has been drawn."""
        return not any(each.output for each in self.drawn)

    @property
    def prompt_tokens(self) -> int:
        """What the engine has to read, as far as it is known."""
        return max((each.prompt for each in self.drawn), default=self.prompt)

    @property
    def held(self) -> int:
        """Tokens it keeps in the engine's cache."""
        return self.prompt_tokens + sum(each.output for each in self.drawn)

    def work(self, running: bool) -> float:
        """What it cost up to now. Before the engine has seen it: the estimate."""
        true = sum(
            each.prompt - min(each.cached, each.prompt) + OUTPUT_WEIGHT * each.output
            for each in self.drawn
        )
        return max(float(self.prompt), true) if running else true


# Of the request being served, for the engine to leave its generations at.
TICKET: ContextVar[Ticket | None] = ContextVar("ticket", default=None)


@dataclass(slots=True)
class Account:
    """A tenant at one model."""

    counter: float = 0.0
    queued: int = 0
    running: list[Ticket] = field(default_factory=list)

    @property
    def active(self) -> bool:
        return bool(self.queued or self.running)

    def true(self) -> float:
        """The counter without what is charged on estimate only: it may be given back."""
        spare = ((each.charged - each.work(running=False)) / each.weight for each in self.running)
        return self.counter - sum(spare)

    @property
    def sequences(self) -> int:
        return sum(ticket.sequences for ticket in self.running)


class Line:
    """All that wait for one model, and the counters.

    `fair` False: first come, first served. `shared` False: no second tenant can come.
    """

    def __init__(self) -> None:
        self.fair = self.shared = True
        self.accounts: dict[str, Account] = {}
        self.queues: dict[Priority, dict[str, deque[Ticket]]] = {name: {} for name in CLASSES}
        self._seen: OrderedDict[str, float] = OrderedDict()  # tenant -> when; the latest last
        self._level = 0.0  # counter of the last one to leave
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        return sum(account.queued for account in self.accounts.values())

    def waiting(self, priority: Priority) -> int:
        return sum(map(len, self.queues[priority].values()))

    def account(self, tenant: str) -> Account:
        return self.accounts.setdefault(tenant, Account())

    def arrive(self, ticket: Ticket, now: float) -> None:
        """A request has come; a tenant that was away is lifted."""
        ticket.number = next(self._numbers)
        self._note(ticket.tenant, now)
        account = self.account(ticket.tenant)
        if not account.active:
            self.settle()
            there = [each.true() for each in self.accounts.values() if each.active]
            account.counter = max(account.counter, min(there, default=self._level))

    def several(self, now: float) -> bool:
        """More than one tenant was here lately."""
        latest = itertools.islice(reversed(self._seen.values()), 2)
        return sum(now - at <= LATELY_S for at in latest) == 2

    def wait(self, ticket: Ticket) -> None:
        self.account(ticket.tenant).queued += 1
        self.queues[ticket.priority].setdefault(ticket.tenant, deque()).append(ticket)

    def leave(self, ticket: Ticket) -> None:
        """Out of the queue: admitted, given up or gone."""
        queue = self.queues[ticket.priority][ticket.tenant]
        queue.remove(ticket)
        if not queue:
            del self.queues[ticket.priority][ticket.tenant]
        account = self.account(ticket.tenant)
        account.queued -= 1
        if not account.active:
            self._level = account.counter

    def run(self, ticket: Ticket) -> None:
        """It has its places; what it will cost at least is charged."""
        account = self.account(ticket.tenant)
        account.running.append(ticket)
        _charge(account, ticket, running=True)

    def end(self, ticket: Ticket, now: float) -> None:
        """It is over, however it ended; its tenant is charged what was drawn."""
        account = self.account(ticket.tenant)
        _charge(account, ticket, running=False)
        account.running.remove(ticket)
        self._note(ticket.tenant, now)
        if not account.active:
            self._level = account.counter

    def settle(self) -> None:
        """Charge what runs with what it has drawn up to now."""
        for account in self.accounts.values():
            for ticket in account.running:
                _charge(account, ticket, running=True)

    def heads(self) -> list[Ticket]:
        """The first of each tenant in the best class that waits, the one who is next in front."""
        if not self.fair:
            return sorted(self._firsts(*CLASSES), key=lambda ticket: ticket.number)[:1]
        best = next((name for name in CLASSES if self.queues[name]), None)
        if best is None:
            return []
        return sorted(self._firsts(best), key=self._order)

    def _firsts(self, *priorities: Priority) -> Iterator[Ticket]:
        for name in priorities:
            for queue in self.queues[name].values():
                yield queue[0]

    def _order(self, ticket: Ticket) -> tuple[float, int]:
        return self.accounts[ticket.tenant].counter, ticket.number

    def _note(self, tenant: str, now: float) -> None:
        self._seen[tenant] = now
        self._seen.move_to_end(tenant)


def _charge(account: Account, ticket: Ticket, running: bool) -> None:
    due = ticket.work(running)
    account.counter += (due - ticket.charged) / ticket.weight
    ticket.charged = due
