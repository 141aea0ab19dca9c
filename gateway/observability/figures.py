"""Figures of every request, kept once and shown twice: as Prometheus metrics and in `/stats`.

Latencies for `/stats` are quantiles of the last requests, not since the start: an operator asks how it is.
"""

import statistics
import time
from collections import Counter as Tally
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.asgi import Exchange
from gateway.engines.fleet import Fleet
from gateway.policy.keys import PUBLIC

WINDOW = 1000
UNMATCHED = "unmatched"
BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Figures:
    """Observes each exchange as it ends."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.started = time.monotonic()
        self.outcomes: dict[str, Tally[str]] = defaultdict(Tally)
        self.latencies: deque[float] = deque(maxlen=WINDOW)
        self.ttfts: deque[float] = deque(maxlen=WINDOW)
        self.thoughts = self.forced = self.thinking_tokens = 0
        labels = ("route", "outcome")
        self._requests = Counter(
            "gateway_requests", "Requests by route and outcome.", labels, registry=self.registry
        )
        self._duration = Histogram(
            "gateway_request_duration_seconds",
            "From the request's arrival to the last byte of its answer.",
            ("route",),
            buckets=BUCKETS,
            registry=self.registry,
        )

    def observe(self, exchange: Exchange) -> None:
        route = exchange.route or UNMATCHED
        if route in PUBLIC:  # a probe that is told "not ready" is no failed request
            return
        outcome = _outcome(exchange)
        seconds = exchange.ended - exchange.started
        self.outcomes[route][outcome] += 1
        self._requests.labels(route, outcome).inc()
        self._duration.labels(route).observe(seconds)
        if outcome == "ok" and exchange.method == "POST":
            self.latencies.append(seconds)
            if exchange.streamed and exchange.first_byte is not None:
                self.ttfts.append(exchange.first_byte - exchange.started)
            if thought := exchange.notes.get("thinking"):
                self.thoughts += 1
                self.forced += bool(thought["forced"])
                self.thinking_tokens += thought["tokens"]

    def stats(self, fleet: Fleet) -> dict[str, Any]:
        """The body of `/stats`."""
        totals: Tally[str] = sum(self.outcomes.values(), Tally())
        models = {name: _engine_figures(fleet, name) for name in fleet.models}
        served = totals["ok"] + totals["server_error"]
        return {
            "uptime_s": round(time.monotonic() - self.started, 3),
            "requests": {
                "total": sum(totals.values()),
                "by_outcome": dict(totals),
                "by_route": {route: dict(tally) for route, tally in self.outcomes.items()},
                "success_rate": round(totals["ok"] / served, 6) if served else None,
            },
            "latency_s": quantiles(self.latencies),
            "ttft_s": quantiles(self.ttfts),
            "thinking": {
                "requests": self.thoughts,
                "tokens": self.thinking_tokens,
                "forced": self.forced,
                "forced_rate": round(self.forced / self.thoughts, 6) if self.thoughts else None,
            },
            "models": models,
            "in_flight": fleet.in_flight(),
            "queued": sum(model.get("queued", 0) for model in models.values()),
        }


def _outcome(exchange: Exchange) -> str:
    if exchange.disconnected:
        return "disconnected"
    if exchange.status >= 500 or "failed" in exchange.notes:
        return "server_error"
    return "client_error" if exchange.status >= 400 else "ok"


def quantiles(values: Iterable[float]) -> dict[str, float | int | None]:
    """p50, p95 and p99 in seconds, of how many."""
    ordered = list(values)
    result: dict[str, float | int | None] = {"p50": None, "p95": None, "p99": None}
    if len(ordered) == 1:
        result = dict.fromkeys(result, round(ordered[0], 6))
    elif ordered:
        cuts = statistics.quantiles(ordered, n=100, method="inclusive")
        result = {f"p{p}": round(cuts[p - 1], 6) for p in (50, 95, 99)}
    return result | {"count": len(ordered)}


def _engine_figures(fleet: Fleet, name: str) -> dict[str, Any]:
    """vLLM's own counters of the slot in service; they start anew with each engine."""
    slot = fleet.models[name].slot
    if slot is None:
        return {}
    values: dict[str, float] = {}
    for metric in slot.engine.registry.collect():
        for sample in metric.samples:
            values[sample.name] = values.get(sample.name, 0.0) + sample.value
    wanted = {
        "prompt_tokens": "vllm:prompt_tokens_total",
        "generation_tokens": "vllm:generation_tokens_total",
        "running": "vllm:num_requests_running",
        "queued": "vllm:num_requests_waiting",
        "preemptions": "vllm:num_preemptions_total",
    }
    figures: dict[str, Any] = {key: int(values.get(sample, 0)) for key, sample in wanted.items()}
    figures["kv_cache_usage"] = values.get("vllm:kv_cache_usage_perc", 0.0)
    return figures


class MergedCollector(Collector):
    """All registries as one: a family that several slots have is told once, with all samples."""

    def __init__(self, fleet: Fleet, figures: Figures) -> None:
        self.fleet = fleet
        self.figures = figures

    def collect(self) -> Iterator[Metric]:
        slots = [model.slot for model in self.fleet.models.values() if model.slot is not None]
        registries = [self.figures.registry, *(slot.engine.registry for slot in slots)]
        families: dict[str, Metric] = {}
        for registry in registries:
            for metric in registry.collect():
                known = families.setdefault(metric.name, metric)
                if known is not metric:
                    known.samples.extend(metric.samples)
        yield from families.values()


def exposition(fleet: Fleet, figures: Figures) -> bytes:
    """The body of `/metrics`, in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(MergedCollector(fleet, figures))
    return generate_latest(registry)
