"""Time to first token, gaps between tokens and throughput of one OpenAI-compatible server.

    python -m bench.load --url http://127.0.0.1:8000 --streams 16 --requests 128
    python -m bench.load --url http://127.0.0.1:8000 --rate 4 --requests 200

Closed loop (the default): `--streams` clients, each sends its next request when its last one is
answered; a request's clock starts when it is sent. Open loop (`--rate`): request i starts at its
own Poisson time whether or not earlier ones are done, and its clock starts when it was *due*, so a
slow server cannot slow its own load down (coordinated omission).

Every request makes exactly `--max-tokens` tokens (`ignore_eos`, temperature 0). Every prompt is its
own row of random words, so vLLM's prefix cache has at most the chat template's opening to offer.
Failures are counted by kind and are in no average. Writes one JSON object: arguments, environment,
result.

The client shares its machine with the server, so it must be cheap. Measured here (64 streams, one
token per event, CPU per token): aiohttp 41 us, httpx 220 us, bare asyncio streams 28 us. A stock
vLLM API process spends about 113 us on the same token.
"""

import argparse
import asyncio
import collections
import dataclasses
import functools
import itertools
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from bench.environment import environment

WORDS = (Path(__file__).parent / "words.txt").read_text(encoding="utf-8").split()
ROUTES = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
WARM_UP_TOKENS = 8
# What a server can do to a client; anything else is a bug of this file and shall be seen.
SERVER_FAULTS = (aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError)


class RequestFailedError(Exception):
    """The server answered, but not with what was asked for. The message is the kind counted."""


@dataclasses.dataclass(frozen=True, slots=True)
class Load:
    """What is sent: the arguments of the command line, plain data."""

    url: str
    model: str = ""  # empty: the first one of /v1/models
    streams: int = 16  # clients of the closed loop, and the warm-up's
    requests: int = 128
    max_tokens: int = 64  # tokens of every answer, exactly
    prompt_tokens: int = 64  # words of every prompt; the chat template's tokens come on top
    seed: int = 1
    rate: float | None = None  # requests per second; None is the closed loop
    api: str = "chat"  # a key of ROUTES
    stream: bool = True
    timeout_s: float = 600.0  # for one request
    extra: str = "{}"  # fields of every request, as JSON; they beat those above


@dataclasses.dataclass(slots=True)
class Sample:
    """One request. All times in seconds on `time.perf_counter`."""

    start: float  # when it was sent; open loop: when it was due
    events: list[float] = dataclasses.field(default_factory=list)  # shape (n_events,)
    end: float = 0.0
    n_tokens: int = 0  # from the server's usage: one event may carry several tokens
    n_prompt_tokens: int = 0
    finished: bool = False  # the stream's [DONE], or a whole body
    error: str | None = None


Send = Callable[[bytes, float], Awaitable[Sample]]


def schedule(rate_rps: float, n_requests: int, seed: int) -> list[float]:
    """Poisson arrivals: start times in seconds from zero, shape (n_requests,), ascending.

    Raises:
        ValueError: rate_rps is not positive.

    Source: gaps are exponential with mean 1/rate_rps, which is what Poisson arrivals means.
    """
    if rate_rps <= 0:
        raise ValueError(f"the rate must be positive, not {rate_rps}")
    dice = random.Random(seed)
    return list(itertools.accumulate(dice.expovariate(rate_rps) for _ in range(n_requests)))


def prompts(n_requests: int, n_words: int, seed: str) -> list[str]:
    """Random words, about one token each in English BPE vocabularies. Same seed, same prompts."""
    return [
        " ".join(random.Random(f"{seed}/{index}").choices(WORDS, k=n_words))
        for index in range(n_requests)
    ]


def request_body(load: Load, prompt: str) -> bytes:
    """One request, ready to send: made before the clock starts."""
    fields: dict[str, Any] = {
        "model": load.model,
        "max_tokens": load.max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": load.stream,
    }
    if load.stream:
        fields["stream_options"] = {"include_usage": True}
    if load.api == "chat":
        fields["messages"] = [{"role": "user", "content": prompt}]
    else:
        fields["prompt"] = prompt
    return orjson.dumps(fields | orjson.loads(load.extra))


async def send(session: aiohttp.ClientSession, path: str, body: bytes, start: float) -> Sample:
    """Send one request and read its answer. Never raises for what a server did: see `error`."""
    sample = Sample(start)
    try:
        async with session.post(path, data=body) as response:
            if response.status != 200:
                raise RequestFailedError(f"http {response.status}")
            await _read(response, sample)
    except RequestFailedError as error:
        sample.error = str(error)
    except SERVER_FAULTS as error:
        sample.error = type(error).__name__
    sample.end = time.perf_counter()
    return sample


async def _read(response: aiohttp.ClientResponse, sample: Sample) -> None:
    if response.content_type == "text/event-stream":
        rest = b""
        async for piece in response.content.iter_any():
            rest = take(rest + piece, time.perf_counter(), sample)
    else:
        _count(orjson.loads(await response.read()), sample)
        sample.finished = True
    if not sample.finished:
        raise RequestFailedError("cut off before [DONE]")
    if not sample.n_tokens:
        raise RequestFailedError("no usage")


def take(received: bytes, now: float, sample: Sample) -> bytes:
    """Note every whole SSE line of `received` (arrived at `now`); return the unfinished last one.

    Raises:
        RequestFailedError: the server sent an error where a token was due.
    """
    *lines, rest = received.split(b"\n")
    for line in lines:
        if not line.startswith(b"data:"):
            continue  # the blank line between events, a comment, an event name
        data = line[5:].strip()
        if data == b"[DONE]":
            sample.finished = True
            continue
        chunk = orjson.loads(data)
        if any(_carries_text(choice) for choice in chunk.get("choices") or ()):
            sample.events.append(now)
        _count(chunk, sample)
    return rest


def _carries_text(choice: dict[str, Any]) -> bool:
    # Chat has a delta, completions have a text. The first chat chunk has a role and no text yet.
    delta = choice.get("delta") or choice
    return bool(delta.get("content") or delta.get("text") or delta.get("reasoning"))


def _count(answer: dict[str, Any], sample: Sample) -> None:
    if "error" in answer:
        raise RequestFailedError("error event")
    if usage := answer.get("usage"):
        sample.n_tokens = usage["completion_tokens"]
        sample.n_prompt_tokens = usage["prompt_tokens"]


async def closed_loop(send_one: Send, bodies: Sequence[bytes], streams: int) -> list[Sample]:
    """`streams` clients share the requests; each has one in flight."""
    pending = iter(bodies)

    async def client() -> list[Sample]:
        return [await send_one(body, time.perf_counter()) for body in pending]

    return list(itertools.chain(*await asyncio.gather(*(client() for _ in range(streams)))))


async def open_loop(send_one: Send, bodies: Sequence[bytes], due: Sequence[float]) -> list[Sample]:
    """Request i starts `due[i]` seconds from now, whatever became of the others."""
    now = time.perf_counter()

    async def at(start: float, body: bytes) -> Sample:
        await asyncio.sleep(start - time.perf_counter())
        return await send_one(body, start)

    return await asyncio.gather(*(at(now + d, body) for d, body in zip(due, bodies, strict=True)))


async def measure(load: Load, probe: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Warm the server up, load it, summarise. `probe` runs just before and just after the load.

    Raises:
        aiohttp.ClientError: no model was named and the server does not list one.
    """
    async with _session(load) as session:
        load = dataclasses.replace(load, model=load.model or await first_model(session))
        send_one = functools.partial(send, session, ROUTES[load.api])
        # Other prompts than the measured ones, all clients at once: opens the connections too.
        warm_up = dataclasses.replace(load, max_tokens=WARM_UP_TOKENS, requests=load.streams)
        await closed_loop(send_one, _bodies(warm_up, "warm-up"), load.streams)
        bodies = _bodies(load, "measured")
        probe()
        wall, cpu = time.perf_counter(), time.process_time()
        samples = await _run(load, send_one, bodies)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        probe()
    return summarise(samples, wall, load.max_tokens) | {"client_cpu_s": round(cpu, 3)}


def _session(load: Load) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        load.url,
        # limit=0: the queue to be measured is the server's, not one in here.
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=load.timeout_s),
        headers={"Content-Type": "application/json", **_key()},
    )


def _key() -> dict[str, str]:
    """Of a gateway with tenants. From the environment: arguments go into the result file."""
    key = os.environ.get("BENCH_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


async def _run(load: Load, send_one: Send, bodies: Sequence[bytes]) -> list[Sample]:
    if load.rate is None:
        return await closed_loop(send_one, bodies, load.streams)
    return await open_loop(send_one, bodies, schedule(load.rate, load.requests, load.seed))


async def first_model(session: aiohttp.ClientSession) -> str:
    """The first model the server lists."""
    async with session.get("/v1/models", raise_for_status=True) as response:
        return str((await response.json())["data"][0]["id"])


def _bodies(load: Load, purpose: str) -> list[bytes]:
    texts = prompts(load.requests, load.prompt_tokens, f"{load.seed}/{purpose}")
    return [request_body(load, text) for text in texts]


def summarise(samples: Sequence[Sample], wall_s: float, max_tokens: int) -> dict[str, Any]:
    """Figures of the answered requests, and the others counted by kind. Times in milliseconds."""
    good = [sample for sample in samples if sample.error is None]
    tokens = sum(sample.n_tokens for sample in good)
    streamed = [sample for sample in good if sample.events]
    n_events = sum(len(sample.events) for sample in streamed)
    return {
        "requests": len(samples),
        "answered": len(good),
        "errors": dict(collections.Counter(sample.error for sample in samples if sample.error)),
        # 0 unless the server ignored ignore_eos, or the context was too short.
        "other_length": sum(sample.n_tokens != max_tokens for sample in good),
        "wall_s": round(wall_s, 3),
        "output_tokens": tokens,
        "prompt_tokens": sum(sample.n_prompt_tokens for sample in good),
        "tok_s": round(tokens / wall_s, 2),
        "req_s": round(len(good) / wall_s, 3),
        "tokens_per_event": round(tokens / n_events, 3) if n_events else None,
        "ttft_ms": spread(sample.events[0] - sample.start for sample in streamed),
        "itl_ms": spread(
            later - earlier
            for sample in streamed
            for earlier, later in itertools.pairwise(sample.events)
        ),
        "tpot_ms": spread(
            (sample.end - sample.events[0]) / (sample.n_tokens - 1)
            for sample in streamed
            if sample.n_tokens > 1
        ),
        "e2e_ms": spread(sample.end - sample.start for sample in good),
    }


def spread(seconds: Iterator[float]) -> dict[str, float] | None:
    """Mean and percentiles in milliseconds; None if there is nothing to average."""
    ordered = sorted(seconds)
    if not ordered:
        return None
    figures = {"mean": sum(ordered) / len(ordered)}
    figures |= {f"p{share}": percentile(ordered, share) for share in (50, 90, 99)}
    return {name: round(value * 1000, 3) for name, value in figures.items()}


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value `share` percent of the way through `ordered`, between two neighbours by a line.

    Source: numpy.percentile's default method, "linear".
    """
    place = (len(ordered) - 1) * share / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def parse(arguments: Sequence[str] | None = None) -> tuple[Load, Path | None]:
    """The command line: the load, and where the result goes (None: stdout)."""
    parser = argparse.ArgumentParser(prog="bench.load", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", default="", help="default: the first one of /v1/models")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, help="requests per second: open loop")
    parser.add_argument("--api", choices=tuple(ROUTES), default="chat")
    parser.add_argument("--no-stream", dest="stream", action="store_false")
    parser.add_argument("--timeout-s", type=float, default=600.0)
    parser.add_argument("--out", type=Path)
    fields = vars(parser.parse_args(arguments))
    out = fields.pop("out")
    return Load(**fields), out


def write(result: dict[str, Any], out: Path | None) -> None:
    """One indented JSON object into `out`, or to stdout."""
    text = orjson.dumps(result, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()
    if out is None:
        sys.stdout.write(text)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")


def main() -> None:
    """The command: measure once, write once. Exit status 1 if a request failed."""
    load, out = parse()
    place = environment()
    result = asyncio.run(measure(load))
    write({"arguments": dataclasses.asdict(load), "environment": place, "result": result}, out)
    if result["errors"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
