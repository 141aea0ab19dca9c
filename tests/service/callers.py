"""Callers that keep a gateway busy, each answer of theirs looked at: whole, or it counts as a failure."""

import itertools
import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from tests.service.server import PATIENCE_S, START_S, Gateway, wait_for

CHAT = {"messages": [{"role": "user", "content": "Say something."}]}


@dataclass(frozen=True)
class Kind:
    """A route, its body, and what makes an answer whole. Raises AssertionError or KeyError if it is not."""

    path: str
    body: dict[str, Any]
    check: Callable[[dict[str, Any]], object]
    check_stream: Callable[[list[dict[str, Any]]], object]


def _chat(body: dict[str, Any]) -> None:
    (choice,) = body["choices"]
    assert choice["message"]["content"].strip() and choice["finish_reason"], body


def _chat_stream(events: list[dict[str, Any]]) -> None:
    choices = [choice for event in events for choice in event["choices"]]
    assert "".join(c["delta"].get("content") or "" for c in choices).strip(), events
    assert choices[-1]["finish_reason"], events


def _generate(body: dict[str, Any]) -> None:
    assert body["usage"]["completion_tokens"] == 12, body


def _generate_stream(events: list[dict[str, Any]]) -> None:
    assert events[-1]["type"] == "generate.completed", events
    _generate(events[-1]["response"])


def _thinking(body: dict[str, Any]) -> None:
    assert body["answer"].strip() and body["reasoning"]["end_reason"], body


def _thinking_stream(events: list[dict[str, Any]]) -> None:
    assert events[-1]["type"] == "thinking.completed", events
    _thinking(events[-1]["response"])


KINDS = (
    Kind("/v1/chat/completions", {**CHAT, "max_tokens": 16}, _chat, _chat_stream),
    Kind(
        "/generate",
        {"prompt": "Once upon a time", "max_tokens": 12, "temperature": 0, "stop": []},
        _generate,
        _generate_stream,
    ),
    Kind(
        "/thinking",
        {"question": "What is 2 + 3?", "max_tokens": 48, "thinking_budget": 12},
        _thinking,
        _thinking_stream,
    ),
)


class Callers:
    """`with Callers(gateway, 8) as callers:` calls without a pause until the block ends."""

    def __init__(self, gateway: Gateway, model: str, n: int = 8) -> None:
        self.gateway = gateway
        self.model = model
        self.stop = threading.Event()
        self.served: Counter[str] = Counter()  # format -> whole answers
        self.failures: list[str] = []
        self.lock = threading.Lock()
        self.threads = [
            threading.Thread(target=self._call, args=(i,), daemon=True) for i in range(n)
        ]

    def __enter__(self) -> "Callers":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(START_S)
        assert not any(thread.is_alive() for thread in self.threads), "a caller hangs"

    def wait_for_one_more(self, name: str) -> None:
        """An answer in that format that is not here yet."""
        so_far = self.served[name]
        wait_for(
            lambda: self.served[name] > so_far, PATIENCE_S, f"an answer in {name}; {self.failures}"
        )

    def _call(self, number: int) -> None:
        """Kinds in turn, every other caller streams."""
        with httpx.Client(base_url=self.gateway.url, timeout=START_S) as client:
            for kind in itertools.islice(itertools.cycle(KINDS), number, None):
                if self.stop.is_set():
                    return
                self._one(client, kind, stream=number % 2 == 0)

    def _one(self, client: httpx.Client, kind: Kind, stream: bool) -> None:
        body = {**kind.body, "model": self.model, "stream": stream}
        told = f"{kind.path} stream={stream}"
        try:
            response = client.post(kind.path, json=body)
            assert response.status_code == 200, f"{response.status_code} {response.text}"
            if stream:
                assert response.text.endswith("data: [DONE]\n\n"), response.text[-300:]
                kind.check_stream(_events(response.text))
            else:
                kind.check(response.json())
        except (httpx.TransportError, AssertionError, KeyError, ValueError) as error:
            with self.lock:
                self.failures.append(f"{told}: {error!r}")
            return
        with self.lock:
            self.served[response.headers["x-model-format"]] += 1


def _events(text: str) -> list[dict[str, Any]]:
    data = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in data if line != "[DONE]"]
