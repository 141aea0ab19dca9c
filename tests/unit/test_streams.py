"""Streams that start late and stop early."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from gateway.asgi import Edge, Exchange
from gateway.errors import EngineUnavailable, GatewayError, InvalidRequest
from gateway.routes.streams import Event, Events, answer
from tests.scripted import events_of, make_settings
from tests.wire import Wire

BODY = {"text": "ab", "usage": {"total_tokens": 2}}


class Source:
    """Events with a failure or a standstill at a chosen place; counts its own end."""

    def __init__(
        self, failure: GatewayError | None = None, fail_at: int = -1, wait_at: int = -1
    ) -> None:
        self.failure, self.fail_at, self.wait_at = failure, fail_at, wait_at
        self.waiting = asyncio.Event()
        self.cancels = 0
        self.cleaned = 0

    async def events(self) -> Events:
        try:
            for step, event in enumerate(EVENTS):
                if step == self.fail_at and self.failure is not None:
                    raise self.failure
                if step == self.wait_at:
                    self.waiting.set()
                    await asyncio.Event().wait()
                yield event
        except asyncio.CancelledError:
            self.cancels += 1
            raise
        finally:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            self.cleaned += 1


EVENTS = [
    Event("test.delta", {"delta": "a"}),
    Event("test.delta", {"delta": "b"}),
    Event("test.completed", {"response": BODY}),
]


def app_of(source: Source, stream: bool, seen: list[Exchange]) -> Edge:
    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        response = await answer(Request(scope, receive), source.events(), stream)
        await response(scope, receive, send)

    return Edge(inner, seen.append, make_settings(keep_alive_s=0))


async def run(source: Source, stream: bool = True, **options: Any) -> tuple[Wire, Exchange]:
    seen: list[Exchange] = []
    wire = Wire("/test", **options)
    await wire.through(app_of(source, stream, seen))
    return wire, seen[0]


async def hang_up(
    source: Source, stream: bool, moment: Callable[[Wire], asyncio.Event], **options: Any
) -> tuple[Wire, Exchange]:
    """Run, and hang up at the moment."""
    seen: list[Exchange] = []
    wire = Wire("/test", **options)
    async with asyncio.TaskGroup() as group:
        group.create_task(wire.through(app_of(source, stream, seen)))
        await moment(wire).wait()
        wire.gone.set()
    return wire, seen[0]


async def test_a_stream_numbers_its_events_and_ends_with_done() -> None:
    wire, exchange = await run(Source())

    text = wire.answer.decode()
    events = events_of(text)
    assert [event["sequence_number"] for event in events] == [0, 1, 2]
    assert text.startswith('event: test.delta\ndata: {"type":"test.delta","sequence_number":0')
    assert events[-1]["response"] == BODY
    assert text.endswith("data: [DONE]\n\n")
    assert exchange.notes["usage"] == BODY["usage"]
    assert dict(wire.sent[0]["headers"])[b"content-type"].startswith(b"text/event-stream")


async def test_a_plain_answer_is_the_body_of_the_last_event() -> None:
    wire, exchange = await run(Source(), stream=False)

    assert (wire.status, wire.json()) == (200, BODY)
    assert exchange.notes["usage"] == BODY["usage"]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
@pytest.mark.parametrize(
    ("failure", "status"), [(InvalidRequest("no"), 400), (EngineUnavailable("dead"), 503)]
)
async def test_an_error_before_the_first_event_has_its_own_status(
    failure: GatewayError, status: int, stream: bool
) -> None:
    source = Source(failure, fail_at=0)

    wire, exchange = await run(source, stream)

    assert (wire.status, exchange.status) == (status, status)
    assert wire.json()["detail"] == failure.message


async def test_a_later_error_becomes_the_last_event() -> None:
    wire, exchange = await run(Source(EngineUnavailable("the engine stopped"), fail_at=1))

    events = events_of(wire.answer.decode())
    assert [event["type"] for event in events] == ["test.delta", "test.failed"]
    assert events[-1]["response"]["detail"] == "the engine stopped"
    assert events[-1]["response"]["request_id"] == exchange.request_id
    assert wire.sent[-1].get("more_body", False) is False
    assert exchange.notes["failed"].code == "engine_unavailable"


async def test_a_later_error_of_a_plain_answer_has_its_own_status() -> None:
    wire, _ = await run(Source(EngineUnavailable("the engine stopped"), fail_at=1), stream=False)

    assert wire.status == 503


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
@pytest.mark.parametrize("step", [0, 1], ids=["before the first event", "later"])
async def test_hanging_up_while_the_work_waits_cancels_it_once_and_lets_it_clean_up(
    step: int, stream: bool
) -> None:
    source = Source(wait_at=step)

    _, exchange = await hang_up(source, stream, lambda wire: source.waiting)

    assert (source.cancels, source.cleaned) == (1, 1)
    assert exchange.disconnected


async def test_hanging_up_before_the_first_event_sends_nothing() -> None:
    source = Source(wait_at=0)

    wire, exchange = await hang_up(source, True, lambda wire: source.waiting)

    assert (wire.sent, exchange.status) == ([], 0)


async def test_hanging_up_while_nothing_is_read_lets_the_work_clean_up() -> None:
    source = Source()

    _, exchange = await hang_up(source, True, lambda wire: wire.stuck, stuck_at=2)

    assert source.cleaned == 1
    assert exchange.disconnected


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
async def test_cancelling_the_server_task_lets_the_work_clean_up(stream: bool) -> None:
    source = Source(wait_at=1)
    task = asyncio.create_task(run(source, stream))
    await source.waiting.wait()

    task.cancel()
    await asyncio.wait({task})

    assert (source.cancels, source.cleaned) == (1, 1)
