"""Many at once, and a short benchmark: a sign of life with figures. For a decision take bench/load.py."""

import asyncio
import itertools
import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

from gateway.validate.probes import Flaw, events
from gateway.validate.target import Target

PROMPT = "Once upon a time, in a land of mountains and rivers, there lived"


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is asked: `requests` in all, `streams` at once, `tokens` each."""

    streams: int
    requests: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Timing:
    """One streamed answer; seconds. `gaps` are the times between two pieces of it."""

    first: float
    gaps: tuple[float, ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds and tokens per second, over all requests of the plan."""

    requests: int
    streams: int
    tokens: int
    seconds: float
    ttft_p50_s: float
    ttft_p95_s: float
    itl_p50_s: float
    itl_p95_s: float
    tokens_per_second: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


async def crowd(target: Target, count: int) -> str:
    """So many answers at once, each whole. Raises Flaw."""
    body = {"model": target.model, "prompt": PROMPT, "max_tokens": 8}
    calls = (target.client.post("/generate", json=body) for _ in range(count))
    answers = await asyncio.gather(*calls)
    bad = [each for each in answers if each.status_code != 200]
    if bad:
        raise Flaw(
            f"{len(bad)} of {count} failed, the first with {bad[0].status_code}: {bad[0].text[:200]}"
        )
    if len({each.json()["id"] for each in answers}) != count:
        raise Flaw("two answers have the same id")
    return f"{count} answers at once"


async def measure(target: Target, plan: Plan) -> Speed:
    """Stream completions of exactly `plan.tokens` each. Raises Flaw."""
    await _one(target, plan.tokens)  # a first request compiles and fills caches
    gate = asyncio.Semaphore(plan.streams)

    async def one() -> Timing:
        async with gate:
            return await _one(target, plan.tokens)

    began = time.perf_counter()
    timings = await asyncio.gather(*(one() for _ in range(plan.requests)))
    seconds = time.perf_counter() - began
    firsts = [each.first for each in timings]
    gaps = [gap for each in timings for gap in each.gaps] or [0.0]
    tokens = sum(each.tokens for each in timings)
    return Speed(
        requests=plan.requests,
        streams=plan.streams,
        tokens=tokens,
        seconds=round(seconds, 3),
        ttft_p50_s=quantile(firsts, 50),
        ttft_p95_s=quantile(firsts, 95),
        itl_p50_s=quantile(gaps, 50),
        itl_p95_s=quantile(gaps, 95),
        tokens_per_second=round(tokens / seconds, 2),
    )


def quantile(values: list[float], percent: int) -> float:
    if len(values) == 1:
        return round(values[0], 4)
    return round(statistics.quantiles(values, n=100, method="inclusive")[percent - 1], 4)


async def _one(target: Target, tokens: int) -> Timing:
    body = {
        "model": target.model,
        "prompt": PROMPT,
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began = time.perf_counter()
    times, counted = [], 0
    async with target.client.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code != 200:
            raise Flaw(f"{response.status_code}: {(await response.aread())[:200]!r}")
        async for line in response.aiter_lines():
            for event in events(line):
                if event.get("choices"):
                    times.append(time.perf_counter())
                counted = (event.get("usage") or {}).get("completion_tokens", counted)
    if not times or not counted:
        raise Flaw("a stream without text or without usage")
    gaps = tuple(later - earlier for earlier, later in itertools.pairwise(times))
    return Timing(times[0] - began, gaps, counted)
