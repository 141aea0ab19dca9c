"""A model name that requests use, and the engine that answers for it now.

`ServedModel` holds the slot of the moment, watches it, and replaces a dead one by one assignment. While an
engine is replaced without a second one beside it, requests wait at a gate instead of failing.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engine_config.profile import Profile
from gateway.engines.cores import CoreSets
from gateway.engines.slot import Facts, Slot, State
from gateway.engines.types import Engine, Opener
from gateway.errors import EngineUnavailable, InvalidRequest, ModelNotFound
from gateway.policy.admission import Admission, Source
from gateway.settings import Settings

log = logging.getLogger(__name__)

WATCH_S = 0.5
MAX_BACKOFF_S = 60.0
# What a caller is told to wait before anything was measured.
USUAL_START_S = 30.0


def _open_gate() -> asyncio.Event:
    gate = asyncio.Event()
    gate.set()
    return gate


@dataclass
class ServedModel:
    """One name in service. `profile` and `location` are what a rebuild would load."""

    profile: Profile
    location: Path | str
    opener: Opener
    settings: Settings
    cores: CoreSets = field(default_factory=CoreSets)
    adapters: dict[str, Path] = field(default_factory=dict)  # LoRA, by the name requests use
    using: Counter[str] = field(default_factory=Counter)  # requests by adapter, unloaded ones too
    state: State = State.LOADING
    slot: Slot | None = None
    retiring: list[Slot] = field(default_factory=list)  # replaced; their last requests still run
    gate: asyncio.Event = field(default_factory=_open_gate)  # closed: new requests wait
    waiting: int = 0  # requests at the gate
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)  # one change of engine at a time
    known_card: dict[str, Any] | None = (
        None  # of the last engine; a name stays listed while it is away
    )
    start_s: float = USUAL_START_S  # how long the last start took
    built: int = 0  # engines so far
    failures: int = 0  # failed starts in a row
    closing: bool = False  # the process is to end; a dead engine stays dead
    restarts: int = 0
    admission: Admission[Slot] = field(init=False)

    def __post_init__(self) -> None:
        self.admission = Admission(self.name, self.settings, Source(self.now, self.take))

    @property
    def name(self) -> str:
        return self.profile.served_as

    def cards(self) -> list[dict[str, Any]]:
        """The entries of `/v1/models`: itself, then its adapters. Bare before the first engine is up."""
        own = self.known_card or {"id": self.name, "object": "model", "owned_by": "vllm"}
        return [own, *(self._adapter_card(own, name) for name in self.adapters)]

    def _adapter_card(self, own: Mapping[str, Any], name: str) -> dict[str, Any]:
        return {**own, "id": name, "root": name, "parent": self.name}

    async def build(
        self, profile: Profile, location: Path | str, without_bad_adapters: bool = False
    ) -> Slot:
        """Load an engine; nothing in service changes. Whatever the opener raises comes out.

        Cancelled, it ends the engine processes it has started before it lets go.

        Raises:
            TimeoutError: it took longer than the operator allows, and was given up.
            InvalidRequest: it does not take a loaded adapter, and none may be left out.
        """
        started = time.monotonic()
        facts = await asyncio.to_thread(Facts.of, profile, location)
        cores = self.cores.take()
        try:
            async with self._start_limit():
                engine = await self.opener(profile, location, cores)
                try:
                    await self._give_adapters(engine, without_bad_adapters)
                    card = await engine.model_card()
                except BaseException:
                    await engine.aclose()
                    raise
        except BaseException:
            self.cores.give_back(cores)
            raise
        self.built += 1
        self.start_s = time.monotonic() - started
        slot = Slot(engine, profile, location, facts, card, self.built, cores, self.start_s)
        slot.card = {**card, "profile": profile.name, "format": slot.format}
        return slot

    @contextlib.asynccontextmanager
    async def _start_limit(self) -> AsyncIterator[None]:
        """vLLM waits for its engine process without end while that lives."""
        limit_s = self.settings.engine_start_s
        try:
            async with asyncio.timeout(limit_s) as limit:
                yield
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise TimeoutError(
                f"the engine was not up after {limit_s:g} s (setting GATEWAY_ENGINE_START_S)"
            ) from error

    async def _give_adapters(self, engine: Engine, without_bad: bool) -> None:
        for name, path in tuple(self.adapters.items()):
            try:
                await engine.load_adapter(name, path)
            except InvalidRequest as error:
                if not without_bad:
                    raise
                log.error("adapter %s of %s is dropped: %s", name, self.name, error.message)
                self.adapters.pop(name, None)

    async def relabelled(self, slot: Slot, profile: Profile, location: Path | str) -> Slot:
        """The same engine with other weights in it."""
        facts = await asyncio.to_thread(Facts.of, profile, location)
        card = {**slot.card, "profile": profile.name}
        return replace(slot, profile=profile, location=location, facts=facts, card=card)

    def publish(self, slot: Slot) -> Slot | None:
        """Put it in service by one assignment; returns the one before."""
        before, self.slot = self.slot, slot
        self.profile, self.location = slot.profile, slot.location
        self.known_card = slot.card
        self.failures = 0
        self.state = State.READY
        slot.engine.watch_steps(self.admission.pump)
        self.admission.pump()
        return before

    async def open(self) -> None:
        """Load the engine of the present profile and put it in service.

        An adapter that it does not take is dropped: without the engine, nothing would be served.
        """
        self.publish(await self.build(self.profile, self.location, without_bad_adapters=True))

    def close_gate(self) -> None:
        """New requests wait; so do those that queue for the engine that is going to be replaced."""
        self.gate.clear()
        self.admission.recheck()

    def now(self) -> Slot | None:
        """The slot that takes requests now, if there is one."""
        if not self.gate.is_set() or self.state is not State.READY:
            return None
        return None if self.slot is None or self.slot.engine.dead() else self.slot

    async def take(self) -> Slot:
        """The slot to use now; waits while the engine is being replaced.

        Raises:
            EngineUnavailable: loading, dead or hung, or too many or too long at the gate.
        """
        while not self.gate.is_set():
            await self._wait()
        if (slot := self.now()) is not None:
            return slot
        reasons = {
            State.LOADING: "is loading",
            State.SWITCHING: "is being switched",
            State.HUNG: "makes no progress and will be restarted if that goes on",
        }
        reason = reasons.get(self.state, "stopped and is being restarted")
        raise EngineUnavailable(f"the engine of '{self.name}' {reason}", self.start_s)

    async def _wait(self) -> None:
        limit, patience_s = self.settings.max_parked, self.settings.park_timeout_s
        if self.waiting >= limit:
            raise EngineUnavailable(
                f"the engine of '{self.name}' is being switched and {limit} requests wait already",
                self.start_s,
            )
        self.waiting += 1
        try:
            async with asyncio.timeout(patience_s):
                await self.gate.wait()
        except TimeoutError as error:
            raise EngineUnavailable(
                f"the engine of '{self.name}' is being switched; not done after {patience_s:g} s",
                self.start_s,
            ) from error
        finally:
            self.waiting -= 1

    async def watch(self) -> None:
        """See death and hanging; rebuild. Runs until it is cancelled."""
        while True:
            await asyncio.sleep(WATCH_S)
            try:
                await self._look()
            except Exception:  # nobody else would notice a dead engine
                log.exception("watching the engine of %s", self.name)

    async def _look(self) -> None:
        for slot in self.slots():
            seen = self._observe(slot)
            if slot is self.slot and self.gate.is_set():
                self.state = seen
        if self.now() is None:
            self.admission.recheck()
        if self.state is State.DEAD and not self.closing:
            await self._rebuild()

    def _observe(self, slot: Slot) -> State:
        if slot.engine.dead():
            return State.DEAD
        silent_s = slot.engine.silent_s()
        if silent_s > 2 * self.settings.engine_hang_s and not slot.killed:
            log.error("engine of %s: no token for %.0f s; it is restarted", self.name, silent_s)
            slot.killed = True
            slot.engine.kill()
        return State.HUNG if silent_s > self.settings.engine_hang_s else State.READY

    async def _rebuild(self) -> None:
        """A new engine in the place of a dead one, tried again and again.

        Between two tries a switch may have its turn: to another profile, should this one not start.
        """
        log.error("engine of %s died; rebuilding it", self.name)
        backoff_s = self.settings.rebuild_backoff_s
        while True:
            async with self.changing:
                await self._bury()
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
            async with self.changing:
                if self.slot is not None or await self._open_again():
                    return

    async def _bury(self) -> None:
        """Shut the engine down if it is dead; a switch may have brought another meanwhile."""
        if self.slot is None or not self.slot.engine.dead():
            return
        try:
            await self.close()
        except Exception:  # a new engine matters more than a tidy end of the old one
            log.exception("engine of %s did not shut down cleanly", self.name)

    async def _open_again(self) -> bool:
        for name in [name for name, path in self.adapters.items() if not path.is_dir()]:
            log.error("adapter %s of %s is gone from the disk; dropped", name, self.name)
            del self.adapters[name]
        try:
            await self.open()
        except Exception:  # whatever it is, try again; /health/live tells
            self.failures += 1
            log.exception("engine of %s did not start (attempt %d)", self.name, self.failures)
            return False
        self.restarts += 1
        log.warning("engine of %s is back after %.0f s", self.name, self.start_s)
        return True

    async def retire(self, slot: Slot) -> None:
        """Shut a slot down that no request uses any more."""
        try:
            await slot.engine.aclose()
        finally:
            self.cores.give_back(slot.cores)
            if slot in self.retiring:
                self.retiring.remove(slot)

    async def close(self) -> None:
        """Shut the engine in service down, whatever state it is in."""
        slot, self.slot = self.slot, None
        if slot is not None:
            await self.retire(slot)

    async def close_all(self) -> None:
        """That, and those whose last requests still run; one that cannot be is logged."""
        slots, self.slot = self.slots(), None
        ends = await asyncio.gather(*(self.retire(slot) for slot in slots), return_exceptions=True)
        for slot, end in zip(slots, ends, strict=True):
            if isinstance(end, BaseException):
                told = (self.name, slot.profile.name)
                log.error("engine of %s (%s) did not shut down cleanly", *told, exc_info=end)

    def slots(self) -> list[Slot]:
        """All that have an engine: the retiring ones, then the one in service."""
        return [*self.retiring, *([self.slot] if self.slot else [])]

    @contextlib.contextmanager
    def engine(self, slot: Slot, name: str) -> Iterator[Engine]:
        """The slot's engine for one request; with the adapter of that name, if it is not the model's own.

        Raises:
            ModelNotFound: it was unloaded while the request waited.
        """
        if name == self.name:
            yield slot.engine
            return
        if name not in self.adapters:
            raise ModelNotFound(f"adapter '{name}' was unloaded", "model")
        self.using[name] += 1
        try:
            yield slot.engine.adapted(name)
        finally:
            self.using[name] -= 1
