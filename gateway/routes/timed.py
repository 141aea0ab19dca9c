"""A deadline for the routes that vLLM's handlers serve: when it is over they are told that the caller has
left, which aborts their work, and the caller is told that time ran out.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.types import Message, Receive, Send

from gateway.asgi import Exchange
from gateway.errors import ANTHROPIC_PREFIX, DeadlineExceeded, anthropic_body, openai_body
from gateway.policy.deadline import Deadline

RESPONSES_PATH = "/v1/responses"


class Timed:
    """Wraps `receive` and `send` of one request; `end` after the handler has returned."""

    def __init__(self, receive: Receive, send: Send, deadline: Deadline) -> None:
        self._receive = receive
        self._send = send
        self.deadline = deadline
        self.expired = False
        self.started: Message | None = None  # held back until the first byte: it may be withdrawn
        self.begun = False
        self.complete = False

    async def receive(self) -> Message:
        if not self.expired:
            try:
                async with asyncio.timeout_at(self.deadline.at):
                    return await self._receive()
            except TimeoutError:
                self.expired = not self.complete
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """What comes behind the deadline is what handlers say to nobody."""
        if self.expired:
            return
        if message["type"] == "http.response.start":
            self.started = message
            return
        if self.started is not None:
            started, self.started = self.started, None
            self.begun = True
            await self._send(started)
        self.complete = not message.get("more_body", False)
        await self._send(message)

    async def end(self, path: str, exchange: Exchange) -> None:
        """If time ran out: tell the caller; a stream that has begun gets it as its last event.

        Raises:
            DeadlineExceeded: nothing was sent yet, so it can be the answer.
        """
        if not self.expired or self.complete:
            return
        error = self.deadline.exceeded()
        if not self.begun:
            raise error
        exchange.notes["failed"] = error
        frame = last_event(error, path, exchange.request_id)
        await self._send({"type": "http.response.body", "body": frame})


def last_event(error: DeadlineExceeded, path: str, request_id: str) -> bytes:
    """The error in the shape of that API's streams."""
    if path.startswith(ANTHROPIC_PREFIX):
        return _event("error", anthropic_body(error, request_id))
    if path.startswith(RESPONSES_PATH):
        told = {"code": error.code, "message": error.message, "param": error.param}
        return _event("error", {"type": "error", **told})
    return b"data: %b\n\n" % orjson.dumps(openai_body(error, request_id))


def _event(name: str, body: Mapping[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(body))
