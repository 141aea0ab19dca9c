"""Does every thinking request have an answer? All routes, lengths and depths, on any server.

    python -m bench.sweep --profile nano-qwen3 --server gateway --out bench/results/sweep-nano-qwen3.json
    python -m bench.sweep --profile nano-qwen3 --server stock --out bench/results/sweep-nano-qwen3-stock.json

Stock vLLM has no /thinking; there the other three routes are asked. The gateway's tests run the same
cases, and fail on the first empty answer.
"""

import argparse
import asyncio
import collections
import dataclasses
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from bench import servers
from bench.compare import parse as compare_arguments
from bench.compare import side_of
from bench.environment import environment

LENGTHS = (1, 2, 8, 16, 33, 64, 257, 1024)
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
ROUTES = ("/thinking", "/v1/chat/completions", "/v1/responses", "/v1/messages")
CONCURRENCY = 32
QUESTION = "What is 17 + 25?"
TIMEOUT_S = 600.0


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One request of the sweep."""

    route: str
    max_tokens: int
    depth: int
    stream: bool
    n: int


@dataclasses.dataclass(slots=True)
class Got:
    """What came back. `answers` and `thoughts` have one text per completion; tokens as reported."""

    case: Case
    status: int
    answers: list[str] = dataclasses.field(default_factory=list)
    usage: dict[str, Any] = dataclasses.field(default_factory=dict)
    reports: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # how each one thought
    error: str = ""

    def faults(self) -> list[str]:
        """What is wrong with it, by kind."""
        if self.status != 200 or self.error:
            return ["refused" if 400 <= self.status < 500 else "failed"]
        found = ["empty"] if not self.answers or not all(map(str.strip, self.answers)) else []
        if any(report["tokens"] > report["budget"]["applied"] for report in self.reports):
            found.append("over budget")
        if self.usage.get("output", 0) > self.case.max_tokens * self.case.n:
            found.append("too long")
        if self.usage.get("input", 0) + self.usage.get("output", 0) != self.usage.get("total", -1):
            found.append("usage")
        return found


def cases(routes: Sequence[str] = ROUTES) -> Iterator[Case]:
    """Every combination; only chat and /thinking have several completions."""
    for route, length, depth, stream in itertools.product(
        routes, LENGTHS, range(len(EFFORTS)), (False, True)
    ):
        yield Case(route, length, depth, stream, 1)
        if route in ROUTES[:2]:
            yield Case(route, length, depth, stream, 2)


def body_of(case: Case, model: str) -> dict[str, Any]:
    """The request, in its route's own words."""
    effort, common = EFFORTS[case.depth], {"model": model, "stream": case.stream}
    if case.route == "/thinking":
        asked = {"question": QUESTION, "thinking_depth": case.depth, "samples": case.n}
        return {**common, **asked, "max_tokens": case.max_tokens}
    if case.route == "/v1/responses":
        return {
            **common,
            "input": QUESTION,
            "max_output_tokens": case.max_tokens,
            "reasoning": {"effort": effort},
        }
    messages = [{"role": "user", "content": QUESTION}]
    body = {**common, "messages": messages, "max_tokens": case.max_tokens}
    if case.route == "/v1/messages":
        thinking = {"type": "adaptive" if case.depth else "disabled"}
        return body | {"thinking": thinking, "thinking_depth": case.depth}
    usage = {"stream_options": {"include_usage": True}} if case.stream else {}
    return body | usage | {"n": case.n, "reasoning_effort": effort}


async def ask(client: httpx.AsyncClient, case: Case, model: str) -> Got:
    """Send it and read the answer, streamed or not."""
    got = Got(case, 0)
    try:
        response = await client.post(case.route, json=body_of(case, model))
    except httpx.TransportError as error:
        got.error = type(error).__name__
        return got
    got.status = response.status_code
    if response.status_code != 200:
        got.error = response.text[:200]
    elif case.stream:
        lines = response.text.split("\n")  # stock vLLM's JSON may hold U+2028
        data = [line[6:] for line in lines if line.startswith("data: {")]
        READ_STREAM[case.route](got, [json.loads(line) for line in data])
    else:
        READ[case.route](got, response.json())
    return got


def _thinking(got: Got, body: dict[str, Any]) -> None:
    got.answers = [body["answer"]]
    thought = {"tokens": body["reasoning"]["tokens"], "budget": body["budget"]}
    got.reports = [thought]
    usage = body["usage"]
    details = sum(usage["completion_tokens_details"].values())
    got.usage = {
        "input": usage["prompt_tokens"],
        "output": usage["completion_tokens"],
        # The parts must sum up too.
        "total": usage["total_tokens"] if details == usage["completion_tokens"] else -1,
    }


def _thinking_stream(got: Got, events: list[dict[str, Any]]) -> None:
    _thinking(got, events[-1]["response"])
    told = "".join(e["delta"] for e in events if e["type"] == "thinking.answer.delta")
    if told != got.answers[0]:
        got.error = "the streamed answer differs from the whole one"


def _chat(got: Got, body: dict[str, Any]) -> None:
    got.answers = [choice["message"]["content"] or "" for choice in body["choices"]]
    got.reports = [choice["thinking"] for choice in body["choices"] if "thinking" in choice]
    got.usage = _openai(body["usage"])


def _chat_stream(got: Got, chunks: list[dict[str, Any]]) -> None:
    texts: dict[int, str] = collections.defaultdict(str)
    for chunk in chunks:
        for choice in chunk.get("choices", ()):
            texts[choice["index"]] += choice["delta"].get("content") or ""
            if "thinking" in choice:
                got.reports.append(choice["thinking"])
        if chunk.get("usage"):
            got.usage = _openai(chunk["usage"])
        if "error" in chunk:
            got.error = str(chunk["error"])
    got.answers = list(texts.values())


def _openai(usage: dict[str, Any]) -> dict[str, int]:
    return {
        "input": usage["prompt_tokens"],
        "output": usage["completion_tokens"],
        "total": usage["total_tokens"],
    }


def _responses(got: Got, body: dict[str, Any]) -> None:
    parts = [
        part for item in body["output"] if item["type"] == "message" for part in item["content"]
    ]
    got.answers = ["".join(part.get("text", "") for part in parts)]
    got.reports = [body["thinking"]] if "thinking" in body else []
    usage = body["usage"]
    got.usage = {
        "input": usage["input_tokens"],
        "output": usage["output_tokens"],
        "total": usage["total_tokens"],
    }


def _responses_stream(got: Got, events: list[dict[str, Any]]) -> None:
    ends = ("response.completed", "response.incomplete")
    last = next((event for event in reversed(events) if event["type"] in ends), None)
    if last is None:
        got.error = "no last event"
        return
    _responses(got, last["response"])


def _messages(got: Got, body: dict[str, Any]) -> None:
    got.answers = ["".join(part.get("text", "") for part in body["content"])]
    got.reports = [body["thinking"]] if "thinking" in body else []
    _anthropic(got, body["usage"])


def _messages_stream(got: Got, events: list[dict[str, Any]]) -> None:
    got.answers = ["".join(e.get("delta", {}).get("text", "") for e in events)]
    for event in events:
        if event["type"] == "message_delta":
            got.reports = [event["thinking"]] if "thinking" in event else []
            _anthropic(got, event["usage"])
        if event["type"] == "error":
            got.error = str(event)


def _anthropic(got: Got, usage: dict[str, Any]) -> None:
    taken, made = usage.get("input_tokens", 0), usage["output_tokens"]
    got.usage = {"input": taken, "output": made, "total": taken + made}


READ = dict(zip(ROUTES, (_thinking, _chat, _responses, _messages), strict=True))
READ_STREAM = dict(
    zip(ROUTES, (_thinking_stream, _chat_stream, _responses_stream, _messages_stream), strict=True)
)


async def sweep(url: str, model: str, routes: Sequence[str] = ROUTES) -> list[Got]:
    """All cases, `CONCURRENCY` at a time, in the order of `cases`."""
    gate = asyncio.Semaphore(CONCURRENCY)
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S) as client:

        async def one(case: Case) -> Got:
            async with gate:
                return await ask(client, case, model)

        return await asyncio.gather(*(one(case) for case in cases(routes)))


def summary(all_got: Sequence[Got]) -> dict[str, Any]:
    """Counts by route and kind of fault."""
    table: dict[str, Any] = {}
    for route in dict.fromkeys(got.case.route for got in all_got):
        mine = [got for got in all_got if got.case.route == route]
        faults = collections.Counter(fault for got in mine for fault in got.faults())
        table[route] = {"requests": len(mine), "answered": sum(not got.faults() for got in mine)}
        table[route] |= dict(sorted(faults.items()))
    return table


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="bench.sweep", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--profile", default="nano-qwen3")
    parser.add_argument("--server", choices=("gateway", "stock"), default="gateway")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    side = side_of(compare_arguments(["--profile", args.profile, "--a", args.server]), "a")
    routes = ROUTES if args.server == "gateway" else ROUTES[1:]
    with servers.running(side):
        model = httpx.get(f"{side.url}/v1/models", timeout=30).json()["data"][0]["id"]
        rows = asyncio.run(sweep(side.url, model, routes))
    result = {
        "arguments": {name: str(value) for name, value in vars(args).items()},
        "environment": environment(),
        "summary": summary(rows),
        "examples": [dataclasses.asdict(got) for got in rows if got.faults()][:5],
    }
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    sys.stdout.write(json.dumps(result["summary"], indent=1) + "\n")


if __name__ == "__main__":
    main()
