"""All served models, and the way a request takes to an engine."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Protocol, TypeVar

from engine_config.profile import ProfileError
from gateway.engines.served import ServedModel
from gateway.engines.slot import Seat, Slot, State
from gateway.errors import EngineUnavailable, ModelNotFound
from gateway.observability.spans import trace_of
from gateway.policy.admission import Place
from gateway.policy.line import TICKET, Ticket
from gateway.policy.tenant import ANYBODY, CLASSES, Tenant, tenant_of
from gateway.settings import Settings

DRAIN_POLL_S = 0.05
T = TypeVar("T")


class Guard(Protocol):
    """Runs work that waits, and gives its result; it may give up."""

    async def __call__(self, work: Coroutine[Any, Any, T], /) -> T: ...


async def unguarded(work: Coroutine[Any, Any, T]) -> T:
    """For a request that somebody else watches over."""
    return await work


class EngineStartFailed(Exception):
    """An engine did not come up when the gateway started; the message says which and why."""


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

    @contextlib.asynccontextmanager
    async def seat(
        self,
        name: object,
        notes: dict[str, Any],
        ticket: Ticket | None = None,
        guard: Guard = unguarded,
    ) -> AsyncIterator[Seat]:
        """A request's place in the slot that answers for a model name; no name is the default model.

        With a `ticket` it is admitted in its turn; without one it generates nothing, and passes. `guard`
        runs what has to be waited for. `notes` (of the exchange) gets the slot, so that headers and metrics
        tell which engine served, and the seconds in the queue.

        Raises:
            ModelNotFound: not served here.
            EngineUnavailable: served, but not now; QueueFull and QueueTimeout are such.
        """
        model = self.find(name, tenant_of(notes))
        notes["model"] = model.name  # also of a request that is refused for its engine's state
        self._refuse_when_draining()
        with contextlib.ExitStack() as stack:
            with trace_of(notes).child("queue"):
                if ticket is None:
                    if (slot := model.now()) is None:
                        slot = await guard(model.take())
                    stack.enter_context(slot.held())
                else:
                    slot = await self._admitted(model, ticket, (notes, guard), stack)
            self._refuse_when_draining()  # it may have begun while the request waited
            served_as = model.name if name is None else str(name)
            notes["slot"], notes["model"] = slot, model.name
            engine = stack.enter_context(model.engine(slot, served_as))
            priority = CLASSES.index(ticket.priority) if ticket and engine.limits.by_priority else 0
            yield Seat(slot, engine, served_as, priority)

    async def _admitted(
        self,
        model: ServedModel,
        ticket: Ticket,
        asking: tuple[dict[str, Any], Guard],
        stack: contextlib.ExitStack,
    ) -> Slot:
        """In its turn; the stack gives the places back."""
        notes, guard = asking

        async def waited() -> Place[Slot]:
            place = await model.admission.enter(ticket)
            stack.callback(place.leave)  # in here: whoever gives up waiting cannot lose it
            return place

        if (place := model.admission.enter_now(ticket)) is not None:
            stack.callback(place.leave)
        else:
            place = await guard(waited())
        notes["queue_s"] = max(place.queued_s, notes.get("queue_s", 0.0))
        stack.callback(TICKET.reset, TICKET.set(ticket))
        return place.slot

    def _refuse_when_draining(self) -> None:
        if self.draining:
            raise self._closing()

    def _closing(self) -> EngineUnavailable:
        return EngineUnavailable("the server is shutting down", self.settings.drain_timeout_s)

    def find(self, name: object = None, tenant: Tenant = ANYBODY) -> ServedModel:
        """The served model of that name, or the one whose adapter has it; in whatever state.

        Raises:
            ModelNotFound: not served here, or not for that tenant: as OpenAI does, which of the two is not
                told.
        """
        if name is None:
            usable = (model for model in self.models.values() if tenant.may_use(model.name))
            if (first := next(usable, None)) is not None:
                return first
        if isinstance(name, str) and tenant.may_use(name):
            if name in self.models:
                return self.models[name]
            for model in self.models.values():
                if name in model.adapters:
                    return model
        served = ", ".join(card["id"] for card in self.cards(tenant))
        raise ModelNotFound(f"model {name!r} is not served here; served: {served}", "model")

    def cards(self, tenant: Tenant = ANYBODY) -> list[dict[str, Any]]:
        """The entries of `/v1/models` that the tenant may use, the default model's first."""
        cards = (card for model in self.models.values() for card in model.cards())
        return [card for card in cards if tenant.may_use(card["id"])]

    def ready(self) -> bool:
        """Every model can take requests; one that is being switched lets them wait."""
        able = (State.READY, State.SWITCHING)
        return not self.draining and all(model.state in able for model in self.models.values())

    def in_flight(self) -> int:
        """Requests inside any slot."""
        return sum(slot.in_flight for model in self.models.values() for slot in model.slots())

    def begin_drain(self) -> None:
        """New requests, and those in the queues, are told that it ends."""
        self.draining = True
        for model in self.models.values():
            model.closing = True
            model.admission.recheck(self._closing())

    async def drain(self, timeout_s: float) -> bool:
        """Take no more requests; wait until those that run are done. False: time ran out."""
        self.begin_drain()
        deadline = time.monotonic() + timeout_s
        while self.in_flight() and time.monotonic() < deadline:  # noqa: ASYNC110 - a count, no event
            await asyncio.sleep(DRAIN_POLL_S)
        return self.in_flight() == 0

    async def close(self) -> None:
        """Stop watching, shut every engine down."""
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        await asyncio.gather(*(model.close_all() for model in self.models.values()))
