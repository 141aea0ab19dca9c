"""The load generator and the comparison, without an engine: a scripted server plays the faults."""

import asyncio
import contextlib
import dataclasses
import itertools
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any

import orjson
import psutil
import pytest

from bench import compare, load, render, servers
from bench.environment import environment

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n"
SSE = HEAD % b"text/event-stream; charset=utf-8"
REFUSED = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def event(text: str) -> bytes:
    choices = [{"index": 0, "delta": {"content": text}}]
    return b"data: " + orjson.dumps({"choices": choices}) + b"\n\n"


def usage(n_tokens: int) -> bytes:
    counts = {"prompt_tokens": 9, "completion_tokens": n_tokens}
    return b"data: " + orjson.dumps({"choices": [], "usage": counts}) + b"\n\n"


def chunked(pieces: Sequence[bytes]) -> list[bytes]:
    return [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces]


def stream(*pieces: bytes) -> list[bytes]:
    """The bytes of one whole streamed answer, one HTTP chunk per piece."""
    return [SSE, *chunked(pieces), b"0\r\n\r\n"]


GOOD = stream(event(""), event("a"), event("b"), usage(2), DONE)


@contextlib.asynccontextmanager
async def server(answers: Sequence[Sequence[bytes]]) -> AsyncIterator[str]:
    """Request i gets answer i, the last one again and again; a cut answer closes the socket."""
    script = itertools.chain(answers, itertools.repeat(answers[-1]))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
                await reader.readexactly(int(length))
                answer = next(script)
                for piece in answer:
                    writer.write(piece)
                    await writer.drain()
                if answer[0] == SSE and answer[-1] != b"0\r\n\r\n":
                    break
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"


def measured(answers: Sequence[Sequence[bytes]], **fields: Any) -> dict[str, Any]:
    """Load the scripted server: one warm-up request (a good one), then `requests` of them."""

    async def run() -> dict[str, Any]:
        async with server([GOOD, *answers]) as url:
            one = load.Load(url, "m", streams=1, requests=len(answers), max_tokens=2)
            return await load.measure(dataclasses.replace(one, **fields))

    return asyncio.run(run())


def sample(**fields: Any) -> load.Sample:
    return load.Sample(**({"start": 0.0} | fields))


def test_arrivals_are_poisson_and_seeded() -> None:
    due = load.schedule(rate_rps=4, n_requests=20_000, seed=1)

    gaps = [later - earlier for earlier, later in itertools.pairwise([0.0, *due])]
    assert due == load.schedule(4, 20_000, 1) != load.schedule(4, 20_000, 2)
    assert min(gaps) >= 0
    # An exponential distribution's mean and standard deviation are the same: 1 / rate.
    assert statistics.mean(gaps) == pytest.approx(0.25, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(0.25, rel=0.03)


def test_a_rate_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        load.schedule(0, 1, 1)


def test_prompts_are_distinct_and_seeded() -> None:
    texts = load.prompts(500, 64, "1/measured")

    assert len({text[:60] for text in texts}) == 500
    assert texts == load.prompts(500, 64, "1/measured")
    assert not set(texts) & set(load.prompts(500, 64, "1/warm-up"))
    assert {len(text.split()) for text in texts} == {64}


def test_percentiles_lie_between_their_neighbours() -> None:
    values = [1.0, 2.0, 3.0, 4.0]

    assert load.percentile(values, 0) == 1.0
    assert load.percentile(values, 50) == 2.5
    assert load.percentile(values, 90) == pytest.approx(3.7)
    assert load.percentile(values, 100) == 4.0
    assert load.percentile([7.0], 99) == 7.0


def test_the_figures_are_what_they_are_called() -> None:
    one = sample(start=10.0, events=[10.5, 10.6, 10.8], end=11.0, n_tokens=6, n_prompt_tokens=9)

    figures = load.summarise([one], wall_s=2.0, max_tokens=6)

    assert figures["ttft_ms"]["p50"] == pytest.approx(500)
    assert figures["itl_ms"]["mean"] == pytest.approx(150)
    assert figures["tpot_ms"]["p50"] == pytest.approx(100)  # 0.5 s for the 5 after the first
    assert figures["e2e_ms"]["p99"] == pytest.approx(1000)
    assert (figures["tok_s"], figures["req_s"], figures["tokens_per_event"]) == (3.0, 0.5, 2.0)


def test_failures_are_counted_and_in_no_average() -> None:
    good = sample(events=[1.0], end=1.0, n_tokens=2)
    bad = sample(events=[50.0], end=99.0, n_tokens=1, error="http 503")

    figures = load.summarise([good, bad, bad], wall_s=1.0, max_tokens=2)

    assert figures["errors"] == {"http 503": 2}
    assert (figures["requests"], figures["answered"], figures["output_tokens"]) == (3, 1, 2)
    assert figures["e2e_ms"]["p99"] == figures["ttft_ms"]["mean"] == 1000


def test_nothing_answered_is_no_figure_rather_than_zero() -> None:
    figures = load.summarise([sample(error="x")], wall_s=1.0, max_tokens=2)

    assert figures["ttft_ms"] is figures["e2e_ms"] is figures["tokens_per_event"] is None


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_events_are_found_however_the_bytes_are_cut(size: int) -> None:
    received = b": ping\n\n" + event("") + event("a") + b"event: x\r\n" + event("b")
    received += usage(2) + DONE
    one, rest = sample(), b""

    for at in range(0, len(received), size):
        rest = load.take(rest + received[at : at + size], now=float(at), sample=one)

    assert rest == b""
    assert (len(one.events), one.n_tokens, one.n_prompt_tokens) == (2, 2, 9)
    assert one.finished


def test_a_stream_over_a_socket_is_counted_by_its_usage() -> None:
    whole = event("a") + event(" longer piece of several tokens") + usage(9) + DONE
    cut = [whole[at : at + 11] for at in range(0, len(whole), 11)]

    figures = measured([stream(whole), stream(*cut)], max_tokens=9)

    assert figures["errors"] == {}
    assert figures["output_tokens"] == 18
    assert figures["tokens_per_event"] == 4.5
    assert figures["other_length"] == 0


def test_reasoning_is_a_token_too() -> None:
    thought = b'data: {"choices": [{"delta": {"reasoning": "hm"}}]}\n\n'

    figures = measured([stream(thought, usage(1), DONE)])

    assert figures["tokens_per_event"] == 1.0
    assert figures["other_length"] == 1


def test_each_fault_is_a_kind_of_its_own() -> None:
    error = b'data: {"error": {"message": "the engine stopped"}}\n\n'
    faults = [
        stream(event("a"), error, DONE),
        stream(event("a"), usage(1)),
        stream(event("a"), DONE),
        stream(b"data: {nonsense\n\n"),
        [REFUSED],
        [SSE, *chunked([event("a")])],
        GOOD,
    ]

    figures = measured(faults)

    assert figures["answered"] == 1
    assert figures["errors"] == {
        "error event": 1,
        "cut off before [DONE]": 1,
        "no usage": 1,
        "JSONDecodeError": 1,
        "http 503": 1,
        "ClientPayloadError": 1,
    }


def test_a_refused_connection_is_an_error_not_a_crash() -> None:
    one = load.Load(f"http://127.0.0.1:{servers.free_port()}", model="m", streams=2, requests=3)

    figures = asyncio.run(load.measure(one))

    assert figures["errors"] == {"ClientConnectorError": 3}
    assert figures["tok_s"] == 0


def test_the_open_loop_sends_every_request() -> None:
    figures = measured([GOOD] * 20, rate=2000.0)

    assert (figures["answered"], figures["errors"]) == (20, {})


def test_an_answer_in_one_piece_has_no_first_token_time() -> None:
    answer = orjson.dumps({"usage": {"prompt_tokens": 9, "completion_tokens": 2}})
    whole = [HEAD % b"application/json", *chunked([answer]), b"0\r\n\r\n"]

    figures = measured([whole], stream=False)

    assert figures["output_tokens"] == 2
    assert figures["ttft_ms"] is None
    assert figures["e2e_ms"] is not None


def test_the_request_asks_for_an_exact_length() -> None:
    body = orjson.loads(load.request_body(load.Load("u", "m", max_tokens=5), "p"))

    assert body["ignore_eos"] is True
    assert (body["max_tokens"], body["temperature"]) == (5, 0)
    assert body["stream_options"] == {"include_usage": True}


def test_the_sides_take_turns_at_going_first() -> None:
    assert [compare.order(turn) for turn in range(4)] == [(0, 1), (1, 0), (0, 1), (1, 0)]


def test_both_sides_get_the_same_prompts_and_no_round_repeats_them() -> None:
    plan = compare.Plan((1, 16, 64), 5, load.Load("", seed=1))
    turns = list(itertools.product(range(5), plan.streams))

    ours = [compare.load_of(plan, turn, streams, "http://a") for turn, streams in turns]
    theirs = [compare.load_of(plan, turn, streams, "http://b") for turn, streams in turns]

    assert [one.seed for one in ours] == [one.seed for one in theirs]
    assert len({one.seed for one in ours}) == len(turns)


def test_ratios_are_made_within_a_round() -> None:
    # A machine that slows down: the sides' own medians say 0.9, two rounds of three say 1.1.
    figure = compare.contrast([110.0, 45.0, 33.0], [100.0, 50.0, 30.0])

    assert figure is not None
    assert figure["ratios"] == [1.1, 0.9, 1.1]
    assert (figure["a"], figure["b"]) == (45.0, 50.0)
    assert (figure["ratio"], figure["ratio_min"], figure["ratio_max"]) == (1.1, 0.9, 1.1)


@pytest.mark.parametrize("b", [[1.0, None], [1.0, 0.0]])
def test_half_a_comparison_is_none(b: list[float | None]) -> None:
    assert compare.contrast([1.0, 2.0], b) is None


def usage_of(front_cpu_s: float, tree_cpu_s: float) -> servers.Usage:
    return servers.Usage(
        servers.Used(front_cpu_s, 600.0, 400.0), servers.Used(tree_cpu_s, 3000.0, 2000.0)
    )


def test_cpu_is_told_per_thousand_tokens() -> None:
    before, after = usage_of(1.0, 10.0), usage_of(2.0, 14.0)

    assert compare.cost(before, after, 4000) == {
        "front_cpu_s_per_1k": 0.25,
        "front_rss_mb": 600.0,
        "front_private_mb": 400.0,
        "tree_cpu_s_per_1k": 1.0,
        "tree_rss_mb": 3000.0,
        "tree_private_mb": 2000.0,
    }
    assert compare.cost(before, after, 0)["front_cpu_s_per_1k"] is None


def test_a_servers_children_are_counted_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    # A parent that dies of SIGTERM without a thought for its child, as stock vLLM does of SIGKILL.
    monkeypatch.setattr(servers, "ORPHANS_S", 0.1)
    child = "import time; time.sleep(600)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], start_new_session=True)
    leader = psutil.Process(process.pid)
    while not leader.children():
        assert process.poll() is None

    used = servers.usage(leader)
    children = leader.children()
    servers.stop(process)

    assert used.tree.rss_mb > used.front.rss_mb > 0
    assert children
    assert not any(child.is_running() and child.status() != "zombie" for child in children)


def test_a_server_that_ends_is_an_error_with_its_log() -> None:
    side = servers.Side(
        "x", (sys.executable, "-c", "exit('no model')"), {}, "http://127.0.0.1:9", "/"
    )

    with pytest.raises(servers.ServerFailedError, match="no model"), servers.running(side):
        pass


def result_file(errors: int = 0) -> dict[str, Any]:
    """A result of one round, of the shape bench.compare writes."""

    def run(side: str, tok_s: float) -> dict[str, Any]:
        figures = load.summarise([sample(events=[0.01, 0.02], end=0.02, n_tokens=2)], 1.0, 2)
        figures |= {"tok_s": tok_s, "errors": {"http 503": errors} if errors else {}}
        server = compare.cost(usage_of(0.0, 0.0), usage_of(1.0, 2.0), 10_000)
        return {"side": side, "streams": 16, "result": figures, "server": server}

    runs = [run("gateway", 1980.0), run("stock", 2000.0)]
    args = vars(compare.parse(["--streams", "16", "--rounds", "1"]))
    return {
        "arguments": args,
        "environment": environment(),
        "sides": {"a": {"name": "gateway"}, "b": {"name": "stock"}},
        "summary": compare.summary(runs, "gateway", "stock"),
        "runs": runs,
    }


def test_the_table_has_a_row_per_figure() -> None:
    text = render.table(result_file())

    lines = text.splitlines()
    assert lines[0].startswith("| Streams | Figure (median) | gateway | stock |")
    assert "| 16 | throughput, tokens/s | 1,980.0 | 2,000.0 | 0.99 (0.99 to 0.99) |" in lines
    assert len(lines) == 2 + len(render.ROWS)
    assert {line.count("|") for line in lines} == {6}


def test_the_table_shows_failures() -> None:
    assert "| 16 | **failed requests, all rounds** | 3 | 3 | |" in render.table(result_file(3))


def test_the_source_names_machine_and_profile() -> None:
    assert "profile `demo`, 1 rounds" in render.source(result_file())


def test_a_side_is_started_as_the_command_line_says() -> None:
    args = compare.parse(
        ["--b", "gateway", "--gateway-env", "GATEWAY_X=a=b", "--b-args", "--y 'z z'"]
    )

    a, b = compare.side_of(args, "a"), compare.side_of(args, "b")

    assert a.command[1:6] == ("-m", "gateway", "serve", "--profile", "demo")
    assert (a.name, b.name) == ("gateway", "gateway-b")
    assert a.env["GATEWAY_X"] == "a=b"
    assert "GATEWAY_X" not in b.env
    assert b.command[-2:] == ("--y", "z z")
