"""Figures of every request, kept once and shown twice: as Prometheus metrics and in `/stats`.

What can be counted is read from the metrics' own counters. Quantiles for `/stats` are exact and of the last
requests, not since the start: an operator asks how it is.
"""

import time

from prometheus_client import CollectorRegistry

from gateway.asgi import Exchange
from gateway.observability.machine import Machine
from gateway.observability.outcome import UNMATCHED, outcome_of
from gateway.observability.recent import Recent
from gateway.observability.requests import (
    Names,
    RequestMetrics,
    first_answers_s,
    first_token_s,
    per_token_s,
)
from gateway.observability.switches import SwitchMetrics
from gateway.policy.keys import PUBLIC
from gateway.policy.meter import Meter

__all__ = ["UNMATCHED", "Figures", "outcome_of"]


class Figures:
    """Observes each exchange as it ends.

    `registry` has what is counted, `gauges` what is read at a scrape, `machine` what is read before that.
    `tenants`: how many metrics name.
    """

    def __init__(self, tenants: int = 100) -> None:
        self.registry = CollectorRegistry()
        self.gauges = CollectorRegistry()
        self.machine = Machine()
        self.names = Names(tenants)
        self.started = time.monotonic()
        self.requests = RequestMetrics(self.registry, self.names)
        self.switches = SwitchMetrics(self.registry)
        self.latencies, self.first_tokens = Recent(), Recent()
        self.per_token, self.first_answers = Recent(), Recent()

    def observe(self, exchange: Exchange) -> None:
        route = exchange.route or UNMATCHED
        if route in PUBLIC:  # a probe that is told "not ready" is no failed request
            return
        outcome = outcome_of(exchange)
        self.requests.observe(exchange, route, outcome)
        if outcome == "ok" and exchange.method == "POST":
            self._remember(exchange)

    def _remember(self, exchange: Exchange) -> None:
        """For the quantiles: of good answers only."""
        self.latencies.add(exchange.ended - exchange.started)
        if (seconds := first_token_s(exchange)) is not None:
            self.first_tokens.add(seconds)
        meter: Meter | None = exchange.notes.get("meter")
        if meter is not None and (seconds := per_token_s(meter.drawn)) is not None:
            self.per_token.add(seconds)
        for seconds in first_answers_s(exchange):
            self.first_answers.add(seconds)
