"""What a gateway holds while it is soaked, and whether that is a leak."""

import asyncio
import contextlib
import statistics
import time
from collections.abc import Sequence
from typing import Any

import aiohttp
import psutil

from bench.soak_calls import Answer

SAMPLE_S = 10.0
MIB = 2**20
MOST_MORE_FILES = 16  # database connections, and 8 that the first engine rebuild opens and keeps


class Watch:
    """Samples of a gateway's own process and of what it tells; kills its engine."""

    def __init__(
        self, server: psutil.Process, session: aiohttp.ClientSession, key: str, admin_port: int
    ) -> None:
        self.server = server
        self.session = session
        self.headers = {"Authorization": f"Bearer {key}"}
        self.admin = f"http://127.0.0.1:{admin_port}"
        self.began = time.monotonic()
        self.samples: list[dict[str, float]] = []
        self.kills: list[dict[str, float]] = []

    async def keep(self) -> None:
        """A sample every ten seconds, until cancelled."""
        while True:
            await asyncio.sleep(SAMPLE_S)
            self.samples.append(await held(self))

    async def kill_every(self, seconds: float) -> None:
        """Kill the engine, and note how long it takes until a new one is ready; until cancelled."""
        while True:
            await asyncio.sleep(seconds)
            for engine in self.engines():
                engine.kill()
            began = time.monotonic()
            await asyncio.sleep(1.0)  # the death is seen within half a second
            while not await self.ready():  # noqa: ASYNC110 - another process's state
                await asyncio.sleep(0.5)
            back_s = round(time.monotonic() - began, 1)
            self.kills.append({"at_s": round(began - self.began, 1), "back_after_s": back_s})

    async def ready(self) -> bool:
        async with self.session.get("/health/ready") as response:
            return response.status == 200

    def engines(self) -> list[psutil.Process]:
        """The engine processes; a title that cannot be read is of one that is just gone."""
        found = []
        for process in self.server.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "EngineCore" in f"{process.name()} {' '.join(process.cmdline())}":
                    found.append(process)
        return found

    def family(self) -> list[psutil.Process]:
        return [self.server, *self.server.children(recursive=True)]


async def held(watch: Watch) -> dict[str, float]:
    """One sample: seconds, MiB, counts, and the used share of the KV cache."""
    async with watch.session.get("/stats", headers=watch.headers) as response:
        stats = await response.json()
    front = watch.server.memory_full_info()
    total = 0
    for process in watch.family():
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().pss
    return {
        "at_s": round(time.monotonic() - watch.began, 1),
        "gateway_mib": round(front.uss / MIB, 1),
        "all_mib": round(total / MIB, 1),
        "processes": len(watch.family()),
        "sockets": len([c for c in watch.server.net_connections() if c.status == "ESTABLISHED"]),
        "files": watch.server.num_fds(),
        "threads": watch.server.num_threads(),
        "in_flight": stats["in_flight"],
        "queued": stats["queued"],
        "kv_cache_usage": max(
            (model.get("kv_cache_usage", 0.0) for model in stats["models"].values()), default=0.0
        ),
    }


def verdict(
    answers: Sequence[Answer],
    watch: Watch,
    before: dict[str, float],
    after: dict[str, float],
    growth_mib: float,
) -> dict[str, Any]:
    """What grew, and a sentence for each promise that was broken."""
    grown = growth(watch.samples)
    lost = sum(answer.what == "lost" for answer in answers)
    broken = [
        *([f"{lost} requests were lost without a reason"] if lost else []),
        *(
            f"{name} is {after[name]:g} when all is over"
            for name in ("in_flight", "queued", "kv_cache_usage")
            if after[name]
        ),
        *(
            f"{name}: {before[name]:g} before, {after[name]:g} after"
            for name, more in (("sockets", 0), ("files", MOST_MORE_FILES), ("processes", 0))
            if after[name] > before[name] + more
        ),
        *(
            [f"the gateway's memory grew by {grown:.1f} MiB from the first third to the last"]
            if grown > growth_mib
            else []
        ),
    ]
    return {"gateway_growth_mib": round(grown, 1), "broken": broken}


def growth(samples: Sequence[dict[str, float]]) -> float:
    """Median of the gateway's memory in the last third of the run, less that of the first; MiB."""
    third = len(samples) // 3
    if not third:
        return 0.0
    first, last = samples[:third], samples[-third:]
    return statistics.median(each["gateway_mib"] for each in last) - statistics.median(
        each["gateway_mib"] for each in first
    )
