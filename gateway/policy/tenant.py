"""Who calls, and what that caller may use. Plain data that the layers behind the key check read."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

Priority = Literal["interactive", "normal", "batch"]
CLASSES: tuple[Priority, ...] = ("interactive", "normal", "batch")  # the first goes first


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tenant may use, all its keys together; None: no limit. docs/tenants.md has the rules."""

    rpm: int | None = None  # requests per minute
    tpm: int | None = None  # tokens per minute, prompt and output
    max_concurrent: int | None = None  # requests at once
    daily_tokens: int | None = None  # per UTC day
    max_thinking: int | None = None  # thinking tokens of one request

    @property
    def counted(self) -> bool:
        """There is something to count; the thinking ceiling needs no counter."""
        return any(
            getattr(self, field.name) is not None
            for field in fields(self)
            if field.name != "max_thinking"
        )


@dataclass(frozen=True, slots=True)
class Tenant:
    """In `scope["gateway.tenant"]` and the exchange's notes, behind the key check."""

    name: str
    key_id: str  # which of its keys; never the key
    limits: Limits = Limits()
    priority: Priority = "normal"  # the best class its requests may have, and have unless they ask
    models: frozenset[str] = frozenset()  # empty: all
    weight: float = 1.0  # its share of an engine, against the others that want it

    def may_use(self, model: str) -> bool:
        return not self.models or model in self.models


ANYBODY = Tenant("default", "none")  # where no key is asked for


def tenant_of(notes: Mapping[str, Any]) -> Tenant:
    """The tenant of an exchange's notes."""
    tenant: Tenant = notes.get("tenant", ANYBODY)
    return tenant
