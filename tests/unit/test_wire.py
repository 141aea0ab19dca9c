"""The listener, by raw sockets: what is slow, endless or too much is cut off; all others are served."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from gateway.serve import bind, listener
from gateway.settings import Settings
from gateway.wire import FOR_PROBES
from tests.scripted import PATIENCE_S, Gateway, Script, ScriptedEngine, make_gateway

HEAD = b"POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
BODY = b'{"prompt": "Hi", "stream": true}'
LIVE = b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n"
OTHER = b"GET /version HTTP/1.1\r\nhost: localhost\r\n"


class Served:
    """A listener over a scripted engine, on a port of its own."""

    def __init__(self, **values: object) -> None:
        self.engine = ScriptedEngine()
        self.gateway: Gateway = make_gateway(self.engine, **values)
        self.sock = bind("127.0.0.1", 0)
        self.writers: list[asyncio.StreamWriter] = []
        self.server = listener(self.gateway.app, self.gateway.settings)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*self.sock.getsockname())
        self.writers.append(writer)
        return reader, writer

    async def ask(self, content: bytes) -> bytes:
        """Everything that comes back until the other side closes."""
        reader, writer = await self.connect()
        writer.write(content)
        return await ended(reader)

    async def told(self, content: bytes) -> bytes:
        """As `ask`; again where a machine that stood still said nothing within the time-out for headers."""
        async with asyncio.timeout(PATIENCE_S):
            while not (answer := await self.ask(content)):
                pass
        return answer

    async def __aenter__(self) -> "Served":
        self.task = asyncio.create_task(self.server.serve(sockets=[self.sock]))
        await until(lambda: self.server.started)
        return self

    async def __aexit__(self, *_: object) -> None:
        for writer in self.writers:
            writer.transport.abort()
        self.server.should_exit = self.server.force_exit = True
        await asyncio.wait_for(self.task, PATIENCE_S)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - uvicorn tells nobody
            await asyncio.sleep(0.01)


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What came until the connection was closed, however that was."""
    content = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := await asyncio.wait_for(reader.read(65536), PATIENCE_S):
            content += chunk
    return content


HEAD_LIMITS = {"max_headers": 20, "max_header_bytes": 2000, "max_url_bytes": 300}


@pytest.fixture
async def hasty() -> AsyncIterator[Served]:
    """Time-outs so short that waiting for them costs nothing."""
    times = {"header_timeout_s": 0.2, "body_timeout_s": 0.2, "write_timeout_s": 0.2}
    async with Served(**times, **HEAD_LIMITS) as served:
        yield served


@pytest.fixture
async def patient() -> AsyncIterator[Served]:
    """Time-outs that no machine is slow enough for."""
    times = dict.fromkeys(("header_timeout_s", "body_timeout_s", "write_timeout_s"), PATIENCE_S)
    async with Served(**times, **HEAD_LIMITS) as served:
        yield served


@pytest.mark.parametrize("sent", [b"G", b"\r\n", HEAD, HEAD + b"x-slow: "], ids=repr)
async def test_headers_that_do_not_end_are_cut_off(hasty: Served, sent: bytes) -> None:
    answer = await hasty.told(sent)

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"GATEWAY_HEADER_TIMEOUT_S" in answer


async def test_a_connection_opened_in_advance_is_closed_without_a_word(hasty: Served) -> None:
    assert await hasty.ask(b"") == b""


async def test_a_connection_that_was_used_has_as_long_for_its_next_headers(hasty: Served) -> None:
    answer = await hasty.told(LIVE + b"\r\n" + HEAD)

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 408 " in answer


@pytest.mark.parametrize("length", [b"content-length: 100", b"transfer-encoding: chunked"])
async def test_a_body_that_does_not_come_is_cut_off(hasty: Served, length: bytes) -> None:
    answer = await hasty.told(HEAD + length + b"\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"GATEWAY_BODY_TIMEOUT_S" in answer
    assert b"connection: close" in answer


async def test_who_is_answered_before_the_body_is_read_may_not_stay(hasty: Served) -> None:
    answer = await hasty.told(b"POST /health/live HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize(
    ("content", "status", "setting"),
    [
        (LIVE + b"x: y\r\n" * 30 + b"\r\n", 431, b"MAX_HEADERS"),
        (LIVE + b"x: " + b"y" * 3000 + b"\r\n\r\n", 431, b"MAX_HEADER_BYTES"),
        (
            b"GET /health/live?" + b"y" * 400 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
            414,
            b"MAX_URL_BYTES",
        ),
    ],
    ids=["many headers", "long headers", "a long URL"],
)
async def test_a_head_that_is_too_large_names_its_limit(
    patient: Served, content: bytes, status: int, setting: bytes
) -> None:
    answer = await patient.ask(content)

    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"GATEWAY_" + setting in answer


@pytest.mark.parametrize(
    "begun",
    [
        b"GET /" + b"x" * 600_000,
        LIVE + b"x: " + b"y" * 600_000,
        LIVE + b"x: y\r\n" * 100_000,
    ],
    ids=["a URL", "a header", "headers"],
)
async def test_an_endless_head_is_not_kept(hasty: Served, begun: bytes) -> None:
    hasty.gateway.settings.adopt(
        hasty.gateway.settings.model_copy(update={"header_timeout_s": 60}), ["header_timeout_s"]
    )

    answer = await hasty.ask(begun)

    assert not answer or answer.startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize(
    "rest",
    [b"0\r\n" + b"x: y\r\n" * 100_000, b"1;" + b"x" * 600_000],
    ids=["trailers", "a chunk's extension"],
)
async def test_endless_trailers_and_extensions_are_not_kept(hasty: Served, rest: bytes) -> None:
    hasty.gateway.settings.adopt(
        hasty.gateway.settings.model_copy(update={"body_timeout_s": 60}), ["body_timeout_s"]
    )

    answer = await hasty.ask(HEAD + b"transfer-encoding: chunked\r\n\r\n" + rest)

    assert b"HTTP/1.1 200" not in answer


@pytest.mark.parametrize(
    "content",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/9.9\r\n\r\n",
        HEAD + b"content-length: 5\r\ncontent-length: 6\r\n\r\nabcde",
        HEAD + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
        HEAD + b"content-length: -1\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nho st: x\r\n\r\n",
    ],
    ids=repr,
)
async def test_what_is_no_http_is_refused_in_our_shape(patient: Served, content: bytes) -> None:
    answer = await patient.ask(content)

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"application/problem+json" in answer


async def test_the_connections_are_counted_and_come_free_again() -> None:
    async with Served(max_connections=2) as served:
        held = [await served.connect() for _ in range(2)]
        for _, writer in held:  # answered, so surely accepted
            writer.write(LIVE + b"\r\n")
        for reader, _ in held:
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)

        refused = await served.ask(OTHER + b"\r\n")
        held[0][1].close()
        await until(lambda: len(served.server.server_state.connections) < 2)
        served_again = await served.ask(OTHER + b"connection: close\r\n\r\n")

        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"GATEWAY_MAX_CONNECTIONS" in refused and b"retry-after: 1" in refused
        assert served_again.startswith(b"HTTP/1.1 200 ")


async def test_probes_are_answered_above_the_limit_once_each_and_up_to_a_limit_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.wire.FOR_PROBES", 1)
    async with Served(max_connections=1) as served:
        reader, first = await served.connect()
        first.write(LIVE + b"\r\n")
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)

        connections, probes = served.server.server_state.connections, []
        for _ in range(3):
            probes.append(await served.ask(LIVE + b"\r\n"))
            await until(lambda: len(connections) == 1)
        await served.connect()
        await until(lambda: len(connections) == 2)
        beyond = await served.ask(LIVE + b"\r\n")

        assert [probe.startswith(b"HTTP/1.1 200 ") for probe in probes] == [True] * 3
        assert all(b"connection: close" in probe for probe in probes)
        assert beyond.startswith(b"HTTP/1.1 503 ")


def test_the_setting_says_how_many_probes_there_may_be() -> None:
    assert str(FOR_PROBES) in str(Settings.model_fields["max_connections"].description)


async def test_who_does_not_read_its_stream_loses_it_and_frees_the_engine(hasty: Served) -> None:
    texts, never = ["x" * 100_000] * 300, asyncio.Event()
    hasty.engine.script = lambda job: Script(texts, [(1,)] * 300, gate=never, gate_at=299)
    reader, writer = await hasty.connect()
    reader._transport.pause_reading()  # type: ignore[attr-defined]

    writer.write(HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY)

    await until(lambda: bool(hasty.engine.aborted))


async def test_an_unused_connection_is_closed() -> None:
    async with Served(idle_timeout_s=1) as served:
        answer = await served.ask(LIVE + b"\r\n")

        assert answer.startswith(b"HTTP/1.1 200 ")


async def test_others_are_served_while_hundreds_hang() -> None:
    async with Served() as served:
        held = [await served.connect() for _ in range(200)]
        for _, writer in held:
            writer.write(HEAD + b"content-length: 100\r\n\r\n{")

        answer = await served.ask(LIVE + b"connection: close\r\n\r\n")

        assert answer.startswith(b"HTTP/1.1 200 ")
