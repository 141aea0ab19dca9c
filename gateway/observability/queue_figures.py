"""Metrics of the queues in front of engines."""

from collections.abc import Iterator
from functools import partial

from prometheus_client import Counter, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.engines.fleet import Fleet
from gateway.observability.figures import Figures
from gateway.policy.tenant import CLASSES, Priority

BUCKETS = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class QueueFigures(Collector):
    """Counts admissions as they happen; how many wait and run is read when somebody asks."""

    def __init__(self, fleet: Fleet, figures: Figures) -> None:
        self.fleet = fleet
        self._admissions = Counter(
            "gateway_admissions",
            "Requests let into an engine, by class.",
            ("model", "class"),
            registry=figures.registry,
        )
        self._seconds = Histogram(
            "gateway_queue_time_seconds",
            "How long an admitted request waited for its turn.",
            ("model", "class"),
            buckets=BUCKETS,
            registry=figures.registry,
        )
        figures.gauges.register(self)
        for name, model in fleet.models.items():
            model.admission.observe = partial(self._admitted, name)

    def _admitted(self, model: str, priority: Priority, seconds: float) -> None:
        self._admissions.labels(model, priority).inc()
        self._seconds.labels(model, priority).observe(seconds)

    def collect(self) -> Iterator[Metric]:
        queued = GaugeMetricFamily(
            "gateway_queued_requests", "Requests that wait for an engine.", None, ("model", "class")
        )
        running = GaugeMetricFamily(
            "gateway_running_requests", "Requests that have their place.", None, ("model",)
        )
        for name, model in self.fleet.models.items():
            for priority in CLASSES:
                queued.add_metric((name, priority), model.admission.line.waiting(priority))
            running.add_metric((name,), model.admission.running)
        yield from (queued, running)
