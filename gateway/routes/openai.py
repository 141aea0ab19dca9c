"""The OpenAI and Anthropic routes: an allowlist in front of each slot's own vLLM app.

vLLM's handlers, parsers and error bodies serve these; nothing of the protocol is written here. What vLLM
mounts beside them (`/invocations`, `/pause`, `/inference/*`, `*/render`, ...) does not exist for callers.
"""

from collections.abc import Mapping

import orjson
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from gateway.body import replay
from gateway.engines.fleet import Fleet
from gateway.engines.types import Engine
from gateway.errors import InvalidRequest, MethodNotAllowed, NotFound
from gateway.policy import bounds
from gateway.routes.shape import Shape
from gateway.settings import Settings
from gateway.thinking.effort import amended, read
from gateway.thinking.running import Running

# Path -> methods. These go to the app of the slot that the body's `model` names.
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
BODILESS = frozenset({"/version", "/ping"})
MODELS = "/v1/models"


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
        await self._forward(scope, receive, send)

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = scope["gateway.json"]
        if request is None:
            if scope["path"] not in BODILESS:
                raise InvalidRequest("the body is empty; send a JSON object")
            request = {}
        bounds.check(request, self.settings)
        model = self.fleet.find(request.get("model"))
        slot = self.fleet.slot(request.get("model"))
        with slot.use() as engine:
            if not self._thinks(scope["path"], engine):
                await engine.app(scope, receive, send)
                return
            plan = read(request, self.settings.thinking_frame(model.profile.thinking_default))
            await receive()  # the body as it came
            receive = replay(orjson.dumps(amended(request, plan)), receive)
            send = Shape(send, plan, self.settings.reasoning_fields)
            with self.running.registered(scope["gateway.exchange"].request_id, plan):
                await engine.app(scope, receive, send)

    def _thinks(self, path: str, engine: Engine) -> bool:
        return path in THINKING and engine.thinks and self.settings.thinking_guarantee

    async def _models(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "GET":
            raise method_not_allowed(scope["path"], scope["method"], frozenset({"GET"}))
        wanted = scope["path"].removeprefix(MODELS).removeprefix("/")
        if wanted:
            response = JSONResponse(self.fleet.find(wanted).card())
        else:
            cards = [model.card() for model in self.fleet.models.values()]
            response = JSONResponse({"object": "list", "data": cards})
        await response(scope, receive, send)


def method_not_allowed(path: str, method: str, methods: frozenset[str]) -> MethodNotAllowed:
    allowed = ", ".join(sorted(methods))
    return MethodNotAllowed(f"{path} takes {allowed}, not {method}", headers={"allow": allowed})
