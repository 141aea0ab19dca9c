"""All that knows tenants, made once per process: keys, limits, usage, audit log."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry

from gateway.accounting.audit import Audit
from gateway.accounting.store import UsageStore, url_of
from gateway.accounting.usage import Usage
from gateway.policy.keyring import Keyring
from gateway.policy.ledger import Ledger
from gateway.policy.redis_ledger import RedisLedger, open_ledger
from gateway.settings import Settings

FILE = "file"  # who changed keys, when the file did


@dataclass
class Tenancy:
    """`start()` begins what runs in the background, `aclose()` ends it and writes what waits."""

    keyring: Keyring
    ledger: Ledger
    usage: Usage
    audit: Audit
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @classmethod
    def of(cls, settings: Settings, registry: CollectorRegistry) -> "Tenancy":
        """From settings; `registry` gets the counters.

        Raises:
            KeysFileError: the keys file cannot be used.
            UsageError: the usage URL is none.
        """
        keyring, audit = Keyring(settings), Audit.of(settings)
        keyring.load()
        keyring.told = lambda changes: audit.write(FILE, changes)
        redis = settings.redis_url
        ledger = open_ledger(redis.get_secret_value() if redis else None, settings.redis_away)
        url = url_of(settings)
        store = None if url is None else UsageStore(url)
        return cls(keyring, ledger, Usage(store, registry, settings), audit)

    def start(self) -> None:
        jobs: list[Callable[[], Coroutine[Any, Any, None]]] = [self.keyring.watch]
        if isinstance(self.ledger, RedisLedger):
            jobs.append(self.ledger.keep)
        self.usage.start()
        self._tasks = [asyncio.create_task(job()) for job in jobs]

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            if isinstance(self.ledger, RedisLedger):
                await self.ledger.aclose()
        finally:
            await self.usage.aclose()  # rows wait in it, whatever Redis says
