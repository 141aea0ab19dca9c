"""The body of `/metrics`: our own families, and those of each engine."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.engines.fleet import Fleet
from gateway.observability.figures import Figures

CREATED = "_created"


class MergedCollector(Collector):
    """All registries as one: a family that several slots have is told once, with all samples."""

    def __init__(self, fleet: Fleet, figures: Figures) -> None:
        self.fleet = fleet
        self.figures = figures

    def collect(self) -> Iterator[Metric]:
        ours = (self.figures.registry, self.figures.gauges)
        families = {metric.name: metric for registry in ours for metric in registry.collect()}
        for slot in (slot for model in self.fleet.models.values() for slot in model.slots()):
            labels = slot.labels()
            for metric in slot.engine.registry.collect():
                # Two engines of a model have the same labels by vLLM: these tell them apart.
                told = [each._replace(labels={**each.labels, **labels}) for each in metric.samples]
                known = families.setdefault(metric.name, metric)
                known.samples = told if known is metric else [*known.samples, *told]
        for family in families.values():
            # When a series began: as many samples again, and nobody asks.
            family.samples = [s for s in family.samples if not s.name.endswith(CREATED)]
            yield family


def exposition(fleet: Fleet, figures: Figures) -> bytes:
    """In Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(MergedCollector(fleet, figures))
    return generate_latest(registry)
