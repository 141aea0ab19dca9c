"""A gateway whose engine has few places, and jobs that stay in it until they are let go."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from gateway.engines.served import ServedModel
from tests.scripted import Script
from tests.tenants import Tenants, bearer
from tests.unit.test_fleet import until

TENANTS: dict[str, dict[str, Any]] = {
    "a": {},
    "b": {},
    "fast": {"priority": "interactive"},
    "slow": {"priority": "batch"},
}
ASK = {"prompt": "x", "max_tokens": 4}
CHAT = {"messages": [{"role": "user", "content": "x"}]}


class Crowded(Tenants):
    """An engine with one place; each job waits in it until it is let go."""

    def __init__(self, folder: Path, places: int = 1, **settings: Any) -> None:
        super().__init__(folder, TENANTS, **settings)
        self.engine.limits = replace(self.engine.limits, max_num_seqs=places)
        self.gates: list[asyncio.Event] = []
        self.engine.script = self._script

    def _script(self, job: Any) -> Script:
        self.gates.append(asyncio.Event())
        return Script(["ok"], gate=self.gates[-1])

    @property
    def model(self) -> ServedModel:
        return self.gateway.model

    def asks(
        self, tenant: str, count: int = 1, path: str = "/generate", **headers: str
    ) -> list["asyncio.Task[httpx.Response]"]:
        body = CHAT if path.startswith("/v1") else ASK
        given = bearer(self.keys[tenant]) | {k.replace("_", "-"): v for k, v in headers.items()}
        call = self.client.post
        return [
            asyncio.create_task(call(path, json=body, headers=given), name=f"{tenant}{number}")
            for number in range(count)
        ]

    async def waiting(self, count: int) -> None:
        await until(lambda: self.model.admission.queued == count)

    async def drained(self) -> list[str]:
        """Lets one job go after the other; returns the request ids in the engine's order."""
        done = 0
        while self.model.admission.running or self.model.admission.queued:
            await until(lambda done=done: len(self.gates) > done)  # type: ignore[misc]
            self.gates[done].set()
            done += 1
            await until(lambda done=done: len(self.engine.jobs) > done or self.idle())  # type: ignore[misc]
        return [job.request_id.removeprefix("gen-") for job in self.engine.jobs]

    def idle(self) -> bool:
        admission = self.model.admission
        places = self.model.slot.places if self.model.slot else None
        left = places is None or not (places.sequences or places.running or places.reading)
        return left and not (
            admission.running or admission.queued or self.gateway.fleet.in_flight()
        )
