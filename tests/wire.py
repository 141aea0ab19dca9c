"""A hand-made connection: one request straight into an ASGI app, with the caller's every move by hand."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Scope

from tests.scripted import PATIENCE_S


@dataclass
class Wire:
    """One connection, by hand: hangs up, or stops reading, exactly when told."""

    path: str
    body: bytes = b""
    method: str = "POST"
    headers: Sequence[tuple[bytes, bytes]] = ((b"content-type", b"application/json"),)
    stuck_at: int | None = None  # from this message on nothing is read: `send` waits for ever
    sent: list[Message] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)  # a body chunk got through
    stuck: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)  # set it to hang up
    _read: bool = False

    def scope(self) -> Scope:
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": list(self.headers),
            "client": ("127.0.0.1", 1),
            "server": ("gateway", 80),
        }

    async def receive(self) -> Message:
        if not self._read:
            self._read = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self.stuck_at is not None and len(self.sent) >= self.stuck_at:
            self.stuck.set()
            await asyncio.Event().wait()
        self.sent.append(message)
        if message.get("body"):
            self.arrived.set()

    async def through(self, app: ASGIApp) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await app(self.scope(), self.receive, self.send)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"]) if self.sent else 0

    @property
    def answer(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    def json(self) -> Any:
        return json.loads(self.answer)


def wire(path: str, body: object, **options: Any) -> Wire:
    return Wire(path, json.dumps(body).encode(), **options)
