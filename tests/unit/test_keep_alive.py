"""A stream that is silent for long says so, and only a stream."""

import asyncio
import contextlib
import json
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from gateway.asgi import KEEP_ALIVE, ClientGone, Edge, Exchange
from tests.scripted import PATIENCE_S, make_settings
from tests.unit.test_edge import JSON, bodies, chunk, says, start
from tests.wire import Wire

EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8")]
BEAT_S = 0.005


class Listening(Wire):
    """Notes when so many keep-alives have arrived."""

    def until(self, count: int) -> asyncio.Event:
        self.wanted, self.enough = count, asyncio.Event()
        return self.enough

    async def send(self, message: Message) -> None:
        await super().send(message)
        if bodies(self).count(KEEP_ALIVE) >= self.wanted:
            self.enough.set()


async def patiently(event: asyncio.Event) -> None:
    await asyncio.wait_for(event.wait(), PATIENCE_S)


async def test_a_silent_stream_beats_again_and_again_between_its_chunks() -> None:
    wire = Listening("/x")
    enough = wire.until(3)

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(200, EVENTS))
        await patiently(enough)
        await says(chunk(b"data: 1\n\n", more=True), chunk(b""))(scope, receive, send)

    await wire.through(Edge(inner, lambda exchange: None, make_settings(keep_alive_s=BEAT_S)))

    told = bodies(wire)
    assert told[:3] == [KEEP_ALIVE] * 3
    assert [body for body in told if body != KEEP_ALIVE] == [b"data: 1\n\n", b""]
    beats = [message for message in wire.sent[1:] if message["body"] == KEEP_ALIVE]
    assert all(message["more_body"] for message in beats)


async def test_a_beat_is_not_the_first_byte() -> None:
    wire, seen = Listening("/x"), list[Exchange]()
    enough = wire.until(1)

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(200, EVENTS))
        await patiently(enough)
        assert scope["gateway.exchange"].first_byte is None
        await send(chunk(b""))

    await wire.through(Edge(inner, seen.append, make_settings(keep_alive_s=BEAT_S)))

    assert seen[0].first_byte is not None


@pytest.mark.parametrize("how", ["ends", "fails", "the caller is gone", "is cancelled"])
async def test_a_beat_stops_with_its_stream(how: str) -> None:
    wire = Listening("/x")
    enough = wire.until(1)
    before = asyncio.all_tasks()

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(200, EVENTS))
        await patiently(enough)
        if how == "ends":
            await send(chunk(b""))
        elif how == "is cancelled":
            raise asyncio.CancelledError
        else:
            raise RuntimeError("x") if how == "fails" else ClientGone

    with contextlib.suppress(asyncio.CancelledError):
        await wire.through(Edge(inner, lambda exchange: None, make_settings(keep_alive_s=BEAT_S)))
    left = asyncio.all_tasks() - before
    await asyncio.wait_for(asyncio.gather(*left, return_exceptions=True), PATIENCE_S)

    assert len(left) <= 1, "only the beat, on its way out"
    last = wire.sent[-1]["body"]
    if how == "fails":
        assert b"internal_error" in last
    else:
        assert last == (b"" if how == "ends" else KEEP_ALIVE)


@pytest.mark.parametrize(
    ("headers", "status", "beat_s"),
    [(JSON, 200, BEAT_S), (JSON, 500, BEAT_S), (EVENTS, 200, 0)],
    ids=["plain", "an error", "switched off"],
)
async def test_only_streams_beat_and_only_where_it_is_asked_for(
    headers: list[tuple[bytes, bytes]], status: int, beat_s: float
) -> None:
    before = asyncio.all_tasks()
    tasks = set[asyncio.Task[Any]]()

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(status, headers))
        tasks.update(asyncio.all_tasks() - before)
        await send(chunk(b"{}"))

    wire = Wire("/x")
    await wire.through(Edge(inner, lambda exchange: None, make_settings(keep_alive_s=beat_s)))

    assert (tasks, KEEP_ALIVE in wire.answer) == (set(), False)


async def test_a_stream_that_talks_does_not_beat() -> None:
    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(200, EVENTS))
        for _ in range(50):
            await send(chunk(b"data: 1\n\n", more=True))
            await asyncio.sleep(0)
        await send(chunk(b""))

    wire = Wire("/x")
    await wire.through(Edge(inner, lambda exchange: None, make_settings(keep_alive_s=PATIENCE_S)))

    assert KEEP_ALIVE not in wire.answer


@pytest.mark.parametrize("break_", ["\x85", "\u2028", "\u2029"], ids=["U+0085", "U+2028", "U+2029"])
async def test_an_event_is_one_line_for_whoever_splits_it(break_: str) -> None:
    """httpx's `iter_lines` splits by `str.splitlines`."""
    event = json.dumps({"text": f"é{break_}日"}, ensure_ascii=False)

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(200, EVENTS))
        await send(chunk(f"data: {event}\n\n".encode(), more=True))
        await send(chunk(b""))

    wire = Wire("/x")
    await wire.through(Edge(inner, lambda exchange: None, make_settings()))

    (line, _) = wire.answer.decode().splitlines()
    assert "é" in line, "nothing else is touched"
    assert json.loads(line.removeprefix("data: ")) == json.loads(event)
