"""A gateway with one scripted engine, an admin client, and the engine that a switch will open."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from engine_config.profile import Profile
from tests.scripted import (
    Gateway,
    Script,
    ScriptedEngine,
    client_of,
    make_admin,
    make_gateway,
    make_profile,
)
from tests.unit.test_fleet import until

JSON = {"content-type": "application/json"}


def answering(name: str = "first") -> ScriptedEngine:
    """An engine that passes the probe and says its text to everybody else."""
    engine = ScriptedEngine(name)
    engine.script = lambda job: Script(["five words of an answer."])
    return engine


class Opener:
    """Gives the engines it was told, in order; waits at `gate`, and notes a cancelled start."""

    def __init__(self, *outcomes: ScriptedEngine | Exception) -> None:
        self.outcomes = list(outcomes)
        self.opened: list[str] = []  # profiles
        self.gate = asyncio.Event()
        self.gate.set()
        self.cancelled = 0

    async def __call__(
        self, profile: Profile, location: Path | str, cores: str | None
    ) -> ScriptedEngine:
        self.opened.append(profile.name)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class Bench:
    """A gateway with one model, its admin client, and the engine that a switch will open."""

    def __init__(self, **settings: Any) -> None:
        self.old, self.new = answering(), answering()
        self.gateway: Gateway = make_gateway(self.old, switch_drain_s=1000, **settings)
        self.model = self.gateway.model
        self.opener = self.model.opener = Opener(self.new)
        self.other = make_profile("first").model_copy(update={"name": "other"})
        self.app = make_admin(self.gateway, self.model.profile, self.other, make_profile("second"))
        self.switcher = self.app.state.switcher
        self.admin = client_of(self.app)

    def tools(self, **changes: Any) -> None:
        self.switcher.tools = replace(self.switcher.tools, **changes)

    async def switch(self, **body: Any) -> httpx.Response:
        body = {"profile": "other", **body}
        return await self.admin.post("/admin/models/first/switch", json=body)

    async def begun(self, **body: Any) -> str:
        response = await self.switch(**body)
        assert response.status_code == 202, response.text
        operation_id: str = response.json()["id"]
        assert response.headers["location"] == f"/admin/operations/{operation_id}"
        return operation_id

    async def operation(self, operation_id: str) -> dict[str, Any]:
        body: dict[str, Any] = (await self.admin.get(f"/admin/operations/{operation_id}")).json()
        return body

    async def ended(self, operation_id: str) -> dict[str, Any]:
        await until(lambda: self.switcher.get(operation_id).state != "running")
        return await self.operation(operation_id)

    async def reaches(self, operation_id: str, phase: str) -> None:
        """For `loading`: the opener is at work, not only about to be called."""
        await until(lambda: self.switcher.get(operation_id).phase == phase)
        if phase == "loading":
            await until(lambda: bool(self.opener.opened))

    async def ask(self) -> httpx.Response:
        return await self.gateway.client.post("/generate", json={"prompt": "a"})


@contextlib.asynccontextmanager
async def watched(bench: Bench) -> AsyncIterator[Bench]:
    """Its model is watched, and its switches end with the block."""
    watcher = asyncio.create_task(bench.model.watch())
    yield bench
    watcher.cancel()
    await asyncio.gather(watcher, return_exceptions=True)
    await bench.switcher.stop()
