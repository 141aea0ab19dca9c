"""Answers that break off: what the edge counts them as, and when it says to come again."""

import asyncio
from dataclasses import replace

import pytest
from starlette.types import Message, Receive, Scope, Send

from gateway.asgi import Edge, Exchange
from gateway.errors import EngineUnavailable, GatewayError, QueueFull
from gateway.observability.outcome import error_of, outcome_of
from tests.scripted import ScriptedEngine, make_profile, slot_of
from tests.unit.test_edge import QUIET, STREAM, chunk, header, says, served_by, start, through
from tests.wire import Wire

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
# As vLLM's handlers write them.
FAILED = b'data: {"error": {"message": "x", "type": "E", "param": null, "code": %d}}\n\n'
ANTHROPIC = (
    b'event: error\ndata: {"type":"error","error":{"type":"internal_error","message":"x"}}\n\n'
)


@pytest.mark.parametrize(
    ("path", "event", "outcome"),
    [
        (CHAT, FAILED % 500, "server_error"),
        (CHAT, FAILED % 503, "server_error"),
        (CHAT, FAILED % 400, "client_error"),
        (MESSAGES, ANTHROPIC, "server_error"),
        (MESSAGES, b"event: error\ndata: half", "server_error"),
        (CHAT, b'data: {"id": "error"}\n\n', "ok"),
        (CHAT, b'data: {"text": "data: {\\"error\\""}\n\n', "ok"),
    ],
)
async def test_a_stream_that_ends_with_an_error_does_not_count_as_good(
    path: str, event: bytes, outcome: str
) -> None:
    messages = STREAM, chunk(b"data: {}\n\n", True), chunk(event, True), chunk(b"data: [DONE]\n\n")

    wire, exchange = await through(says(*messages), path=path)

    assert outcome_of(exchange) == outcome
    assert event in wire.answer  # untouched


@pytest.mark.parametrize(
    ("dead", "code"), [(True, "engine_unavailable"), (False, "internal_error")]
)
async def test_a_stream_that_died_with_its_engine_is_counted_as_that(dead: bool, code: str) -> None:
    _, exchange = await through(served_by(dead, STREAM, chunk(FAILED % 500)), path=CHAT)

    assert error_of(exchange) == code


async def test_what_looks_like_an_event_in_a_plain_answer_is_none() -> None:
    _, exchange = await through(says(start(200, []), chunk(FAILED % 500)))

    assert outcome_of(exchange) == "ok"


@pytest.mark.parametrize(
    ("error", "dead", "expected"),
    [
        (EngineUnavailable("the engine stopped"), True, "300"),
        (EngineUnavailable("the engine gave up", 1), True, "300"),
        (EngineUnavailable("the engine gave up", 1), False, "1"),
        (QueueFull("busy", 7), True, "7"),
    ],
)
async def test_the_death_of_an_engine_says_how_long_its_start_takes(
    error: GatewayError, dead: bool, expected: str
) -> None:
    engine = ScriptedEngine()
    engine.is_dead = dead

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        slot = replace(slot_of(engine, make_profile("m")), start_s=300.0)
        scope["gateway.exchange"].notes["slot"] = slot
        raise error

    wire, exchange = await through(inner)

    assert (wire.status, header(wire, b"retry-after")) == (503, expected)
    assert exchange.notes["error"] == error.code


@pytest.mark.parametrize(
    ("first", "outcome"),
    [
        ((), "server_error"),
        ((STREAM, chunk(b"data: {}\n\n", True)), "server_error"),
        ((start(200, []), chunk(b"all")), "ok"),
    ],
    ids=["before the answer", "within a stream", "behind the answer"],
)
async def test_what_the_server_cuts_off_at_its_end_does_not_count_as_good(
    first: tuple[Message, ...], outcome: str
) -> None:
    seen: list[Exchange] = []
    begun = asyncio.Event()

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await says(*first)(scope, receive, send)
        begun.set()
        await asyncio.Event().wait()

    call = asyncio.create_task(Wire("/x").through(Edge(inner, seen.append, QUIET)))
    await begun.wait()
    call.cancel()

    with pytest.raises(asyncio.CancelledError):
        await call
    assert [outcome_of(exchange) for exchange in seen] == [outcome]
