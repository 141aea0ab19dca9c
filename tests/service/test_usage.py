"""With a real engine: a usage row is what the caller was told; a hang-up is counted to its last token."""

import functools
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.policy import keyfile
from gateway.policy.keyfile import KeysFile, TenantEntry
from tests.service.server import DEMO, PATIENCE_S, Gateway, wait_for
from tests.service.test_hangups import call

CHAT = {"model": DEMO, "messages": [{"role": "user", "content": "Say hi"}], "max_tokens": 120}
ENDLESS = {"max_tokens": 1500, "ignore_eos": True}
STORY = {"model": DEMO, "messages": [{"role": "user", "content": "Tell a very long story"}]}


class Accounted:
    """A gateway with one tenant, and its usage rows."""

    def __init__(self, gateway: Gateway, key: str, database: Path) -> None:
        self.gateway, self.key, self.database = gateway, key, database
        self.client = httpx.Client(
            base_url=gateway.url, headers={"authorization": f"Bearer {key}"}, timeout=PATIENCE_S
        )

    def row(self, request_id: str) -> dict[str, Any]:
        """Written within a second or so after the request is over."""
        found: list[dict[str, Any]] = []

        def written() -> bool:
            connection = sqlite3.connect(self.database)
            connection.row_factory = sqlite3.Row
            query = "select * from gateway_usage where request_id = ?"
            with (
                closing(connection),
                suppress(sqlite3.OperationalError),
            ):  # no table before the first row
                found.extend(dict(row) for row in connection.execute(query, (request_id,)))
            return bool(found)

        wait_for(written, PATIENCE_S, f"a usage row of {request_id}")
        assert len(found) == 1
        return found[0]


@pytest.fixture(scope="module")
def accounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Accounted]:
    folder = tmp_path_factory.mktemp("accounted")
    key, entry = keyfile.new_key("a", False, None)
    keyfile.write(folder / "keys.yaml", KeysFile(tenants={"a": TenantEntry()}, keys=(entry,)))
    settings = {"keys_file": folder / "keys.yaml", "state_dir": folder, "metrics_open": True}
    with Gateway(folder / "serve.log", "demo", **settings) as gateway:
        found = Accounted(gateway, key, folder / "usage.db")
        with found.client:
            yield found


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"prompt": "One two", "max_tokens": 20, "n": 2}),
        ("/thinking", {"question": "2+2?", "max_tokens": 200, "samples": 2, "confidence": "full"}),
        ("/batch_generate", {"prompts": ["One", "Two"], "max_tokens": 10}),
        ("/v1/completions", {"model": DEMO, "prompt": ["One", "Two"], "max_tokens": 10, "n": 2}),
        ("/v1/chat/completions", {**CHAT, "n": 2}),
        ("/v1/chat/completions", {**CHAT, "reasoning_effort": "high"}),
        ("/v1/chat/completions", {**CHAT, "thinking_budget": 10}),
        ("/v1/messages", {**CHAT, "thinking": {"type": "disabled"}}),
        ("/v1/responses", {"model": DEMO, "input": "Say hi", "max_output_tokens": 120}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_row_has_the_tokens_that_the_caller_was_told(
    accounted: Accounted, path: str, body: dict[str, Any]
) -> None:
    answer = accounted.client.post(path, json=body)

    assert answer.status_code == 200, answer.text
    told, row = answer.json()["usage"], accounted.row(answer.headers["x-request-id"])
    prompt = told.get("prompt_tokens", told.get("input_tokens"))
    output = told.get("completion_tokens", told.get("output_tokens"))
    assert row["prompt_tokens"] == prompt
    assert row["thinking_tokens"] + row["answer_tokens"] == output
    details = told.get("completion_tokens_details") or told.get("output_tokens_details") or {}
    assert details.get("reasoning_tokens", row["thinking_tokens"]) == row["thinking_tokens"]
    assert (row["outcome"], row["model"]) == ("ok", DEMO)
    assert row["format"] == answer.headers["x-model-format"]


def test_a_stream_has_the_tokens_that_its_last_chunk_told(accounted: Accounted) -> None:
    body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    answer = accounted.client.post("/v1/chat/completions", json=body)

    chunks = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
    told, row = json.loads(chunks[-1])["usage"], accounted.row(answer.headers["x-request-id"])
    assert row["prompt_tokens"] == told["prompt_tokens"]
    assert row["thinking_tokens"] + row["answer_tokens"] == told["completion_tokens"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"prompt": "1, 2, 3, 4,", "max_tokens": 1500, "temperature": 0}),
        (
            "/v1/completions",
            {"model": DEMO, "prompt": "Once", "max_tokens": 1500, "ignore_eos": True},
        ),
        ("/v1/chat/completions", {**STORY, **ENDLESS, "thinking_depth": 0}),
        ("/v1/chat/completions", {**STORY, **ENDLESS, "thinking_budget": 1000}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_stream_that_is_hung_up_on_is_counted_as_far_as_it_came(
    accounted: Accounted, path: str, body: dict[str, Any]
) -> None:
    seen = 0
    with accounted.client.stream("POST", path, json={**body, "stream": True}) as answer:
        for line in answer.iter_lines():
            seen += line.startswith("data: ")
            if seen == 30:
                break

    row = accounted.row(answer.headers["x-request-id"])
    assert row["outcome"] == "disconnected"
    assert row["prompt_tokens"] > 0
    assert 20 <= row["thinking_tokens"] + row["answer_tokens"] < 1500


def test_a_plain_request_that_is_hung_up_on_is_counted_too(accounted: Accounted) -> None:
    """Nobody was told anything, and the engine worked all the same."""
    body = {**STORY, "max_tokens": 1500, "thinking_depth": 0, "min_tokens": 1500}
    headers = {"x_request_id": "left-early", "authorization": f"Bearer {accounted.key}"}
    drawn = functools.partial(accounted.gateway.metric, "vllm:generation_tokens_total", DEMO)
    before = drawn()
    with call(accounted.gateway, "/v1/chat/completions", body, **headers):
        wait_for(lambda: drawn() > before, PATIENCE_S, "a token")

    row = accounted.row("left-early")
    assert (row["outcome"], row["status"]) == ("disconnected", 0)
    assert 0 < row["answer_tokens"] < 1500
