"""Slots and what keeps them alive.

A `Slot` is one loaded engine in service. A `ServedModel` is a name that requests use; it holds the slot
of the moment, watches it, and replaces a dead one by one assignment. The `Fleet` is all of them.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from engine_config.fingerprint import fingerprint
from engine_config.profile import HubModel, Profile, ProfileError
from gateway.engines.types import Engine, Opener
from gateway.errors import EngineUnavailable, ModelNotFound
from gateway.settings import Settings
from gateway.thinking.calibration import Calibration, fitting

log = logging.getLogger(__name__)

WATCH_S = 0.5
MAX_BACKOFF_S = 60.0
# What a caller is told to wait before anything was measured.
USUAL_START_S = 30.0


class EngineStartFailed(Exception):
    """An engine did not come up when the gateway started; the message says which and why."""


class State(StrEnum):
    LOADING = "loading"
    READY = "ready"
    HUNG = "hung"  # requests run, no token comes
    DEAD = "dead"


@dataclass
class Slot:
    """One engine in service. `in_flight` counts requests inside it, streams included."""

    engine: Engine
    in_flight: int = 0
    killed: bool = False  # because it hung; it will be seen as dead in a moment

    @contextlib.contextmanager
    def use(self) -> Iterator[Engine]:
        """Hold the slot for one request, until the engine has nothing more to say to it."""
        self.in_flight += 1
        try:
            yield self.engine
        finally:
            self.in_flight -= 1


@dataclass
class ServedModel:
    """A model name, and the slot that answers for it now."""

    profile: Profile
    location: Path | str
    opener: Opener
    settings: Settings
    state: State = State.LOADING
    slot: Slot | None = None
    known_card: dict[str, Any] | None = (
        None  # of the last engine; a name stays listed while it is away
    )
    fingerprint: str | None = None  # of the model, see engine_config/fingerprint.py
    calibration: Calibration | None = None  # of confidence; None: none that fits this model
    start_s: float = USUAL_START_S  # how long the last start took
    failures: int = 0  # failed starts in a row
    restarts: int = 0

    @property
    def name(self) -> str:
        return self.profile.served_as

    def card(self) -> dict[str, Any]:
        """The entry of `/v1/models`; without details before the first engine is up."""
        return self.known_card or {"id": self.name, "object": "model", "owned_by": "vllm"}

    async def open(self) -> None:
        """Load an engine and put it in service. Whatever the opener raises comes out."""
        started = time.monotonic()
        await asyncio.to_thread(self._know)
        engine = await self.opener(self.profile, self.location)
        try:
            self.known_card = await engine.model_card()
        except BaseException:
            await engine.aclose()
            raise
        self.slot = Slot(engine)
        self.start_s = time.monotonic() - started
        self.failures = 0
        self.state = State.READY

    def _know(self) -> None:
        """Which model it is, and the calibration made for it."""
        model = self.profile.model
        revision = model.revision if isinstance(model, HubModel) else ""
        self.fingerprint = fingerprint(self.location, revision)
        if (path := self.profile.calibration) is not None:
            self.calibration = fitting(path, self.fingerprint)

    def take(self) -> Slot:
        """The slot to use now.

        Raises:
            EngineUnavailable: loading, dead, or hung.
        """
        if self.state is State.READY and self.slot is not None and not self.slot.engine.dead():
            return self.slot
        reasons = {
            State.LOADING: "is loading",
            State.HUNG: "makes no progress and will be restarted if that goes on",
        }
        reason = reasons.get(self.state, "stopped and is being restarted")
        raise EngineUnavailable(f"the engine of '{self.name}' {reason}", self.start_s)

    async def watch(self) -> None:
        """See death and hanging; rebuild. Runs until it is cancelled."""
        while True:
            await asyncio.sleep(WATCH_S)
            if self.slot is not None:
                self.state = self._observe(self.slot)
            if self.state is State.DEAD:
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
        log.error("engine of %s died; rebuilding it", self.name)
        try:
            await self.close()
        except Exception:  # a new engine matters more than a tidy end of the old one
            log.exception("engine of %s did not shut down cleanly", self.name)
        backoff_s = self.settings.rebuild_backoff_s
        while self.slot is None:
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
            try:
                await self.open()
            except Exception:  # whatever it is, try again; /health/live tells
                self.failures += 1
                log.exception("engine of %s did not start (attempt %d)", self.name, self.failures)
        self.restarts += 1
        log.warning("engine of %s is back after %.0f s", self.name, self.start_s)

    async def close(self) -> None:
        """Shut the engine down, whatever state it is in."""
        slot, self.slot = self.slot, None
        if slot is not None:
            await slot.engine.aclose()


class Fleet:
    """All served models. The first is the default one."""

    def __init__(self, models: list[ServedModel], settings: Settings) -> None:
        self.models = {model.name: model for model in models}
        self.settings = settings
        self.draining = False
        self._watchers: list[asyncio.Task[None]] = []

    async def start(self, tell: Callable[[ServedModel], None] = lambda _: None) -> None:
        """Open every model, one after the other: two that load at once fight for memory and cores.

        Raises:
            ProfileError: the profile names a setting that vLLM refuses.
            EngineStartFailed: whatever else kept an engine from coming up.
        """
        for model in self.models.values():
            tell(model)
            try:
                await model.open()
            except ProfileError:
                raise
            except Exception as error:
                raise EngineStartFailed(
                    f"the engine of {model.name} (profile {model.profile.name}) did not start: {error}. "
                    "Its own messages are above; VLLM_LOGGING_LEVEL=INFO shows more"
                ) from error
            self._watchers.append(asyncio.create_task(model.watch(), name=f"watch {model.name}"))

    def slot(self, name: object = None) -> Slot:
        """The slot that answers for a model name; no name means the default model.

        Raises:
            ModelNotFound: not served here.
            EngineUnavailable: served, but not now.
        """
        model = self.find(name)
        if self.draining:
            raise EngineUnavailable("the server is shutting down", self.settings.drain_timeout_s)
        return model.take()

    def find(self, name: object = None) -> ServedModel:
        """The served model of that name, in whatever state.

        Raises:
            ModelNotFound: not served here.
        """
        if name is None:
            return next(iter(self.models.values()))
        if not isinstance(name, str) or name not in self.models:
            served = ", ".join(self.models)
            raise ModelNotFound(f"model {name!r} is not served here; served: {served}", "model")
        return self.models[name]

    def ready(self) -> bool:
        """Every model can take requests."""
        return not self.draining and all(m.state is State.READY for m in self.models.values())

    def in_flight(self) -> int:
        """Requests inside any slot."""
        return sum(model.slot.in_flight for model in self.models.values() if model.slot)

    async def drain(self, timeout_s: float) -> bool:
        """Take no more requests; wait until those that run are done. False: time ran out."""
        self.draining = True
        deadline = time.monotonic() + timeout_s
        while self.in_flight() and time.monotonic() < deadline:  # noqa: ASYNC110 - a count, no event
            await asyncio.sleep(0.05)
        return self.in_flight() == 0

    async def close(self) -> None:
        """Stop watching, shut every engine down."""
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        await asyncio.gather(*(model.close() for model in self.models.values()))
