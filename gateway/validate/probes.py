"""Every route, plain and streamed: what is sent, and what makes an answer whole."""

import json
import uuid
from collections.abc import AsyncIterable, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from gateway.validate.target import Target
from gateway.web import PUBLIC_FILES

Body = dict[str, Any]
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
START = {"prompt": "Once upon a time", "max_tokens": 12, "temperature": 0}
LONG = {"question": "Why are there infinitely many primes?", "thinking_budget": 224}


class Flaw(Exception):
    """The answer is not what is documented."""


@dataclass(frozen=True, slots=True)
class Route:
    """A route that answers with JSON. `says` finds in the body what must not be empty."""

    path: str
    says: Callable[[Body], object]
    body: Body | None = None  # None: GET
    piece: Callable[[Body], object] | None = None  # the text in one event; None: not streamed
    end: str = "[DONE]"  # what the last event has in it

    @property
    def name(self) -> str:
        return f"{'GET' if self.body is None else 'POST'} {self.path}"

    async def plain(self, target: Target) -> str:
        """Ask; a short word on the answer. Raises Flaw."""
        if self.body is None:
            response = await target.client.get(self.path.replace("{model}", target.model))
        else:
            response = await target.client.post(self.path, json=self._body(target))
        served(response)
        if "x-request-id" not in response.headers:
            raise Flaw("no X-Request-Id")
        said = self.says(response.json()) if response.content else True
        if not said:
            raise Flaw(f"nothing in the answer: {response.text[:200]}")
        return str(response.status_code)

    async def streamed(self, target: Target) -> str:
        """Ask for a stream; how many pieces came. Raises Flaw."""
        body = {**self._body(target), "stream": True}
        response = await target.client.post(self.path, json=body)
        served(response)
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            raise Flaw(f"content-type is {response.headers.get('content-type')}")
        if self.end not in response.text.rstrip().rsplit("\n\n", 1)[-1]:
            raise Flaw(f"does not end with {self.end}: {response.text[-200:]}")
        assert self.piece is not None
        pieces = [self.piece(event) for event in events(response.text)]
        if not any(pieces):
            raise Flaw("no text in the stream")
        return f"{sum(map(bool, pieces))} pieces"

    def _body(self, target: Target) -> Body:
        return {"model": target.model, **(self.body or {})}


def served(response: httpx.Response) -> None:
    """Raises Flaw for another status than 200."""
    if response.status_code != 200:
        raise Flaw(f"{response.status_code}: {response.text[:200]}")


async def docs(target: Target) -> str:
    """The list of routes for people. Raises Flaw."""
    response = await target.client.get("/docs")
    served(response)
    if "/openapi.json" not in response.text:
        raise Flaw("it does not show /openapi.json")
    return "200"


async def page(target: Target) -> str:
    """The page and all its files, or none of them (GATEWAY_PAGE=false). Raises Flaw."""
    front = await target.client.get("/")
    if front.status_code == 404 and front.json().get("code") == "not_found":
        return "off"
    if not front.headers.get("content-type", "").startswith("text/html"):
        raise Flaw(f"/: {front.status_code}, {front.headers.get('content-type')}")
    for path in PUBLIC_FILES:
        response = await target.client.get(path)
        if response.status_code != 200 or not response.content:
            raise Flaw(f"{path}: {response.status_code}")
    return f"{len(PUBLIC_FILES)} files"


async def answered_now(target: Target) -> str:
    """A thought that runs is told to end; how it ended. Raises Flaw."""
    request_id = f"validate-{uuid.uuid4().hex}"
    body = {"model": target.model, **LONG, "max_tokens": 256, "stream": True}
    headers = {"x-request-id": request_id}
    async with target.client.stream("POST", "/thinking", json=body, headers=headers) as response:
        if response.status_code != 200:
            raise Flaw(f"{response.status_code}: {(await response.aread())[:200]!r}")
        return await _told_to_answer(target, request_id, response.aiter_lines())


async def _told_to_answer(target: Target, request_id: str, lines: AsyncIterable[str]) -> str:
    phase, reason = "", None
    async for line in lines:
        for event in events(line):
            if not phase:  # the first event: it runs
                told = await target.client.post(f"/thinking/{request_id}/answer_now")
                served(told)
                phase = str(told.json()["phase"])
            if event["type"] == "thinking.completed":
                reason = event["response"]["reasoning"]["end_reason"]
    if reason is None:
        raise Flaw("the thought has no end")
    if (phase, reason) == ("thinking", "budget"):
        raise Flaw("it was told to answer, and thought on to its budget")
    return f"while {phase}; the thought ended by {reason}"


def events(text: str) -> Iterator[Body]:
    """The data of each server-sent event, `[DONE]` left out."""
    for line in text.splitlines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


def _of_type(kind: str, field: str = "delta") -> Callable[[Body], object]:
    return lambda event: event.get(field) if event.get("type") == kind else None


def _choices(event: Body) -> list[Body]:
    found: list[Body] = event.get("choices", [])
    return found


def _delta(event: Body) -> object:
    return "".join(each["delta"].get("content") or "" for each in _choices(event))


def _text(event: Body) -> object:
    return "".join(each["text"] for each in _choices(event))


def _response_text(body: Body) -> object:
    parts = [part for item in body["output"] for part in item.get("content") or ()]
    return "".join(part.get("text", "") for part in parts)


def _message_text(body: Body) -> object:
    return "".join(part.get("text", "") for part in body["content"])


def _message_delta(event: Body) -> object:
    return event.get("delta", {}).get("text") if event["type"] == "content_block_delta" else None


def _results(body: Body) -> object:
    return all(result.get("text") for result in body["results"]) and body["results"]


ROUTES = (
    Route("/health", lambda body: body["status"] == "ready"),
    Route("/health/live", lambda body: body["status"] == "alive"),
    Route("/health/ready", lambda body: body["status"] == "ready"),
    Route("/stats", lambda body: "requests" in body),
    Route("/v1/models", lambda body: body["data"]),
    Route("/v1/models/{model}", lambda body: body["id"]),
    Route("/version", lambda body: body["version"]),
    Route("/ping", lambda body: True),
    Route("/ping", lambda body: True, {}),
    Route("/openapi.json", lambda body: body["paths"]),
    Route("/thinking", lambda body: body["models"]),
    Route("/generate", lambda body: body["text"], START, _of_type("generate.delta")),
    Route(
        "/thinking",
        lambda body: body["answer"],
        {"question": "What is 2 + 3?", "max_tokens": 64, "thinking_budget": 16},
        _of_type("thinking.answer.delta"),
    ),
    Route(
        "/batch_generate",
        _results,
        {"prompts": ["Once upon a time", "The capital of France is"], "max_tokens": 8},
        _of_type("batch_generate.result", "result"),
    ),
    Route(
        "/v1/chat/completions",
        lambda body: body["choices"][0]["message"]["content"],
        {"messages": QUESTION, "max_tokens": 64, "reasoning_effort": "minimal"},
        _delta,
    ),
    Route("/v1/completions", _text, START, _text),
    Route(
        "/v1/responses",
        _response_text,
        {"input": "What is the capital of France?", "max_output_tokens": 64},
        _of_type("response.output_text.delta"),
        "response.completed",
    ),
    Route(
        "/v1/messages",
        _message_text,
        {"messages": QUESTION, "max_tokens": 64},
        _message_delta,
        "message_stop",
    ),
    Route("/v1/messages/count_tokens", lambda body: body["input_tokens"], {"messages": QUESTION}),
    Route("/tokenize", lambda body: body["tokens"], {"prompt": "Once upon a time"}),
    Route("/detokenize", lambda body: body["prompt"], {"tokens": [100, 101]}),
)
# What one question and its answer do not show.
OTHERS: tuple[tuple[str, Callable[[Target], Awaitable[str]]], ...] = (
    ("GET /docs", docs),
    ("GET / and /page/*", page),
    ("POST /thinking/{request_id}/answer_now", answered_now),
)
