"""A row of usage for each request, written in batches by a background task.

The hot path appends to a queue in memory. Whatever is wrong with the database, no request notices: rows
wait, and when the queue is full the newest are dropped, counted and reported once.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from datetime import UTC, datetime, timedelta
from typing import Any

from prometheus_client import CollectorRegistry, Counter

from gateway.accounting.store import UsageStore, reason, shown
from gateway.asgi import Exchange
from gateway.observability.outcome import UNMATCHED, outcome_of
from gateway.policy.meter import Cost, Meter
from gateway.policy.tenant import Tenant
from gateway.settings import Settings

log = logging.getLogger(__name__)

MAX_WAITING = 100_000  # rows, about 100 MB
BATCH = 1000
EVERY_S = 1.0
FORGET_EVERY_S = 3600.0
CLOSE_S = 8.0  # at the end, for all that waits: engines want to be ended as well


class Usage:
    """Observes exchanges. Without a store it does nothing."""

    def __init__(
        self, store: UsageStore | None, registry: CollectorRegistry, settings: Settings
    ) -> None:
        self.store = store
        self.settings = settings
        self.waiting: deque[dict[str, Any]] = deque()
        self.failing = False
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._rows = Counter(
            "gateway_usage_rows",
            "Usage rows by what became of them: written, or dropped because the database was away.",
            ("outcome",),
            registry=registry,
        )
        self._dropped = self._rows.labels("dropped")  # told from the start, as 0

    def observe(self, exchange: Exchange) -> None:
        """Note a request that somebody with a key made; the others are in the metrics only."""
        meter: Meter | None = exchange.notes.get("meter")
        if self.store is None or meter is None:
            return
        if len(self.waiting) >= MAX_WAITING:
            self._dropped.inc()
            return
        self.waiting.append(row_of(exchange, meter.cost()))

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        """Not cancelled but told to end: a write in its thread would go on and nobody know how it ended."""
        forgot = -FORGET_EVERY_S
        while not self._closing.is_set():
            if time.monotonic() - forgot >= FORGET_EVERY_S:
                forgot = time.monotonic()
                await self.forget()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await self._closing.wait()
            await self.flush()

    async def forget(self) -> int:
        """Delete rows older than the setting says; returns how many. A failure is told and tried again."""
        days = self.settings.usage_keep_days
        if self.store is None or days is None:
            return 0
        try:
            before = datetime.now(UTC) - timedelta(days=days)
            return await asyncio.to_thread(self.store.delete_before, before)
        except Exception as error:  # noqa: BLE001 - as in `flush`
            where, why = shown(self.store.url), reason(error)
            log.error("old usage rows cannot be deleted from %s: %s", where, why)
            return 0

    async def flush(self) -> None:
        """Write all that waits; what fails stays where it is, for the next time."""
        while self.store is not None and self.waiting:
            rows = [self.waiting.popleft() for _ in range(min(BATCH, len(self.waiting)))]
            try:
                await asyncio.to_thread(self.store.add, rows)
            except asyncio.CancelledError:  # at the end; they count as lost
                self.waiting.extendleft(reversed(rows))
                raise
            except Exception as error:  # noqa: BLE001 - whatever a driver raises, this task must live on
                self.waiting.extendleft(reversed(rows))
                self._failed(self.store, error)
                return
            self._rows.labels("written").inc(len(rows))
            if self.failing:
                log.warning("usage rows are written again")
            self.failing = False

    def _failed(self, store: UsageStore, error: Exception) -> None:
        if not self.failing:
            where, why = shown(store.url), reason(error)
            log.error("usage rows cannot be written to %s: %s; they wait in memory", where, why)
        self.failing = True

    async def aclose(self) -> None:
        """Write what waits; a database that does not answer keeps the process for `CLOSE_S` at most."""
        self._closing.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                if self._task is not None:
                    await self._task
                await self.flush()
        if self.waiting:
            self._dropped.inc(len(self.waiting))
            log.error("%d usage rows could not be written and are lost", len(self.waiting))
        if self.store is not None:
            self.store.close()


def row_of(exchange: Exchange, cost: Cost) -> dict[str, Any]:
    notes = exchange.notes
    tenant: Tenant = notes["tenant"]
    slot = notes.get("slot")
    ago = time.perf_counter() - exchange.started
    came = datetime.now(UTC) - timedelta(seconds=ago)
    ttft = None if exchange.first_byte is None else exchange.first_byte - exchange.started
    return {
        "time": came,
        "day": came.date().isoformat(),
        "request_id": exchange.request_id,
        "tenant": tenant.name,
        "key_id": tenant.key_id,
        "route": exchange.route or UNMATCHED,
        "model": notes.get("model", ""),
        "profile": slot.profile.name if slot else "",
        "format": slot.format if slot else "",
        "prompt_tokens": cost.prompt,
        "cached_tokens": cost.cached,
        "thinking_tokens": cost.thinking,
        "answer_tokens": cost.answer,
        "outcome": outcome_of(exchange),
        "status": exchange.status,
        "queue_s": notes.get("queue_s"),
        "ttft_s": ttft,
        "total_s": exchange.ended - exchange.started,
    }
