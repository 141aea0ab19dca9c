"""What runs right now, for live charts: rates over the last seconds."""

import asyncio
import logging
import time

from prometheus_client import CollectorRegistry

from gateway.engines.fleet import Fleet
from gateway.observability.recent import LIVE_S, Rates
from gateway.observability.requests import RequestMetrics
from gateway.thinking.running import Running

log = logging.getLogger(__name__)

EVERY_S = 1.0
GENERATED = "vllm:generation_tokens_total"
THINKING = "thinking"


class Live:
    """`keep` feeds it once a second; who asks in between feeds it too, so an answer is never old."""

    def __init__(self, fleet: Fleet, requests: RequestMetrics, running: Running) -> None:
        self.fleet = fleet
        self.requests = requests
        self.running = running
        self.rates = Rates(LIVE_S)

    async def keep(self) -> None:
        """Until it is cancelled."""
        while True:
            try:
                self.beat()
            except Exception:  # charts that stand still for good would be the worse
                log.exception("live rates could not be read; it is tried again")
            await asyncio.sleep(EVERY_S)

    def beat(self) -> None:
        counters = {
            f"slot {model.name} {slot.number}": generated(slot.engine.registry)
            for model in self.fleet.models.values()
            for slot in model.slots()
        }
        counters[THINKING] = self._thinking()
        self.rates.add(time.monotonic(), counters)

    def _thinking(self) -> float:
        """Thinking tokens so far, those of running requests included."""
        ended = sum(
            sample.value
            for metric in self.requests.tokens.collect()
            for sample in metric.samples
            if sample.name.endswith("_total") and sample.labels["kind"] == "thinking"
        )
        return ended + sum(len(run.thought.ids) for plan in self.running for run in plan.runs)

    def phases(self) -> dict[str, int]:
        """How many thoughts and answers are under way, by phase."""
        runs = [run for plan in self.running for run in plan.runs]
        return {
            phase: sum(run.phase == phase for run in runs) for phase in ("thinking", "answering")
        }


def generated(registry: CollectorRegistry) -> float:
    """Tokens that an engine has generated; only this one family is read."""
    return sum(
        sample.value
        for metric in registry.restricted_registry([GENERATED]).collect()
        for sample in metric.samples
        if sample.name == GENERATED
    )
