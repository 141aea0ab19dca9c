"""Requests sent ahead on one connection, and offers to leave HTTP/1.1, by raw sockets."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from starlette.types import Receive, Scope, Send

from gateway.engines.types import Job
from gateway.policy.meter import METER, Meter
from tests.scripted import PATIENCE_S, Script
from tests.unit.test_wire import BODY, HEAD, LIVE, Served, ended, until

PLAIN = b'{"prompt": "Hi"}'
OFFERS = (
    b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAA\r\n",
    b"Upgrade: h2c\r\nConnection: upgrade\r\n",
    b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n",
)
CLOSE = b"connection: close\r\n"


def post(body: bytes, extra: bytes = b"") -> bytes:
    return HEAD + extra + b"content-length: %d\r\n\r\n" % len(body) + body


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with Served(header_timeout_s=PATIENCE_S) as served:
        yield served


def held(gate: asyncio.Event) -> Script:
    return Script(["one ", "two"], gate=gate, gate_at=1)


@pytest.mark.parametrize("body", [PLAIN, BODY], ids=["plain", "streamed"])
@pytest.mark.parametrize("together", [True, False])
async def test_a_hang_up_ends_the_request_before_the_one_sent_ahead(
    served: Served, body: bytes, together: bool
) -> None:
    served.engine.script = lambda job: held(asyncio.Event())
    _, writer = await served.connect()

    writer.write(post(body) + (LIVE + b"\r\n" if together else b""))
    await asyncio.wait_for(served.engine.crowded.wait(), PATIENCE_S)
    if not together:
        writer.write(LIVE + b"\r\n")
        (connection,) = served.server.server_state.connections
        await until(lambda: len(connection.pipeline) == 1)  # type: ignore[union-attr]
    writer.close()

    await until(lambda: bool(served.engine.aborted))


async def test_what_is_no_http_ends_the_stream_before_it(served: Served) -> None:
    served.engine.script = lambda job: held(asyncio.Event())
    reader, writer = await served.connect()
    writer.write(post(BODY) + LIVE + b"\r\n")
    begun = await asyncio.wait_for(reader.readuntil(b"one"), PATIENCE_S)

    writer.write(b"\x16\x03\x01\r\n\r\n")
    rest = await ended(reader)

    await until(lambda: bool(served.engine.aborted))
    assert begun.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1" not in rest


async def test_the_next_request_has_none_of_the_firsts_context(served: Served) -> None:
    meters: list[Meter | None] = []

    def script(job: Job) -> Script:
        meters.append(METER.get(None))
        return Script(["x"])

    served.engine.script = script
    inherited: list[Meter | None] = []
    app = served.gateway.app

    async def outermost(scope: Scope, receive: Receive, send: Send) -> None:
        inherited.append(METER.get(None))
        await app(scope, receive, send)

    served.server.config.loaded_app = outermost

    answer = await served.ask(post(PLAIN) + post(PLAIN, CLOSE))

    assert answer.count(b"HTTP/1.1 200 ") == 2
    assert len(meters) == 2 and meters[0] is not meters[1]
    assert inherited == [None, None]


async def test_a_body_that_came_in_time_has_all_the_time_for_its_answer(served: Served) -> None:
    first, second = asyncio.Event(), asyncio.Event()
    gates = iter([first, second])
    served.engine.script = lambda job: held(next(gates))
    reader, writer = await served.connect()
    half = post(PLAIN, CLOSE)

    writer.write(post(PLAIN) + half[:-4])
    await asyncio.wait_for(served.engine.crowded.wait(), PATIENCE_S)
    first.set()
    answer = await asyncio.wait_for(reader.readuntil(b"}"), PATIENCE_S)
    writer.write(half[-4:])
    await until(lambda: len(served.engine.jobs) == 2)
    (connection,) = served.server.server_state.connections
    assert connection.waiting is None  # type: ignore[union-attr]
    second.set()
    answer += await ended(reader)

    assert answer.count(b"HTTP/1.1 200 ") == 2


@pytest.mark.parametrize("offer", OFFERS, ids=["Java", "short", "websocket"])
async def test_who_offers_another_protocol_is_answered_in_this_one(
    served: Served, offer: bytes
) -> None:
    whole = post(PLAIN, offer) + post(PLAIN, offer) + post(PLAIN, CLOSE)

    answer = await served.ask(whole)

    assert answer.count(b"HTTP/1.1 200 ") == 3
    assert len(served.engine.jobs) == 3


async def test_an_offer_that_comes_byte_by_byte_keeps_its_body() -> None:
    async with Served(header_timeout_s=PATIENCE_S) as served:
        await _byte_by_byte(served)


async def _byte_by_byte(served: Served) -> None:
    reader, writer = await served.connect()
    for byte in post(PLAIN, b"connection: close, Upgrade\r\nupgrade: h2c\r\n"):
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0)

    assert (await ended(reader)).startswith(b"HTTP/1.1 200 ")


async def test_thousands_of_offers_at_once_are_read(served: Served) -> None:
    many = (LIVE + OFFERS[1] + b"\r\n") * 2000

    answer = await served.ask(many + LIVE + CLOSE + b"\r\n")

    assert answer.count(b"HTTP/1.1 200 ") == 2001
