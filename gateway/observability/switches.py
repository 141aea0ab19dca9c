"""Metrics of switches, counted when one has ended."""

from prometheus_client import CollectorRegistry, Counter, Histogram

from gateway.engines.operation import Operation

PHASES_S = (0.1, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)


class SwitchMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.switches = Counter(
            "gateway_switches",
            "Switches that ended, by outcome: succeeded, failed, cancelled.",
            ("model", "outcome"),
            registry=registry,
        )
        self.phases = Histogram(
            "gateway_switch_phase_seconds",
            "How long each phase of a switch took that has ended.",
            ("model", "phase"),
            buckets=PHASES_S,
            registry=registry,
        )

    def observe(self, operation: Operation) -> None:
        """Count a switch that has ended."""
        self.switches.labels(operation.model, operation.state).inc()
        for phase, seconds in operation.seconds().items():
            self.phases.labels(operation.model, phase).observe(seconds)
