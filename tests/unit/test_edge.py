"""The edge around the whole app: request ids, escaped errors, observation, the body limit."""

import json
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from gateway.asgi import MAX_ERROR_BYTES, ClientGone, Edge, Exchange
from gateway.body import JsonBody
from gateway.errors import EngineUnavailable
from gateway.observability.figures import Figures
from gateway.observability.stats import Counters
from tests.scripted import (
    ScriptedEngine,
    engine_error,
    make_profile,
    make_settings,
    slot_of,
)
from tests.wire import Wire

Inner = Callable[[Scope, Receive, Send], Awaitable[None]]
QUIET = make_settings(keep_alive_s=0)
JSON = [(b"content-type", b"application/json")]


def start(status: int, headers: list[tuple[bytes, bytes]]) -> Message:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def chunk(body: bytes, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


def says(*messages: Message) -> Inner:
    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    return inner


def fails(error: Exception, *first: Message) -> Inner:
    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await says(*first)(scope, receive, send)
        raise error

    return inner


def bodies(wire: Wire) -> list[bytes]:
    return [message["body"] for message in wire.sent if message["type"] == "http.response.body"]


async def through(
    inner: Inner, headers: list[tuple[bytes, bytes]] | None = None, path: str = "/x"
) -> tuple[Wire, Exchange]:
    seen: list[Exchange] = []
    wire = Wire(path, headers=headers or [])
    await wire.through(Edge(inner, seen.append, QUIET))
    assert len(seen) == 1, "an exchange is observed once"
    return wire, seen[0]


def header(wire: Wire, name: bytes) -> str:
    return str(dict(wire.sent[0]["headers"])[name].decode())


@pytest.mark.parametrize("given", ["abc", "A-1_b.c:d", "x" * 128])
async def test_a_callers_harmless_request_id_is_kept(given: str) -> None:
    wire, exchange = await through(
        says(start(200, []), chunk(b"")), [(b"x-request-id", given.encode())]
    )

    assert header(wire, b"x-request-id") == exchange.request_id == given


@pytest.mark.parametrize("given", [b"", b"a b", b"a\r\nb", b"x" * 129, b"\xff", b"abc\n"])
async def test_a_request_id_that_could_do_harm_is_replaced(given: bytes) -> None:
    wire, _ = await through(says(start(200, []), chunk(b"")), [(b"x-request-id", given)])

    assert re.fullmatch("[0-9a-f]{32}", header(wire, b"x-request-id"))


async def test_the_inner_app_sees_one_request_id_the_one_that_is_answered() -> None:
    seen: list[bytes] = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend(value for name, value in scope["headers"] if name == b"x-request-id")
        await says(start(200, []), chunk(b""))(scope, receive, send)

    wire, _ = await through(inner, [(b"x-request-id", b"one"), (b"x-request-id", b"two")])

    assert [value.decode() for value in seen] == [header(wire, b"x-request-id")]


@pytest.mark.parametrize(
    ("path", "place"), [("/v1/messages", "outside"), ("/v1/completions", "inside")]
)
async def test_an_inner_error_body_gets_the_request_id(path: str, place: str) -> None:
    body = json.dumps(engine_error(path)).encode()
    inner = says(start(422, JSON), chunk(body[:7], more=True), chunk(body[7:]))

    wire, _ = await through(inner, [(b"x-request-id", b"abc")], path)

    told = json.loads(wire.answer)
    assert (told if place == "outside" else told["error"])["request_id"] == "abc"
    assert int(header(wire, b"content-length")) == len(wire.answer)


@pytest.mark.parametrize(
    "body", [b"not json", b"[1]", b'{"error": "text"}', b'{"error": {"request_id": "own"}}', b""]
)
async def test_an_error_body_of_another_shape_keeps_its_content(body: bytes) -> None:
    wire, exchange = await through(says(start(500, JSON), chunk(body)))

    assert wire.answer == body
    assert (wire.status, exchange.status) == (500, 500)


async def test_a_very_long_error_in_pieces_arrives_whole_and_ends_once() -> None:
    piece = b"x" * (MAX_ERROR_BYTES - 1)

    wire, _ = await through(
        says(start(400, JSON), chunk(piece, more=True), chunk(piece, more=True), chunk(b"!"))
    )

    assert wire.answer == piece + piece + b"!"
    assert [message.get("more_body", False) for message in wire.sent[1:]].count(False) == 1


async def test_a_good_stream_passes_untouched_chunk_by_chunk() -> None:
    wire = Wire("/x")
    seen: list[int] = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(200, JSON))
        for number in range(3):
            await send(chunk(b"%d" % number, more=True))
            seen.append(len(wire.sent))
        await send(chunk(b"end"))

    await wire.through(Edge(inner, lambda exchange: None, QUIET))

    assert seen == [2, 3, 4], "each chunk was on the wire before the next was made"
    assert bodies(wire) == [b"0", b"1", b"2", b"end"]


async def test_an_unexpected_exception_is_a_500_that_tells_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR):
        wire, exchange = await through(fails(RuntimeError("secret detail")))

    assert (wire.status, exchange.status) == (500, 500)
    assert b"secret" not in wire.answer
    assert wire.json()["request_id"] == exchange.request_id
    assert "secret detail" in caplog.text


async def test_an_error_of_ours_has_its_status_headers_and_request_id() -> None:
    wire, exchange = await through(fails(EngineUnavailable("loading", 7)))

    assert (wire.status, header(wire, b"retry-after")) == (503, "7")
    assert header(wire, b"x-request-id") == wire.json()["request_id"] == exchange.request_id


FAILURES = [RuntimeError("x"), EngineUnavailable("x")]


@pytest.mark.parametrize("failure", FAILURES, ids=["unexpected", "ours"])
async def test_an_error_after_the_start_sends_no_second_answer(failure: Exception) -> None:
    wire, _ = await through(fails(failure, start(200, JSON), chunk(b"a", more=True)))

    assert [message["type"] for message in wire.sent] == [
        "http.response.start",
        "http.response.body",
    ]
    assert bodies(wire) == [b"a"]


@pytest.mark.parametrize("failure", FAILURES, ids=["unexpected", "ours"])
async def test_an_answer_that_broke_off_does_not_count_as_good(failure: Exception) -> None:
    figures = Figures()
    inner = fails(failure, start(200, JSON), chunk(b"a", more=True))

    await Wire("/x").through(Edge(inner, figures.observe, QUIET))

    outcomes = Counters.of(figures.registry).by("gateway_requests_total", "outcome")
    assert outcomes == {"server_error": 1}


async def test_an_error_that_breaks_off_before_its_body_is_still_answered() -> None:
    wire, _ = await through(fails(RuntimeError("x"), start(400, JSON)))

    assert wire.status == 500


async def test_a_caller_who_is_gone_is_observed_as_disconnected_and_gets_nothing() -> None:
    wire, exchange = await through(fails(ClientGone()))

    assert (wire.sent, exchange.status, exchange.disconnected) == ([], 0, True)


async def test_the_hang_up_after_a_whole_answer_is_no_disconnect() -> None:
    wire = Wire("/x")
    seen: list[Exchange] = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await says(start(200, []), chunk(b"all"))(scope, receive, send)
        wire.gone.set()
        await receive()
        await receive()

    await wire.through(Edge(inner, seen.append, QUIET))

    assert [exchange.disconnected for exchange in seen] == [False]


async def test_the_route_that_answered_is_observed() -> None:
    class Matched:
        path = "/things/{id}"

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = Matched()
        await says(start(204, []), chunk(b""))(scope, receive, send)

    _, exchange = await through(inner, path="/things/5")

    assert (exchange.route, exchange.status) == ("/things/{id}", 204)
    assert exchange.first_byte is not None
    assert exchange.started <= exchange.first_byte <= exchange.ended


class Pieces:
    """A `receive` that gives a body in pieces, and counts how many were taken."""

    def __init__(self, *messages: Message) -> None:
        self.messages = list(messages)

    async def __call__(self) -> Message:
        return self.messages.pop(0)


def piece(body: bytes, more: bool) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


async def read(receive: Receive, headers: list[tuple[bytes, bytes]]) -> tuple[Wire, list[Any]]:
    wire = Wire("/x", headers=headers)
    seen: list[Any] = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend([scope["gateway.json"], await receive()])
        await says(start(200, []), chunk(b""))(scope, receive, send)

    narrow = make_settings(keep_alive_s=0, max_body_bytes=1024)
    app = Edge(JsonBody(inner, narrow), lambda exchange: None, narrow)
    await app(wire.scope(), receive, wire.send)
    return wire, seen


async def test_a_body_in_pieces_is_handed_on_whole() -> None:
    wire, seen = await read(Pieces(piece(b'{"a": ', True), piece(b"12}", False)), JSON)

    assert wire.status == 200
    assert seen == [{"a": 12}, piece(b'{"a": 12}', False)]


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ([], "application/json"),
        ([(b"content-type", b"text/plain")], "text/plain"),
        ([(b"content-type", b"application/x-www-form-urlencoded")], "form-urlencoded"),
        ([(b"content-type", b"application/json"), (b"content-encoding", b"gzip")], "gzip"),
    ],
)
async def test_a_body_not_declared_as_plain_json_is_a_415(
    headers: list[tuple[bytes, bytes]], says: str
) -> None:
    wire, seen = await read(Pieces(piece(b"{}", False)), headers)

    assert (wire.status, seen) == (415, [])
    assert says in wire.json()["detail"]


@pytest.mark.parametrize(
    "given", [b"application/json; charset=utf-8", b"Application/JSON", b"a/b+json"]
)
async def test_each_spelling_of_json_is_taken(given: bytes) -> None:
    wire, _ = await read(Pieces(piece(b"{}", False)), [(b"content-type", given)])

    assert wire.status == 200


async def test_no_body_needs_no_type() -> None:
    wire, seen = await read(Pieces(piece(b"", False)), [])

    assert (wire.status, seen[0]) == (200, None)


async def test_a_body_is_counted_as_it_comes_and_its_rest_is_not_read() -> None:
    endless = Pieces(*[piece(b"1234" * 128, True)] * 50)

    wire, seen = await read(endless, [(b"content-length", b"3")])

    assert (wire.status, seen) == (413, [])
    assert "1024 bytes" in wire.json()["detail"]
    assert len(endless.messages) == 47


async def test_a_caller_who_leaves_while_sending_reaches_no_route() -> None:
    wire, seen = await read(Pieces(piece(b"12", True), {"type": "http.disconnect"}), [])

    assert (wire.sent, seen) == ([], [])


STREAM = start(200, [(b"content-type", b"text/event-stream")])


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
async def test_a_stream_that_fails_ends_with_its_reason(path: str) -> None:
    error = EngineUnavailable("the engine stopped", 3)

    wire, exchange = await through(fails(error, STREAM, chunk(b"data: {}\n\n", True)), path=path)

    last = bodies(wire)[-1].decode()
    told = next(json.loads(line[6:]) for line in last.splitlines() if line.startswith("data: "))
    assert told["error"]["code"] == "engine_unavailable" and "request_id" in last
    assert not wire.sent[-1].get("more_body") and last.endswith("\n\n")
    assert exchange.notes["failed"].code == "engine_unavailable"


def served_by(dead: bool, *messages: Message) -> Inner:
    """As vLLM's handlers: the error is theirs."""
    engine = ScriptedEngine()
    engine.is_dead = dead

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        scope["gateway.exchange"].notes["slot"] = slot_of(engine, make_profile("m"))
        await says(*messages)(scope, receive, send)

    return inner


@pytest.mark.parametrize(("dead", "status"), [(True, 503), (False, 500)])
async def test_an_error_of_a_dead_engine_says_when_to_come_again(dead: bool, status: int) -> None:
    body = json.dumps(engine_error("/v1/responses")).encode()
    failed = start(500, [(b"content-type", b"application/json")])

    wire, exchange = await through(served_by(dead, failed, chunk(body)), path="/v1/responses")

    assert wire.sent[0]["status"] == exchange.status == status
    told = json.loads(bodies(wire)[-1])["error"]
    assert told["request_id"] == exchange.request_id
    assert (b"retry-after" in dict(wire.sent[0]["headers"])) is dead
    assert (told.get("code") == "engine_unavailable") is dead
    assert int(header(wire, b"content-length")) == len(bodies(wire)[-1])
