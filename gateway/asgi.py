"""The edge around the whole app: request ids, observation, and errors as responses. Pure ASGI.

No `BaseHTTPMiddleware`: it costs several objects and a task per request, and a queue hop per chunk.
"""

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import (
    ANTHROPIC_PREFIX,
    EngineUnavailable,
    GatewayError,
    HeadersTooLarge,
    InternalError,
    InvalidRequest,
    NotFound,
    UrlTooLong,
    last_event,
    render,
)
from gateway.observability.lines import EXCHANGE
from gateway.observability.spans import UNTRACED, Tracer, trace_of
from gateway.settings import Settings

log = logging.getLogger(__name__)

# A caller's own id is kept when it is harmless in a header, a log line and an engine id.
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# Every caller's mistake costs a line of memory; a longer error than this is not one of vLLM's.
MAX_ERROR_BYTES = 64 * 1024
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")
KEEP_ALIVE = b": keep-alive\n\n"
# How vLLM's streams tell an error: of chat and completions, of messages.
FAILURES = (b'data: {"error"', b"event: error")
# U+0085, U+2028 and U+2029: lawful in JSON and in an event's line, but httpx's `iter_lines`, and whoever else
# splits by `str.splitlines`, breaks the line there.
LINE_BREAKS = re.compile(rb"\xc2\x85|\xe2\x80[\xa8\xa9]")


class ClientGone(Exception):
    """The caller hung up; there is nobody to answer."""


@dataclass
class Exchange:
    """One request as the edge saw it. Times in seconds on `time.perf_counter`."""

    request_id: str
    method: str
    path: str
    started: float
    route: str | None = None  # template of the route that answered; None: nothing matched
    status: int = 0  # 0: the caller was gone before an answer
    first_byte: float | None = None
    ended: float = 0.0
    streamed: bool = False  # server-sent events
    disconnected: bool = False
    notes: dict[str, Any] = field(default_factory=dict)  # who, what and how much, by the layers


Observer = Callable[[Exchange], None]


class Edge:
    """Outermost of our layers: request id in and out, one `send` wrapper, escaped errors, observation.

    The id is put into the request headers too, so that vLLM's engine id, its logs and ours agree.
    """

    def __init__(
        self, app: ASGIApp, observe: Observer, settings: Settings, tracer: Tracer = UNTRACED
    ) -> None:
        self.app = app
        self.tracer = tracer
        self.observe = observe
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._exchange(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000, "reason": "no websockets here"})
        else:
            await self.app(scope, receive, send)

    async def _exchange(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = _begin(scope)
        token = EXCHANGE.set(exchange)
        self.tracer.begin(exchange, scope)
        out = _Outbound(send, exchange, self.settings.keep_alive_s)

        async def watched() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect" and not out.complete:
                exchange.disconnected = True
            return message

        try:
            self._check_head(scope)
            await self.app(scope, watched, out)
        except GatewayError as error:
            await _answer(error, scope, receive, out)
        except ClientGone:
            exchange.disconnected = True
        except asyncio.CancelledError:  # by the listener, at the end of the drain
            _note_cut(out)
            raise
        except Exception:  # the last line of defence: logged, told to nobody
            log.exception("request %s failed", exchange.request_id)
            told = died(exchange) or InternalError("internal error; the log has it")
            await _answer(told, scope, receive, out)
        finally:
            out.close()
            self._end(exchange, scope)
            EXCHANGE.reset(token)

    def _end(self, exchange: Exchange, scope: Scope) -> None:
        exchange.ended = time.perf_counter()
        if exchange.route is None and (matched := scope.get("route")):
            exchange.route = matched.path
        self.observe(exchange)

    def _check_head(self, scope: Scope) -> None:
        """What never ends is cut off by `gateway/wire.py` before there is a scope."""
        if UNPRINTABLE.search(scope["path"]):
            # Routes match up to a last newline, so one would pass limits that go by the exact path.
            raise NotFound("no path has control characters")
        limits = self.settings
        url = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        if url > limits.max_url_bytes:
            raise UrlTooLong(
                f"path and query have {url} bytes; the limit is {limits.max_url_bytes} "
                "(setting GATEWAY_MAX_URL_BYTES)"
            )
        headers = scope["headers"]
        if len(headers) > limits.max_headers:
            raise HeadersTooLarge(
                f"{len(headers)} headers; the limit is {limits.max_headers} (setting GATEWAY_MAX_HEADERS)"
            )
        size = sum(len(name) + len(value) for name, value in headers)
        if size > limits.max_header_bytes:
            raise HeadersTooLarge(
                f"the headers have {size} bytes; the limit is {limits.max_header_bytes} "
                "(setting GATEWAY_MAX_HEADER_BYTES)"
            )


def _begin(scope: Scope) -> Exchange:
    given = [value for name, value in scope["headers"] if name == b"x-request-id"]
    request_id = given[0].decode("latin-1") if given else ""
    if not REQUEST_ID.fullmatch(request_id):
        request_id = uuid.uuid4().hex
    others = [pair for pair in scope["headers"] if pair[0] != b"x-request-id"]
    scope["headers"] = [*others, (b"x-request-id", request_id.encode())]
    exchange = Exchange(request_id, scope["method"], scope["path"], time.perf_counter())
    scope["gateway.exchange"] = exchange
    return exchange


async def _answer(error: GatewayError, scope: Scope, receive: Receive, out: "_Outbound") -> None:
    """The error as an answer; as the last event of a stream that has begun."""
    if error.code == EngineUnavailable.code:
        error = died(out.exchange) or error  # it knows when to come again
    out.exchange.notes["error"] = error.code
    out.exchange.notes["rejected"] = error.rejects
    if out.withdraw():
        await error_response(error, scope)(scope, receive, out)
        return
    out.exchange.notes["failed"] = error
    if out.exchange.streamed and not out.complete:
        event = last_event(error, scope["path"], out.exchange.request_id)
        await out({"type": "http.response.body", "body": event})


def _note_cut(out: "_Outbound") -> None:
    if not out.complete:
        out.exchange.notes["failed"] = EngineUnavailable("the server is shutting down")


class _Outbound:
    """The one `send` wrapper. A good answer's chunks pass through at once; an error's body is held
    back until it is whole, to put the request id into it."""

    def __init__(self, send: Send, exchange: Exchange, keep_alive_s: float) -> None:
        self.send = send
        self.exchange = exchange
        self.keep_alive_s = keep_alive_s
        self.sent_at = 0.0
        self.beating: asyncio.Task[None] | None = None
        self.started = False
        self.complete = False
        self.held: Message | None = None
        self.body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._start(message)
        elif self.held is not None:
            await self._error_body(message)
        else:
            if self.exchange.first_byte is None:
                self.exchange.first_byte = time.perf_counter()
            self.complete = not message.get("more_body", False)
            self.sent_at = time.perf_counter()
            if self.exchange.streamed and message.get("body"):
                message["body"] = LINE_BREAKS.sub(_escaped, message["body"])
                if message["body"].startswith(FAILURES):
                    _note_failure(self.exchange, message["body"])
            await self.send(message)

    def close(self) -> None:
        if self.beating is not None:
            self.beating.cancel()

    async def _beat(self) -> None:
        """A comment whenever a stream was silent for too long: proxies and clients cut silent ones."""
        while not self.complete:
            await asyncio.sleep(self.sent_at + self.keep_alive_s - time.perf_counter())
            if not self.complete and time.perf_counter() - self.sent_at >= self.keep_alive_s:
                self.sent_at = time.perf_counter()
                message = {"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True}
                await self.send(message)

    def withdraw(self) -> bool:
        """Take back a start that was only held. False: something is on the wire already."""
        if self.held is not None:
            self.held, self.started, self.body = None, False, b""
        return not self.started

    async def _start(self, message: Message) -> None:
        self.started = True
        self.exchange.status = message["status"]
        headers = MutableHeaders(scope=message)
        self.exchange.streamed = headers.get("content-type", "").startswith("text/event-stream")
        headers["x-request-id"] = self.exchange.request_id
        for name, value in self.exchange.notes.get("headers", {}).items():
            headers[name] = value
        if context := trace_of(self.exchange.notes).headers():
            headers["traceresponse"] = context["traceparent"]
        if served := self.exchange.notes.get("slot"):
            headers["x-model-profile"] = served.profile.name
            headers["x-model-format"] = served.format
        if self.exchange.path.startswith(ANTHROPIC_PREFIX):
            headers["request-id"] = self.exchange.request_id  # where Anthropic's SDK looks
        if message["status"] >= 400 and headers.get("content-type") == "application/json":
            self.held = message
            return
        await self.send(message)
        if self.exchange.streamed and self.keep_alive_s:
            self.sent_at = time.perf_counter()
            self.beating = asyncio.create_task(self._beat())

    async def _error_body(self, message: Message) -> None:
        """Hold back until it is whole; one too long to be an error of ours goes on as it is."""
        assert self.held is not None
        self.body += message.get("body", b"")
        more = message.get("more_body", False)
        if more and len(self.body) < MAX_ERROR_BYTES:
            return
        held, self.held = self.held, None
        self.complete = not more
        if not more:
            self._amend(held)
        await self.send(held)
        await self.send({"type": "http.response.body", "body": self.body, "more_body": more})

    def _amend(self, held: Message) -> None:
        """The whole error: with its request id, and 503 where it is the engine's death."""
        exchange, headers = self.exchange, MutableHeaders(scope=held)
        self.body = _with_request_id(self.body, exchange.request_id)
        if held["status"] == InternalError.status and (error := died(exchange)):
            held["status"] = exchange.status = error.status.value
            exchange.notes |= {"error": error.code, "rejected": error.rejects}
            _, self.body = render(error, exchange.path, exchange.request_id)
            headers.update(error.headers)
        headers["content-length"] = str(len(self.body))


def _escaped(found: re.Match[bytes]) -> bytes:
    return b"\\u%04x" % ord(found.group().decode())


def _note_failure(exchange: Exchange, event: bytes) -> None:
    """An error that vLLM's handlers caught and made an event of; ours is noted where it was raised."""
    if "failed" in exchange.notes:
        return
    try:
        told = json.loads(event.partition(b"data: ")[2])["error"]
        blamed = 400 <= told.get("code", 500) < 500
    except (ValueError, TypeError, KeyError, AttributeError):
        blamed = False
    kind = InvalidRequest if blamed else InternalError
    exchange.notes["failed"] = died(exchange) or kind("told as the last event of the stream")


def _with_request_id(body: bytes, request_id: str) -> bytes:
    """Anthropic has the id beside the error object, OpenAI's clients take it from inside or the header."""
    try:
        told = json.loads(body)
    except ValueError:
        return body
    if not isinstance(told, dict) or not isinstance(told.get("error"), dict):
        return body
    place = told if told.get("type") == "error" else told["error"]
    place.setdefault("request_id", request_id)
    return json.dumps(told, ensure_ascii=False).encode()


def died(exchange: Exchange) -> EngineUnavailable | None:
    """What to say when the engine that served is dead: vLLM's handlers speak of an internal error."""
    slot = exchange.notes.get("slot")
    if slot is None or not slot.engine.dead():
        return None
    return EngineUnavailable("the engine stopped; it is being restarted", slot.start_s)


def error_response(error: GatewayError, scope: Scope) -> Response:
    """The error in the shape that this path's clients read."""
    exchange: Exchange = scope["gateway.exchange"]
    media_type, body = render(error, scope["path"], exchange.request_id)
    return Response(body, error.status.value, error.headers, media_type)
