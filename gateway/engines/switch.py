"""Replacing the engine of a model name while it serves, without a failed request.

    blue_green   the new engine is built beside the old one, then requests go to it; the old one ends with
                 its last request. Needs memory for both.
    park         new requests wait, the old engine finishes and is shut down, the new one is built. When
                 anything fails the old one is built again, and the waiting requests get their answer from it.
    in_place     new requests wait, the old engine finishes, and its weights are replaced. Unquantised
                 weights of the very same shape only.

Whatever fails before the new engine serves leaves the old one in service. Why so: docs/adr/0009-switching.md.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine_config.profile import Profile
from engine_config.weights import tensors
from gateway.engines.fleet import Fleet
from gateway.engines.operation import Operation, Phase
from gateway.engines.probe import answers
from gateway.engines.served import ServedModel
from gateway.engines.slot import Slot, State
from gateway.engines.ways import Room, choose

log = logging.getLogger(__name__)

IDLE_POLL_S = 0.05
# Phases in which the weights of an engine are neither the old nor the new ones, or nobody knows yet.
INSIDE = (Phase.RELOADING, Phase.WARMING_UP, Phase.RESTORING)

Location = Path | str


@dataclass(frozen=True)
class Tools:
    """What a switch needs to know of a profile before it touches an engine. All of them block."""

    locate: Callable[[Profile, Callable[[str, float], None]], Location]  # builds it if need be
    footprint: Callable[[Profile, Location], int]  # memory of its engine, bytes
    check: Callable[[Profile, Location], None]  # raises what vLLM says against it


class SwitchFailed(Exception):
    """The switch was called off; the message says why, and what an operator can do."""


class Switch:
    """One change of engine, from the checkpoint to the end of the old engine."""

    def __init__(
        self,
        operation: Operation,
        fleet: Fleet,
        model: ServedModel,
        profile: Profile,
        tools: Tools,
    ) -> None:
        self.operation = operation
        self.fleet = fleet
        self.model = model
        self.profile = profile
        self.tools = tools
        self.closing_down = False

    def close_down(self) -> None:
        """The server ends: nothing is restored, and an engine that takes other weights is not waited for."""
        self.closing_down = True
        if self.operation.way == "in_place" and self.operation.phase in INSIDE and self.model.slot:
            self.model.slot.engine.kill()

    async def replace(self) -> Slot | None:
        """Until the new engine serves. The old one comes out if its last requests still run on it.

        Raises:
            Exception: what made it fail; then the old engine serves, or is being rebuilt.
        """
        location = await self._located()  # a download; an engine that dies meanwhile need not wait
        async with self.model.changing:
            old = self.model.slot
            await self._decide(old, location)
            way = {"park": self._park, "in_place": self._in_place}.get(
                self.operation.way or "", self._blue_green
            )
            return await way(location)

    async def _located(self) -> Location:
        self.operation.enter(Phase.LOCATING)

        def tell(text: str, fraction: float) -> None:
            self.operation.detail = f"{text} ({fraction:.0%})"

        return await asyncio.to_thread(self.tools.locate, self.profile, tell)

    async def _decide(self, old: Slot | None, location: Location) -> None:
        """Which way, and why.

        Raises:
            SwitchFailed: no way is open.
        """
        operation = self.operation
        operation.enter(Phase.CHECKING)
        if self.model.adapters and not self.profile.settings().get("enable_lora"):
            raise SwitchFailed(
                f"profile {self.profile.name} does not set enable_lora, and adapters are loaded: "
                f"{', '.join(self.model.adapters)}; unload them first"
            )
        if isinstance(location, Path):  # a broken file is told before anybody waits for it
            await asyncio.to_thread(tensors, location)
        await asyncio.to_thread(self.tools.check, self.profile, location)
        need = await asyncio.to_thread(self.tools.footprint, self.profile, location)
        held, others = await asyncio.to_thread(self._held)
        free = await asyncio.to_thread(_free, old)
        room = Room(need, held, free, self.model.settings.engine_memory_bytes, others)
        operation.way, operation.why = await asyncio.to_thread(
            choose, operation.asked, room, old, (self.profile, location)
        )
        log.info("switch of %s to %s: %s, %s", *self._names(), operation.way, operation.why)

    def _held(self) -> tuple[int, int]:
        """Bytes that the engines of this model, and of the others, take by the same estimate."""
        own = self.model.slots()
        others = [
            slot
            for model in self.fleet.models.values()
            for slot in model.slots()
            if model is not self.model
        ]
        sizes = [
            [self.tools.footprint(s.profile, s.location) for s in each] for each in (own, others)
        ]
        return sum(sizes[0]), sum(sizes[1])

    async def _blue_green(self, location: Location) -> Slot | None:
        slot = await self._build(location)
        old = self.model.publish(slot)
        self.operation.published = True
        if old is not None:
            self.model.retiring.append(old)
        return old

    async def _build(self, location: Location) -> Slot:
        """A new engine that has answered a question, not yet in service."""
        self.operation.enter(Phase.LOADING, self.model.start_s)
        slot = await self.model.build(self.profile, location)
        try:
            self.operation.enter(Phase.WARMING_UP)
            await answers(slot.engine)
        except BaseException:
            await self.model.retire(slot)
            raise
        return slot

    async def retire(self, old: Slot) -> None:
        """The old engine's last requests, then its end.

        Not under the model's lock: the new engine must be rebuilt should it die meanwhile.
        """
        self.operation.enter(Phase.DRAINING)
        if not await self._idle(old, self.model.settings.switch_drain_s):
            self.operation.notes.append(
                f"{old.in_flight} requests still ran on the old engine after "
                f"{self.model.settings.switch_drain_s:g} s and were cut off"
            )
        self.operation.enter(Phase.CLOSING)
        try:
            await self.model.retire(old)
        except Exception as error:  # the new engine serves all the same
            log.exception("the old engine of %s did not shut down cleanly", self.model.name)
            self.operation.notes.append(f"the old engine did not shut down cleanly: {error}")

    async def _idle(self, slot: Slot, limit_s: float) -> bool:
        """Wait for the slot's last request. False: the limit went by."""
        deadline = time.monotonic() + limit_s
        while slot.in_flight and time.monotonic() < deadline:
            self.operation.detail = f"{slot.in_flight} requests left"
            await asyncio.sleep(IDLE_POLL_S)
        return slot.in_flight == 0

    async def _park(self, location: Location) -> None:
        model, old = self.model, self.model.slot
        async with _Parked(model):
            await self._drained(old)
            try:
                self.operation.enter(Phase.CLOSING)
                await model.close()
                slot = await self._build(location)
            except BaseException:
                await self._restore()
                raise
            model.publish(slot)
            self.operation.published = True

    async def _drained(self, old: Slot | None) -> None:
        """The running requests' end, while new ones wait: so long that those can still be answered.

        Raises:
            SwitchFailed: some request takes longer.
        """
        self.operation.enter(Phase.DRAINING)
        settings = self.model.settings
        limit_s = min(settings.switch_drain_s, settings.park_timeout_s / 2)
        if old is not None and not await self._idle(old, limit_s):
            raise SwitchFailed(
                f"{old.in_flight} requests still ran after {limit_s:g} s (GATEWAY_SWITCH_DRAIN_S, or "
                "half of GATEWAY_PARK_TIMEOUT_S); nothing was changed"
            )

    async def _restore(self) -> None:
        """The engine as it was; if even that fails, the watcher goes on trying."""
        if self.closing_down:
            return
        self.operation.enter(Phase.RESTORING, self.model.start_s)
        try:
            await self.model.open()
        except BaseException as error:  # the first error is the one to tell
            self.model.state = State.DEAD  # the watcher goes on trying
            if not isinstance(error, Exception):
                raise
            log.exception("engine of %s did not start again", self.model.name)
            self.operation.notes.append(f"the old engine did not start again at once: {error}")

    async def _in_place(self, location: Location) -> None:
        model, old = self.model, self.model.slot
        assert old is not None and isinstance(location, Path)
        async with _Parked(model):
            await self._drained(old)
            try:
                self.operation.enter(Phase.RELOADING)
                await old.engine.reload_weights(location)
                self.operation.enter(Phase.WARMING_UP)
                await answers(old.engine)
                model.publish(await model.relabelled(old, self.profile, location))
                self.operation.published = True
            except BaseException:
                await self._reload_old(old)
                raise

    async def _reload_old(self, old: Slot) -> None:
        """Its own weights again; an engine that cannot take them is ended, and then rebuilt."""
        if self.closing_down:
            self.model.state = State.DEAD
            return
        self.operation.enter(Phase.RESTORING)
        try:
            assert isinstance(old.location, Path)
            await old.engine.reload_weights(old.location)
            await answers(old.engine)
            self.model.state = State.READY
        except BaseException as error:  # the first error is the one to tell; a rebuild mends all
            if not self.closing_down:  # else it was
                old.engine.kill()
            self.model.state = State.DEAD
            if not isinstance(error, Exception):
                raise
            log.exception("engine of %s did not take its old weights", self.model.name)
            self.operation.notes.append("the old engine was rebuilt")

    def _names(self) -> tuple[str, str]:
        return self.model.name, self.profile.name


def _free(slot: Slot | None) -> int | None:
    """Asks a driver, which may take its time."""
    return None if slot is None or slot.engine.dead() else slot.engine.free_memory()


class _Parked:
    """New requests wait at the model's gate while the block runs."""

    def __init__(self, model: ServedModel) -> None:
        self.model = model

    async def __aenter__(self) -> None:
        self.model.state = State.SWITCHING
        self.model.close_gate()

    async def __aexit__(self, *_: object) -> None:
        if self.model.state is State.SWITCHING:
            # Called off before anything was done; or while there was no engine, then the watcher builds one.
            self.model.state = State.DEAD if self.model.slot is None else State.READY
        self.model.gate.set()
