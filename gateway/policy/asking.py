"""How a request wants to be treated: its class and its deadline, as far as its key allows."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.types import Scope

from gateway.errors import InvalidRequest
from gateway.policy.deadline import Deadline, sooner
from gateway.policy.line import Ticket
from gateway.policy.tenant import ANYBODY, CLASSES, Priority, Tenant

PRIORITY = b"x-priority"
TIMEOUT = b"request-timeout-ms"
MAX_TIMEOUT_MS = 24 * 3600 * 1000
MAX_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Asked:
    """In the exchange's notes as `asked`, behind the key check."""

    tenant: Tenant = ANYBODY
    wish: Priority | None = None  # by the header
    came: float = 0.0  # `time.monotonic`
    header: Deadline | None = None
    prompt: int = 0  # tokens of all prompts in the body, estimated
    sequences: int = 0  # that its one engine request makes; 0: the route generates nothing
    size: int = 0  # of the body, bytes
    longest: int | None = None  # all prompts of one engine request, tokens; None: not known

    def deadline(self, seconds: float | None = None) -> Deadline | None:
        """The header's or the body's `deadline_s`, whichever is sooner."""
        own = None if seconds is None else Deadline(self.came + seconds, seconds, "deadline_s")
        return sooner(self.header, own)

    def ticket(self, wish: int = 0, sequences: int | None = None, part: float = 1.0) -> Ticket:
        """For a request, or a `part` of a batch. `wish` is a body's `priority`: lower is earlier."""
        sequences = self.sequences if sequences is None else sequences
        prompt = max(1, math.ceil(self.prompt * part))
        if self.longest is not None:  # a longer one is refused, and would never fit the cache
            prompt = min(prompt, self.longest)
        return Ticket(
            self.tenant.name, self.tenant.weight, self._priority(wish), prompt, max(1, sequences)
        )

    def _priority(self, wish: int) -> Priority:
        best = CLASSES.index(self.tenant.priority)
        if self.wish is not None:
            return CLASSES[max(best, CLASSES.index(self.wish))]
        return CLASSES[max(best, len(CLASSES) - 1 if wish > 0 else 0)]


def asked_of(notes: Mapping[str, Any]) -> Asked:
    """Of an exchange's notes."""
    asked: Asked | None = notes.get("asked")
    return asked if asked is not None else Asked(came=time.monotonic())


def wish_of(headers: Mapping[bytes, bytes]) -> Priority | None:
    """Raises InvalidRequest for a class that is none."""
    if (given := headers.get(PRIORITY)) is None:
        return None
    text = given.decode("latin-1").strip().lower()
    for name in CLASSES:
        if text == name:
            return name
    raise InvalidRequest(f"'X-Priority' is {text!r}; it takes {', '.join(CLASSES)}", "X-Priority")


def deadline_of(scope: Scope, came: float) -> Deadline | None:
    """Raises InvalidRequest for a time that is none."""
    given = dict(scope["headers"]).get(TIMEOUT)
    if given is None:
        return None
    text = given.decode("latin-1").strip()
    # Python refuses to read thousands of digits, and a float cannot hold hundreds.
    known = text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS
    if not known or not 0 < int(text) <= MAX_TIMEOUT_MS:
        raise InvalidRequest(
            f"'Request-Timeout-Ms' is {text[:32]!r}; it takes milliseconds, 1 to {MAX_TIMEOUT_MS}",
            "Request-Timeout-Ms",
        )
    seconds = int(text) / 1000
    return Deadline(came + seconds, seconds, "Request-Timeout-Ms")
