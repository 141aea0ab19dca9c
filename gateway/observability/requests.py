"""Metrics of requests, counted once when a request is over, from what its layers noted.

Nothing is done per chunk: the time of the first token is the engine's own, read from the request's meter.
"""

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram

from gateway.asgi import Exchange
from gateway.observability.outcome import OUTCOMES
from gateway.policy.meter import Drawn, Meter
from gateway.policy.reservation import OUTPUT
from gateway.policy.tenant import Tenant
from gateway.thinking.run import ThinkingRun

OTHER = "other"
# OpenTelemetry's boundaries for generative AI, longer at both ends: small models, long thoughts.
FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2, 2.5, 5, 7.5, 10, 20, 40, 80),
)
PER_TOKEN = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1, 2.5),
)
WHOLE = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
TENTHS = tuple(round(tenth / 10, 1) for tenth in range(1, 11))


class Names:
    """Label values of tenants: the first so many seen have their own, so that metrics stay bounded."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.seen: set[str] = set()

    def label(self, tenant: Tenant | None) -> str:
        """Empty: no key was read."""
        if tenant is None:
            return ""
        if tenant.name not in self.seen:
            if len(self.seen) >= self.limit:
                return OTHER
            self.seen.add(tenant.name)
        return tenant.name


class RequestMetrics:
    """The families of docs/metrics.md that a request moves."""

    def __init__(self, registry: CollectorRegistry, names: Names) -> None:
        self.names = names
        self.registry = registry
        self.requests = self._counter(
            "gateway_requests",
            "Requests by route and outcome, and by the model, profile, format and tenant.",
            *("route", "outcome", "model", "profile", "format", "tenant"),
        )
        self.outcomes = self._counter(
            "gateway_outcomes",
            "Generating requests by outcome, for objectives: each is there from the start, at 0.",
            "outcome",
        )
        for outcome in OUTCOMES:
            self.outcomes.labels(outcome)
        self.rejections = self._counter(
            "gateway_rejections",
            "Good requests turned away for want of room or quota, by the code of the error.",
            "reason",
        )
        self.tokens = self._counter(
            "gateway_tokens",
            "Tokens as they are accounted, by kind: prompt (with those cached), cached, thinking, answer.",
            *("model", "tenant", "kind"),
        )
        self.thoughts = self._counter(
            "gateway_thoughts",
            "Thoughts by how they ended, and whether the gateway ended them. One per completion or sample.",
            *("model", "end_reason", "forced"),
        )
        self.budget_hits = self._counter(
            "gateway_budget_hits", "Thoughts that were ended by their budget.", "model"
        )
        self.duration = self._seconds(
            "gateway_request_duration_seconds",
            "From arrival to the last byte, of requests with outcome ok.",
            WHOLE,
        )
        self.first_token = self._seconds(
            "gateway_time_to_first_token_seconds",
            "From arrival to the engine's first token, streamed or not, however the request ended.",
            FIRST_TOKEN,
        )
        self.per_token = self._seconds(
            "gateway_time_per_output_token_seconds",
            "Mean time between a request's tokens after the first, in the engine.",
            PER_TOKEN,
        )
        self.first_answer = self._seconds(
            "gateway_time_to_first_answer_token_seconds",
            "From arrival to the first token of the answer behind a thought.",
            WHOLE,
        )
        self.confidence = Histogram(
            "gateway_confidence",
            "Confidence of answers of /thinking, 0 to 1, where it was measured.",
            ("model",),
            buckets=TENTHS,
            registry=registry,
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _seconds(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        labels = ("route", "model")
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

    def observe(self, exchange: Exchange, route: str, outcome: str) -> None:
        """Count it; `route` and `outcome` are those that everybody tells of it."""
        notes = exchange.notes
        tenant = self.names.label(notes.get("tenant"))
        model, *served = served_by(notes)
        self.requests.labels(route, outcome, model, *served, tenant).inc()
        # By path, not route: a request that is refused before routing, as for its key, has none yet.
        if exchange.method == "POST" and exchange.path in OUTPUT:
            self.outcomes.labels(outcome).inc()
        if outcome == "rejected":
            self.rejections.labels(notes.get("error", "engine")).inc()
        if outcome == "ok":
            self.duration.labels(route, model).observe(exchange.ended - exchange.started)
        meter: Meter | None = notes.get("meter")
        if meter is not None and model:
            self._work(exchange, meter, (route, model, tenant))

    def _work(self, exchange: Exchange, meter: Meter, labels: tuple[str, str, str]) -> None:
        """What an engine did for it."""
        route, model, tenant = labels
        cost = meter.cost()
        for kind in ("prompt", "cached", "thinking", "answer"):
            if amount := getattr(cost, kind):
                self.tokens.labels(model, tenant, kind).inc(amount)
        if (seconds := first_token_s(exchange)) is not None:
            self.first_token.labels(route, model).observe(seconds)
        if (seconds := per_token_s(meter.drawn)) is not None:
            self.per_token.labels(route, model).observe(seconds)
        for run in runs_of(exchange):
            self._thought(run, model)
        for seconds in first_answers_s(exchange):
            self.first_answer.labels(route, model).observe(seconds)
        if (confidence := exchange.notes.get("confidence")) is not None:
            self.confidence.labels(model).observe(confidence)

    def _thought(self, run: ThinkingRun, model: str) -> None:
        reason = run.outcome.end_reason
        if run.phase == "thinking":
            reason = "aborted"  # nobody waited for its end
        elif reason == "skipped":
            return
        self.thoughts.labels(model, reason, str(run.outcome.forced).lower()).inc()
        if reason == "budget":
            self.budget_hits.labels(model).inc()


def served_by(notes: dict[str, Any]) -> tuple[str, str, str]:
    """Model, profile and format; empty as far as nobody chose one before the request was refused."""
    model, slot = notes.get("model", ""), notes.get("slot")
    return (model, "", "") if slot is None else (model, slot.profile.name, slot.format)


def first_token_s(exchange: Exchange) -> float | None:
    """From arrival to the first token of any generation; None: there was none, or nobody noted it.

    An engine without statistics tells no times; then a stream's first byte stands for it.
    """
    meter: Meter | None = exchange.notes.get("meter")
    times = [each.first_at for each in meter.drawn if each.first_at is not None] if meter else []
    if not times and exchange.streamed and exchange.first_byte is not None:
        times = [exchange.first_byte]
    return max(0.0, min(times) - exchange.started) if times else None


def per_token_s(drawn: list[Drawn]) -> float | None:
    """Mean over all of a request's generations; None: no generation had two tokens."""
    spans = [
        (each.last_at - each.first_at, each.output - 1)
        for each in drawn
        if each.first_at is not None and each.last_at is not None and each.output > 1
    ]
    return sum(span for span, _ in spans) / sum(n for _, n in spans) if spans else None


def runs_of(exchange: Exchange) -> list[ThinkingRun]:
    plan = exchange.notes.get("plan")
    return plan.runs if plan else []


def first_answers_s(exchange: Exchange) -> Iterator[float]:
    """From arrival to the first token of each answer that has a thought before it."""
    meter: Meter | None = exchange.notes.get("meter")
    for run in runs_of(exchange):
        if run.answer_at is None or run.outcome.end_reason == "skipped":
            continue
        at = run.answer_at
        if not run.request.stream and meter is not None:
            # A plain answer comes whole at its end; when it began, only the engine knows.
            names = {f"{run.request.request_id}-{phase}" for phase in ("answer", "retry")}
            began = [each.first_at for each in meter.drawn if each.name in names and each.first_at]
            at = max(began, default=at)
        yield max(0.0, at - exchange.started)
