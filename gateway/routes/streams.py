"""Streams that start late and stop early, and server-sent events.

Late: the first event is awaited before the status line, so a refusal is still a proper 4xx. Early: the
work is cancelled once, and waited for, as soon as the caller hangs up (before the first token too).
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.asgi import ClientGone, Exchange
from gateway.errors import GatewayError, problem_body

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"
HEADERS = {
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # nginx holds streams back without it
}


@dataclass(frozen=True, slots=True)
class Event:
    """One event; `type` is repeated in the data, as in OpenAI's Responses API."""

    type: str
    data: dict[str, Any]


Events = AsyncGenerator[Event, None]


def encode(event: Event, number: int) -> bytes:
    """`event:` and `data:` lines, the data with `type` and `sequence_number` first."""
    data = {"type": event.type, "sequence_number": number, **event.data}
    return b"event: %b\ndata: %b\n\n" % (event.type.encode(), orjson.dumps(data))


async def unless_disconnected(receive: Receive, work: Awaitable[T]) -> T:
    """The work's result; the work is cancelled when the caller hangs up.

    Raises:
        ClientGone: the caller hung up first.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def last(events: Events) -> dict[str, Any]:
    """The plain answer: the body that the stream's last event carries."""
    async with aclosing(events):
        async for event in events:
            if "response" in event.data:
                body: dict[str, Any] = event.data["response"]
    return body


async def answer(request: Request, events: Events, stream: bool) -> Response:
    """The events as a stream, or their last one's body as JSON."""
    if stream:
        return EventStream(events)
    body = await unless_disconnected(request.receive, last(events))
    note_usage(request.scope, body)
    return Response(orjson.dumps(body), media_type="application/json")


class EventStream(Response):
    """Sends events until they end, fail, or nobody listens."""

    def __init__(self, events: Events) -> None:
        super().__init__(headers=HEADERS, media_type="text/event-stream")
        del self.headers["content-length"]
        self.events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await unless_disconnected(receive, self._pump(scope, send))

    async def _pump(self, scope: Scope, send: Send) -> None:
        async with aclosing(self.events) as events:
            event: Event | None = await anext(events)
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(start)
            number = 0
            while event is not None:
                if "response" in event.data:
                    note_usage(scope, event.data["response"])
                await _chunk(send, encode(event, number))
                number += 1
                event = await self._next(scope, event)
            await send({"type": "http.response.body", "body": DONE})

    async def _next(self, scope: Scope, before: Event) -> Event | None:
        """The next event; an error after the status line becomes the last one."""
        if before.type.endswith(".failed"):
            return None
        try:
            return await anext(self.events, None)
        except GatewayError as error:
            exchange: Exchange = scope["gateway.exchange"]
            exchange.notes["failed"] = error
            problem = problem_body(error, scope["path"], exchange.request_id)
            return Event(f"{before.type.split('.')[0]}.failed", {"response": problem})


async def _chunk(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


def note_usage(scope: Scope, body: dict[str, Any]) -> None:
    """Tell the edge what it was, for /stats and the log."""
    exchange: Exchange = scope["gateway.exchange"]
    exchange.notes["usage"] = body.get("usage", {})
    if "reasoning" in body:
        exchange.notes["thinking"] = body["reasoning"]
    if "confidence" in body:
        exchange.notes["confidence"] = body["confidence"]["score"]


class Clock:
    """Seconds since it was made, never zero (a rate is divided by it)."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def seconds(self) -> float:
        return max(time.perf_counter() - self._start, 1e-9)
