"""What one engine has room for: sequences, prompts being read, tokens in its cache. Pure."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from gateway.policy.line import Line, Ticket

# Kept back from whoever has most of an engine while others were there lately.
RESERVE = 1 / 16
# Of a step's tokens: a longer prompt does not start beside that of somebody who used less.
LONG = 1 / 4


class Room(Protocol):
    """An engine's limits, as `gateway.engines.types.Limits` has them."""

    @property
    def max_num_seqs(self) -> int: ...
    @property
    def max_batched_tokens(self) -> int: ...
    @property
    def cache_tokens(self) -> int | None: ...


class Verdict(Enum):
    FITS = "fits"
    HELD = "held"  # this one has to wait; one of another tenant may go before
    READING = "reading"  # the same, for the prompts that are being read; not for ever
    FULL = "full"  # so has everybody


@dataclass(slots=True)
class Places:
    """Of one engine. A new engine has new ones."""

    sequences: int = 0
    running: list[Ticket] = field(default_factory=list)
    reading: list[Ticket] = field(default_factory=list)  # no token drawn yet

    def take(self, ticket: Ticket) -> None:
        self.sequences += ticket.sequences
        self.running.append(ticket)
        self.reading.append(ticket)

    def give_back(self, ticket: Ticket) -> None:
        self.sequences -= ticket.sequences
        self.running.remove(ticket)
        if ticket in self.reading:
            self.reading.remove(ticket)

    def verdict(self, ticket: Ticket, room: Room, line: Line, several: bool) -> Verdict:
        """Whether it can start now. `several`: more than one tenant was here lately."""
        if not self.running:
            return Verdict.FITS
        if self.sequences + min(ticket.sequences, room.max_num_seqs) > room.max_num_seqs:
            return Verdict.FULL
        if not line.fair:
            return Verdict.FITS
        self.reading = [each for each in self.reading if each.reading]
        if several and (tight := self._tight(ticket, room, line)) is not None:
            return tight
        return self._prompts(ticket, room, line, several)

    def _prompts(self, ticket: Ticket, room: Room, line: Line, several: bool) -> Verdict:
        """Prompts being read, bounded to a step's tokens; one may always be.

        A tenant alone gets two steps, or the engine would run dry between one and the next. So does one
        that reads nothing yet, or a flood's prompt would keep it out.
        """
        if not self.reading or not line.shared:  # alone, vLLM's own scheduler knows best
            return Verdict.FITS
        step = room.max_batched_tokens
        before = sum(each.prompt_tokens for each in self.reading)
        own = any(each.tenant == ticket.tenant for each in self.reading)
        if before + ticket.prompt > (step if several and own else 2 * step):
            return Verdict.READING
        if several and ticket.prompt > LONG * step:
            counter = line.account(ticket.tenant).counter
            others = (each.tenant for each in self.reading if each.tenant != ticket.tenant)
            if any(line.account(other).counter < counter for other in others):
                return Verdict.READING
        return Verdict.FITS

    def _tight(self, ticket: Ticket, room: Room, line: Line) -> Verdict | None:
        """The last places and the last of the cache are for those who have less than half of what runs."""
        most = 2 * line.account(ticket.tenant).sequences > self.sequences
        kept = max(1, int(RESERVE * room.max_num_seqs)) if most and room.max_num_seqs > 1 else 0
        if self.sequences + ticket.sequences > room.max_num_seqs - kept:
            return Verdict.HELD
        if room.cache_tokens is not None:
            used = sum(each.held for each in self.running) + ticket.prompt
            if used > room.cache_tokens * (1 - 2 * RESERVE * most):
                return Verdict.HELD if most else Verdict.FULL
        return None
