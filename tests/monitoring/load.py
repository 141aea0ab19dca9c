"""Callers of every kind that dashboards tell apart, without a pause until they are stopped."""

import itertools
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

import httpx

from tests.service.server import PATIENCE_S, Gateway, wait_for
from tests.tenants import bearer

CHAT = {"messages": [{"role": "user", "content": "Say something."}], "max_tokens": 24}
QUESTION = {"question": "What is 2 + 3?", "max_tokens": 64, "thinking_budget": 16}
PROMPT = {"prompt": "Once upon a time", "max_tokens": 24, "temperature": 0, "stop": []}
# Before the next call: a refusal takes no time, and an engine that is being rebuilt needs the cores.
REFUSED_S = 0.2
# Path, body; the last two are refused.
KINDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/generate", PROMPT),
    ("/generate", {**PROMPT, "stream": True}),
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", {**CHAT, "stream": True}),
    ("/thinking", {**QUESTION, "confidence": "auto"}),
    ("/thinking", {**QUESTION, "stream": True}),
    ("/generate", {"prompt": 7}),
    ("/nowhere", {}),
)


class Load:
    """`with Load(gateway, keys):` calls with the key of each tenant; whatever the answer is, it goes on."""

    def __init__(self, gateway: Gateway, keys: Mapping[str, str]) -> None:
        self.url = gateway.url
        self.stop = threading.Event()
        self.statuses: Counter[int] = Counter()
        self.threads = [
            threading.Thread(target=self._call, args=(number, key), daemon=True)
            for number, key in enumerate(keys.values())
        ]

    def __enter__(self) -> "Load":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(PATIENCE_S)
        assert not any(thread.is_alive() for thread in self.threads), "a caller hangs"

    def wait_for(self, *statuses: int) -> None:
        """An answer with each of these."""
        wait_for(
            lambda: all(self.statuses[status] for status in statuses),
            PATIENCE_S,
            f"answers {statuses}, had {self.statuses}",
        )

    def _call(self, number: int, key: str) -> None:
        with httpx.Client(base_url=self.url, headers=bearer(key), timeout=PATIENCE_S) as client:
            for path, body in itertools.islice(itertools.cycle(KINDS), number, None):
                status = self._one(client, path, body)
                if self.stop.wait(0 if status == 200 else REFUSED_S):
                    return

    def _one(self, client: httpx.Client, path: str, body: dict[str, Any]) -> int:
        try:
            status = client.post(path, json=body).status_code
        except httpx.TransportError:  # the engine died in the middle of a stream
            status = 0
        self.statuses[status] += 1
        return status
