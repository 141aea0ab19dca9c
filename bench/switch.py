"""What callers notice of a switch: latency before, while and after a model goes from format to format.

    python -m bench.switch --profiles demo-int8,demo-gptq-int4,demo-awq-int4,demo \
        --out bench/results/switch-demo.json

Starts a gateway with `--first`, keeps `--streams` callers busy (each sends its next streaming chat request
when its last one is answered), and switches through `--profiles` by the admin API. A request counts to the
switch during which it began. Writes one JSON object.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from bench.environment import environment
from bench.servers import Side, free_port, running

STEADY_S = 20.0
POLL_S = 0.2
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Answer:
    """One request. Seconds on `time.monotonic`."""

    began: float
    first: float
    ended: float
    format: str
    failure: str  # empty: a whole answer


class Callers:
    """A closed loop of streaming chat requests."""

    def __init__(self, url: str, session: aiohttp.ClientSession, args: argparse.Namespace) -> None:
        self.url = f"{url}/v1/chat/completions"
        self.session = session
        question = [{"role": "user", "content": "Tell me a story."}]
        self.body = {
            "messages": question,
            "max_tokens": args.max_tokens,
            "ignore_eos": True,
            "stream": True,
        }
        self.answers: list[Answer] = []
        self.over = False

    async def call(self) -> None:
        while not self.over:
            self.answers.append(await self._one())

    async def _one(self) -> Answer:
        began = first = time.monotonic()
        served, failure, tail = "", "", b""
        try:
            async with self.session.post(self.url, json=self.body) as response:
                served = response.headers.get("x-model-format", "")
                failure = "" if response.status == 200 else f"http {response.status}"
                async for chunk in response.content.iter_any():
                    first = time.monotonic() if first == began else first
                    tail = (tail + chunk)[-64:]
        except aiohttp.ClientError as error:
            failure = type(error).__name__
        if not failure and not tail.endswith(b"data: [DONE]\n\n"):
            failure = "cut off before [DONE]"
        return Answer(began, first, time.monotonic(), served, failure)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="bench.switch", description=__doc__.splitlines()[0])
    parser.add_argument("--first", default="demo", help="the profile to begin with")
    parser.add_argument("--profiles", required=True, help="to switch to in turn, comma-separated")
    parser.add_argument("--way", default="auto", help="of every switch")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    args = parser.parse_args()
    where = environment()
    result = {
        "command": " ".join(["python -m bench.switch", *sys.argv[1:]]),
        "environment": where,
        **asyncio.run(measure(args)),
    }
    args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if result["failures"]:
        raise SystemExit(1)


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    port, admin_port = free_port(), free_port()
    url = f"http://127.0.0.1:{port}"
    command = ["-m", "gateway", "serve", "--profile", args.first, "--port", str(port)]
    command += ["--admin-port", str(admin_port)]
    side = Side("gateway", (sys.executable, *command), {}, url, "/health/ready")
    timeout = aiohttp.ClientTimeout(total=None)
    with running(side) as server:
        async with aiohttp.ClientSession(timeout=timeout) as session:
            callers = Callers(url, session, args)
            tasks = [asyncio.create_task(callers.call()) for _ in range(args.streams)]
            await asyncio.sleep(STEADY_S)
            memory = [_memory(server)]
            spans = {"before": (0.0, time.monotonic())}
            switches = []
            for number, profile in enumerate(args.profiles.split(","), 1):
                began = time.monotonic()
                told = await _switch(session, admin_port, profile, args.way)
                spans[f"switch {number}"] = (began, time.monotonic())
                switches.append(told)
                memory.append(_memory(server))
            spans["after"] = (time.monotonic(), float("inf"))
            await asyncio.sleep(STEADY_S)
            callers.over = True
            await asyncio.gather(*tasks)
    return _summary(callers.answers, spans) | {"switches": switches, "memory_mib": memory}


async def _switch(
    session: aiohttp.ClientSession, port: int, profile: str, way: str
) -> dict[str, Any]:
    admin = f"http://127.0.0.1:{port}/admin"
    async with session.get(f"{admin}/models") as response:
        model = (await response.json())["data"][0]["name"]
    body = {"profile": profile, "way": way}
    async with session.post(f"{admin}/models/{model}/switch", json=body) as response:
        told: dict[str, Any] = await response.json()
    while told["state"] == "running":
        await asyncio.sleep(POLL_S)
        async with session.get(f"{admin}/operations/{told['id']}") as response:
            told = await response.json()
    kept = ("from_profile", "to_profile", "state", "way", "why", "phase_seconds", "error")
    return {key: told[key] for key in kept}


def _memory(server: psutil.Process) -> int:
    """Of the gateway and its engines, MiB; shared pages counted once (PSS)."""
    family = [server, *server.children(recursive=True)]
    return round(sum(process.memory_full_info().pss for process in family) / MIB)


def _summary(answers: list[Answer], spans: dict[str, tuple[float, float]]) -> dict[str, Any]:
    good = [answer for answer in answers if not answer.failure]
    periods = {}
    for name, (start, end) in spans.items():
        these = [answer for answer in good if start <= answer.began < end]
        periods[name] = {
            "answers": len(these),
            "ttft_s": _spread([answer.first - answer.began for answer in these]),
            "e2e_s": _spread([answer.ended - answer.began for answer in these]),
        }
    return {
        "requests": len(answers),
        "failures": dict(Counter(answer.failure for answer in answers if answer.failure)),
        "by_format": dict(Counter(answer.format for answer in good)),
        "periods": periods,
    }


def _spread(values: list[float]) -> dict[str, float]:
    if len(values) < 2:
        return {}
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    figures = {"p50": cuts[49], "p99": cuts[98], "max": max(values)}
    return {name: round(value, 3) for name, value in figures.items()}


if __name__ == "__main__":
    main()
