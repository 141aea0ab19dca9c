"""One request of the soak: sent, read to its end or left on purpose, and judged."""

import asyncio
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from bench.load import percentile

LONGEST_STAY_S = 2.0  # of one that hangs up
QUESTION = "What is the sum of 17 and 25, and why?"
MESSAGES = [{"role": "user", "content": QUESTION}]
# Route -> a body; `stream` is added by turns.
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 32, "reasoning_effort": "low"},
    "/v1/completions": {"prompt": "Once upon a time", "max_tokens": 24},
    "/v1/responses": {"input": QUESTION, "max_output_tokens": 32, "store": False},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 32},
    "/generate": {"prompt": "Once upon a time", "max_tokens": 24},
    "/thinking": {"question": QUESTION, "max_tokens": 64, "thinking_budget": 24, "samples": 2},
    "/batch_generate": {"prompts": ["One", "Two", "Three"], "max_tokens": 12},
}
# What the last event of a whole stream holds.
ENDS = ("[DONE]", '"message_stop"', '"response.completed"')


@dataclass(frozen=True, slots=True)
class Answer:
    """`what`: answered, refused, left (we hung up) or lost. Seconds on `time.monotonic`."""

    route: str
    what: str
    reason: str  # of a refusal or a loss
    began: float
    ended: float


class Caller:
    """Sends requests of all kinds, for tenants in turn."""

    def __init__(
        self, session: aiohttp.ClientSession, keys: Sequence[str], dice: random.Random
    ) -> None:
        self.session = session
        self.keys = keys
        self.dice = dice
        self.model = ""

    async def call(self, hang_up: bool) -> Answer:
        """One request; never raises for what a server did."""
        route = self.dice.choice(list(BODIES))
        body = BODIES[route] | {"stream": self.dice.random() < 0.5}
        headers = {"Authorization": f"Bearer {self.dice.choice(self.keys)}"}
        if route.startswith("/v1"):
            body["model"] = await self._model(headers)
        stay_s = self.dice.uniform(0, LONGEST_STAY_S) if hang_up else None
        began = time.monotonic()
        try:
            async with asyncio.timeout(stay_s):
                what, reason = await self._exchange(route, body, headers)
        except TimeoutError:
            what, reason = ("left", "") if hang_up else ("lost", "no answer in time")
        except aiohttp.ClientError as error:
            what, reason = "lost", type(error).__name__
        return Answer(route, what, reason, began, time.monotonic())

    async def _model(self, headers: dict[str, str]) -> str:
        if not self.model:
            async with self.session.get("/v1/models", headers=headers) as response:
                self.model = (await response.json())["data"][0]["id"]
        return self.model

    async def _exchange(
        self, route: str, body: dict[str, Any], headers: dict[str, str]
    ) -> tuple[str, str]:
        async with self.session.post(route, json=body, headers=headers) as response:
            text = await response.text()
            if response.status != 200:
                return _refused(response.status, text)
            if body["stream"]:
                return _stream(text)
            return _plain(json.loads(text))


def _refused(status: int, text: str) -> tuple[str, str]:
    """Whoever is refused is told why, in JSON with a code or a type."""
    try:
        told = json.loads(text)
        told = told.get("error", told)
        reason = told.get("code") or told.get("type") or ""
    except (ValueError, AttributeError):
        return "lost", f"http {status} without a reason"
    return ("refused", f"{status} {reason}") if reason else ("lost", f"http {status}: {text[:80]}")


def _stream(text: str) -> tuple[str, str]:
    data = [line[5:].strip() for line in text.splitlines() if line.startswith("data:")]
    for line in data:
        if ('"error"' in line or '.failed"' in line) and (failure := _failed(line)):
            return failure
    if data and any(end in line for line in data[-2:] for end in ENDS):
        return "answered", ""
    return "lost", "cut off without a word"


def _failed(line: str) -> tuple[str, str] | None:
    """The reason of an error event; None: it is none. In a batch it is one item's."""
    told = json.loads(line)
    response = told.get("response") or told.get("result") or {}
    inner = told.get("error") or response.get("error")
    if str(told.get("type")).endswith(".failed"):
        inner = inner or response
    if not inner:
        return None
    reason = inner.get("code") or inner.get("type")
    return ("refused", f"in the stream: {reason}") if reason else ("lost", f"failed: {line[:80]}")


def _plain(body: dict[str, Any]) -> tuple[str, str]:
    for item in body.get("results", ()):
        if "error" in item or ("status" in item and isinstance(item["status"], int)):
            told = item.get("error", item)
            return "refused", f"in the batch: {told.get('code')}"
    return "answered", ""


def tally(answers: Sequence[Answer]) -> dict[str, Any]:
    """Counts, by what became of them and by route."""
    by_route: dict[str, Counter[str]] = defaultdict(Counter)
    for answer in answers:
        by_route[answer.route][answer.what] += 1
    times = sorted(each.ended - each.began for each in answers if each.what == "answered")
    return {
        "requests": len(answers),
        "outcomes": dict(Counter(answer.what for answer in answers)),
        "refusals": dict(Counter(each.reason for each in answers if each.what == "refused")),
        "losses": dict(Counter(each.reason for each in answers if each.what == "lost")),
        "by_route": {route: dict(counts) for route, counts in by_route.items()},
        "e2e_s": {f"p{share}": round(percentile(times, share), 3) for share in (50, 90, 99)},
    }
