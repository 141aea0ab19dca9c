"""The layer that holds each tenant to its limits. Pure ASGI; asked once per request, never per chunk."""

import time
from collections.abc import Mapping

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.asgi import Exchange
from gateway.engines.fleet import Fleet
from gateway.errors import QuotaExceeded, RateLimited
from gateway.observability.spans import trace_of
from gateway.policy.asking import Asked, deadline_of, wish_of
from gateway.policy.ledger import (
    DAY,
    REQUESTS,
    RUNNING,
    TOKENS,
    Ask,
    Grant,
    Ledger,
    Refusal,
    Standing,
)
from gateway.policy.meter import METER, Meter
from gateway.policy.reservation import OUTPUT, Reservations
from gateway.policy.tenant import Limits, Tenant
from gateway.settings import Settings

# Ends work instead of making some; whoever is over a limit must still be able to.
FREE = "/answer_now"
TOO_MUCH = {
    REQUESTS: ("requests", "requests per minute"),
    TOKENS: ("tokens", "tokens per minute"),
    RUNNING: ("requests", "requests at once"),
    DAY: ("insufficient_quota", "tokens per day"),
}


class HoldLimits:
    """Admits, or answers 429; settles when the request is over, however it ends."""

    def __init__(self, app: ASGIApp, settings: Settings, fleet: Fleet, ledger: Ledger) -> None:
        self.app = app
        self.ledger = ledger
        self.reservations = Reservations(fleet, settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tenant: Tenant | None = scope.get("gateway.tenant")
        if tenant is None or scope["method"] != "POST" or scope["path"].endswith(FREE):
            await self.app(scope, receive, send)
            return
        exchange: Exchange = scope["gateway.exchange"]
        exchange.notes["asked"] = self._asked(tenant, scope)
        meter = exchange.notes["meter"] = Meter(exchange.notes)
        token = METER.set(meter)
        try:
            if tenant.limits.counted:
                await self._within_limits(tenant, meter, (scope, receive, send))
            else:
                await self.app(scope, receive, send)
        finally:
            METER.reset(token)

    async def _within_limits(
        self, tenant: Tenant, meter: Meter, call: tuple[Scope, Receive, Send]
    ) -> None:
        scope = call[0]
        exchange: Exchange = scope["gateway.exchange"]
        notes = exchange.notes
        if scope["path"] in OUTPUT:
            exchange.route = scope["path"]  # also of those that are refused here
        with trace_of(notes).child("limits"):
            try:
                answer = await self.ledger.admit(self._ask(tenant, scope))
                notes["headers"] = headers_of(tenant.limits, answer.standing)
                if isinstance(answer, Refusal):
                    raise refused(tenant, answer)
            except RateLimited:
                self.reservations.forget(tenant.name)
                raise
        try:
            await self.app(*call)
        finally:
            await self._settle(answer, meter, scope["gateway.size"])

    def _asked(self, tenant: Tenant, scope: Scope) -> Asked:
        """How it wants to be treated, for whoever admits it to an engine."""
        arrived: float = scope["gateway.exchange"].started
        came = time.monotonic() - (time.perf_counter() - arrived)
        body, path, size = scope["gateway.json"] or {}, scope["path"], scope["gateway.size"]
        wish, deadline = wish_of(dict(scope["headers"])), deadline_of(scope, came)
        prompt = self.reservations.prompt(tenant.name, size)
        sequences = self.reservations.sequences(path, body)
        longest = self.reservations.longest(body) if path in OUTPUT else None
        return Asked(tenant, wish, came, deadline, prompt, sequences, size, longest)

    def _ask(self, tenant: Tenant, scope: Scope) -> Ask:
        """Raises RateLimited for what would not fit into an empty minute either."""
        body, path = scope["gateway.json"] or {}, scope["path"]
        items = self.reservations.items(path, body)
        tokens = self.reservations.tokens(tenant.name, path, items, scope["gateway.size"])
        ask = Ask(tenant.name, tenant.limits, len(items), tokens)
        for name, wanted in (
            *((name, len(items)) for name in (RUNNING, REQUESTS)),
            *((name, tokens) for name in (TOKENS, DAY)),
        ):
            limit = getattr(tenant.limits, name)
            if limit is not None and wanted > limit:
                raise too_large(name, wanted, limit)
        return ask

    async def _settle(self, grant: Grant, meter: Meter, size: int) -> None:
        used = grant.ask.tokens  # what stays if counting fails; the place is given back in any case
        try:
            cost = meter.cost()
            used = cost.total
            self.reservations.learn(grant.ask.tenant, size, cost.prompt)
        finally:
            await grant.ledger.settle(grant, used)


def too_large(name: str, wanted: int, limit: int) -> RateLimited:
    kind, unit = TOO_MUCH[name]
    remedy = (
        "a smaller batch"
        if name in (RUNNING, REQUESTS)
        else "fewer 'max_tokens' or a shorter prompt"
    )
    return RateLimited(
        f"the request asks for up to {wanted}; your limit is {limit} {unit}. Send {remedy}",
        "tokens" if name == DAY else kind,
        None,
    )


def refused(tenant: Tenant, refusal: Refusal) -> RateLimited:
    kind, unit = TOO_MUCH[refusal.limit]
    limit = getattr(tenant.limits, refusal.limit)
    error = QuotaExceeded if refusal.limit == DAY else RateLimited
    return error(
        f"the limit of tenant '{tenant.name}' is {limit} {unit}; try again in {refusal.wait_s} s",
        kind,
        refusal.wait_s,
    )


def headers_of(limits: Limits, standing: Standing) -> Mapping[str, str]:
    """OpenAI's names, for the limits there are; what is left is told as of the request's admission."""
    told = (
        ("requests", limits.rpm, standing.requests, standing.reset_requests_s),
        ("tokens", limits.tpm, standing.tokens, standing.reset_tokens_s),
    )
    headers = {}
    for name, limit, used, reset_s in told:
        if limit is not None:
            headers[f"x-ratelimit-limit-{name}"] = str(limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(max(0, limit - used))
            headers[f"x-ratelimit-reset-{name}"] = f"{max(0, reset_s)}s"
    return headers
