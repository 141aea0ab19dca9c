"""The OpenAI and Anthropic routes: an allowlist in front of each slot's own vLLM app.

vLLM's handlers, parsers and error bodies serve these; nothing of the protocol is written here. What vLLM
mounts beside them (`/invocations`, `/pause`, `/inference/*`, `*/render`, ...) does not exist for callers.
"""

import asyncio
from collections.abc import Coroutine, Mapping
from functools import partial
from typing import Any, TypeVar

import orjson
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.asgi import Exchange
from gateway.body import replay
from gateway.engines.fleet import Fleet, Guard
from gateway.engines.slot import Seat
from gateway.engines.types import Engine
from gateway.errors import EngineUnavailable, InvalidRequest, MethodNotAllowed, NotFound
from gateway.observability.spans import OFF, trace_of
from gateway.policy import bounds
from gateway.policy.asking import asked_of
from gateway.policy.deadline import Deadline, thinking_within
from gateway.policy.tenant import tenant_of
from gateway.routes.binding import Binding
from gateway.routes.shape import Shape
from gateway.routes.streams import unless_disconnected
from gateway.routes.timed import Timed
from gateway.settings import Settings
from gateway.thinking.effort import Plan, amended, read
from gateway.thinking.running import Running

Body = Mapping[str, Any]

# Path -> methods. All but /ping go to the app of the slot that the body's `model` names.
FORWARDED: Mapping[str, frozenset[str]] = {
    "/v1/chat/completions": frozenset({"POST"}),
    "/v1/completions": frozenset({"POST"}),
    "/v1/responses": frozenset({"POST"}),
    "/v1/messages": frozenset({"POST"}),
    "/v1/messages/count_tokens": frozenset({"POST"}),
    "/tokenize": frozenset({"POST"}),
    "/detokenize": frozenset({"POST"}),
    "/version": frozenset({"GET"}),
    "/ping": frozenset({"GET", "POST"}),
}
THINKING = frozenset({"/v1/chat/completions", "/v1/responses", "/v1/messages"})
# Paths that generate; OpenTelemetry's names.
OPERATIONS = {**dict.fromkeys(THINKING, "chat"), "/v1/completions": "text_completion"}
W3C = (b"traceparent", b"tracestate")
BODILESS = frozenset({"/version"})
PING = "/ping"
MODELS = "/v1/models"
T = TypeVar("T")


class OpenAIRoutes:
    """An ASGI app; mounted last, so it also answers 404 for whatever no route of ours matches."""

    def __init__(
        self, fleet: Fleet, settings: Settings, running: Running, native: Mapping[str, set[str]]
    ) -> None:
        self.running = running
        self.native = native  # path -> methods of our own routes, to tell a 405 from a 404
        self.fleet = fleet
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        if path == MODELS or path.startswith(f"{MODELS}/"):
            scope["gateway.exchange"].route = MODELS
            await self._models(scope, receive, send)
            return
        methods = FORWARDED.get(path) or frozenset(self.native.get(path, ()))
        if not methods:
            raise NotFound(f"no route {method} {path}; /docs lists the routes")
        scope["gateway.exchange"].route = path
        if method not in methods:
            raise method_not_allowed(path, method, methods)
        if path == PING:
            self._ping()
            await Response()(scope, receive, send)
            return
        await self._forward(scope, receive, send)

    def _ping(self) -> None:
        """From what is known: it needs no key, so it must not wait where others do."""
        if not self.fleet.ready():
            raise EngineUnavailable("not ready; GET /health/ready tells why")

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = scope["gateway.json"]
        if request is None:
            if scope["path"] not in BODILESS:
                raise InvalidRequest("the body is empty; send a JSON object")
            request = {}
        bounds.check(request, self.settings)
        exchange: Exchange = scope["gateway.exchange"]
        asked = asked_of(exchange.notes)
        deadline = asked.deadline()
        guard = watched(receive, deadline)
        binding = Binding(request, self.settings, guard)
        body = (await receive())["body"]  # as it came; whoever waits listens for a hang-up only
        if not asked.sequences:
            name = request.get("model")
            async with self.fleet.seat(name, exchange.notes, guard=guard) as seat:
                await seat.engine.app(scope, replay(body, receive), send)
            return
        model = self.fleet.find(request.get("model"), tenant_of(exchange.notes))
        exchange.notes["model"] = model.name  # also of a request that is refused for its grammar
        await binding.before(model)
        timed = None if deadline is None else Timed(receive, send, deadline)
        ticket = asked.ticket(wish_of(request))
        async with self.fleet.seat(request.get("model"), exchange.notes, ticket, guard) as seat:
            await binding.tried_by(seat.slot)
            if timed is None:
                await self._generate(seat, request, body, (scope, receive, send))
                return
            await self._generate(seat, request, body, (scope, timed.receive, timed.send))
            await timed.end(scope["path"], exchange)

    async def _generate(
        self, seat: Seat, request: dict[str, Any], body: bytes, call: tuple[Scope, Receive, Send]
    ) -> None:
        scope, receive, send = call
        if seat.engine.limits.by_priority:
            request = {**request, "priority": seat.priority}  # never the caller's own
            body = orjson.dumps(request)
        app: ASGIApp = partial(_traced, seat.engine.app, (seat.name, request))
        if not self._thinks(scope["path"], seat.engine):
            await app(scope, replay(body, receive), send)
            return
        exchange: Exchange = scope["gateway.exchange"]
        tenant = tenant_of(exchange.notes)
        frame = self.settings.thinking_frame(
            seat.slot.profile.thinking_default, tenant.limits.max_thinking
        )
        plan = exchange.notes["plan"] = read(request, frame)
        receive = replay(orjson.dumps(amended(request, plan)), receive)
        send = Shape(send, plan, self.settings.reasoning_fields)
        deadline = asked_of(exchange.notes).deadline()
        speed = self.fleet.find(request.get("model"), tenant).admission.speed
        with (
            thinking_within(deadline, plan, speed, len(seat.engine.dialect.phrase)),
            self.running.registered(exchange.request_id, plan, tenant.name),
        ):
            await app(scope, receive, send)

    def _thinks(self, path: str, engine: Engine) -> bool:
        return path in THINKING and engine.thinks and self.settings.thinking_guarantee

    async def _models(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "GET":
            raise method_not_allowed(scope["path"], scope["method"], frozenset({"GET"}))
        wanted = scope["path"].removeprefix(MODELS).removeprefix("/")
        tenant = tenant_of(scope["gateway.exchange"].notes)
        cards = self.fleet.cards(tenant)
        if wanted:
            self.fleet.find(wanted, tenant)  # or it says what there is
            response = JSONResponse(next(card for card in cards if card["id"] == wanted))
        else:
            response = JSONResponse({"object": "list", "data": cards})
        await response(scope, receive, send)


async def _traced(
    app: ASGIApp, asked: tuple[str, Body], scope: Scope, receive: Receive, send: Send
) -> None:
    """vLLM's app, in the request's trace: its spans are below ours."""
    exchange: Exchange = scope["gateway.exchange"]
    notes, operation = exchange.notes, OPERATIONS.get(scope["path"])
    if operation is None or (trace := trace_of(notes)) is OFF:
        await app(scope, receive, send)
        return
    with trace.inference(operation, *asked) as call:
        context = {name.encode(): value.encode() for name, value in (call.headers() or {}).items()}
        others = [pair for pair in scope["headers"] if pair[0] not in W3C]
        scope["headers"] = [*others, *context.items()]
        plan: Plan | None = notes.get("plan")
        if plan is not None:
            plan.trace = call
        with call.child("render") as notes["render"]:  # ended when the engine is asked
            await app(scope, receive, send)
        if exchange.status >= 400:
            call.failed(str(exchange.status))
        outcomes = [run.outcome for run in plan.runs] if plan else []
        call.answered(notes["meter"].cost().told(), [each.finish_reason for each in outcomes])
        call.said([each.answer for each in outcomes])


def method_not_allowed(path: str, method: str, methods: frozenset[str]) -> MethodNotAllowed:
    allowed = ", ".join(sorted(methods))
    return MethodNotAllowed(f"{path} takes {allowed}, not {method}", headers={"allow": allowed})


def watched(receive: Receive, deadline: Deadline | None) -> Guard:
    """Waits for an engine no longer than the caller: vLLM's handlers do not listen yet."""

    async def guard(work: Coroutine[Any, Any, T]) -> T:
        try:
            async with asyncio.timeout_at(None if deadline is None else deadline.at):
                return await unless_disconnected(receive, work)
        except TimeoutError as error:
            if deadline is None:
                raise
            raise deadline.exceeded() from error

    return guard


def wish_of(request: Mapping[str, Any]) -> int:
    """vLLM's own field `priority`; what is no number is refused by vLLM."""
    given = request.get("priority")
    return given if isinstance(given, int) else 0
