"""The native routes, on the real engine."""

import json
from typing import Any

import httpx
import pytest

from tests.service.server import DEMO, NANO


def events(http: httpx.Client, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The stream's events; checks its form on the way."""
    with http.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        blocks = "".join(response.iter_text()).strip().split("\n\n")
    assert blocks.pop() == "data: [DONE]"
    told = []
    for number, block in enumerate(blocks):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        told.append(event)
    return told


def deltas(told: list[dict[str, Any]], kind: str) -> str:
    return "".join(event["delta"] for event in told if event["type"] == kind)


def within(told: dict[str, Any]) -> bool:
    """A thought that never ends is ended at its budget, or at a sentence's end in its last tenth."""
    applied = told["budget"]["applied"]
    return bool(0.9 * applied <= told["reasoning"]["tokens"] <= applied)


def test_the_seed_call_of_generate_works_as_written(http: httpx.Client) -> None:
    body = {"prompt": "什么是AES加密算法？", "max_length": 200, "temperature": 0.7, "seed": 1}

    response = http.post("/generate", json=body)

    told = response.json()
    assert response.status_code == 200, told
    assert told["text"] and told["model"] == DEMO
    assert 0 < told["usage"]["completion_tokens"] <= 200
    assert told["generation_time_s"] > 0 and told["tokens_per_second"] > 0


def test_the_seed_call_of_thinking_works_as_written(http: httpx.Client) -> None:
    body = {
        "question": "RSA和AES的区别是什么？",
        "thinking_depth": 3,
        "include_reasoning": True,
        "seed": 1,
    }

    response = http.post("/thinking", json=body)

    told = response.json()
    assert response.status_code == 200, told
    assert told["answer"].strip() and told["reasoning"]["text"].strip()
    assert told["reasoning"]["tokens"] <= told["budget"]["applied"]


def test_generate_streams_to_the_plain_text(http: httpx.Client) -> None:
    body = {"prompt": "The capital of France is", "max_tokens": 24, "temperature": 0}
    plain = http.post("/generate", json=body).json()

    told = events(http, "/generate", body)

    final = told[-1]["response"]
    assert told[-1]["type"] == "generate.completed"
    assert deltas(told, "generate.delta") == final["text"] == plain["text"]
    assert final["usage"]["total_tokens"] == plain["usage"]["total_tokens"]
    assert set(final) == set(plain)


def test_generate_takes_messages_and_says_paris(http: httpx.Client) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    told = http.post("/generate", json={"messages": messages, "do_sample": False}).json()

    assert "Paris" in told["text"]
    assert told["finish_reason"] == "stop"


def test_generate_takes_sglangs_form(http: httpx.Client) -> None:
    body = {"text": "1, 2, 3,", "sampling_params": {"max_new_tokens": 4, "temperature": 0}}

    told = http.post("/generate", json=body).json()

    assert told["usage"]["completion_tokens"] == 4


def test_sampling_settings_reach_the_engine(http: httpx.Client) -> None:
    ask = {"prompt": "Once upon a time", "max_tokens": 16, "temperature": 1.5}
    first, again, other = (
        http.post("/generate", json={**ask, "seed": seed}).json()["text"] for seed in (1, 1, 2)
    )
    stopped = http.post(
        "/generate",
        json={"prompt": "1 2 3 4 5 6 7", "max_tokens": 50, "temperature": 0, "stop": "9"},
    ).json()

    assert first == again != other
    assert stopped["finish_reason"] == "stop" and "9" not in stopped["text"]


def test_several_choices_with_logprobs(http: httpx.Client) -> None:
    told = http.post(
        "/generate",
        json={"prompt": "A", "n": 2, "max_tokens": 3, "logprobs": 2, "model": NANO},
    ).json()

    assert [choice["index"] for choice in told["choices"]] == [0, 1]
    assert all(len(choice["logprobs"]) == 3 for choice in told["choices"])
    assert told["usage"]["completion_tokens"] == 6


def test_a_default_length_shrinks_to_the_context_and_an_explicit_one_is_refused(
    http: httpx.Client,
) -> None:
    context = http.get(f"/v1/models/{NANO}").json()["max_model_len"]
    body = {"prompt": "word " * (context - 100), "model": NANO}
    fits = http.post("/generate", json=body)
    refused = http.post("/generate", json={**body, "max_tokens": 4000})
    too_long = http.post("/generate", json={**body, "prompt": body["prompt"] * 2})

    assert fits.status_code == 200, fits.text
    assert refused.status_code == 400
    assert refused.json()["param"] == "max_tokens" and "4000" in refused.json()["detail"]
    assert too_long.status_code == 400 and str(context) in too_long.json()["detail"]


@pytest.mark.parametrize("model", [DEMO, NANO])
def test_thinking_streams_to_the_plain_body(http: httpx.Client, model: str) -> None:
    body = {"question": "What is 2+2?", "model": model, "max_tokens": 120, "temperature": 0}

    told = events(http, "/thinking", body)

    final = told[-1]["response"]
    assert told[0]["type"] == "thinking.created" and told[-1]["type"] == "thinking.completed"
    assert deltas(told, "thinking.answer.delta") == final["answer"]
    assert deltas(told, "thinking.reasoning.delta") == final["reasoning"]["text"]
    assert final["answer"].strip()
    plain = http.post("/thinking", json=body).json()
    assert set(plain) == set(final)


@pytest.mark.parametrize("depth", [0, 1, "low", 3, "high", 5])
def test_a_thinker_that_never_ends_is_ended_within_its_budget(
    http: httpx.Client, depth: int | str
) -> None:
    ask = {"question": "Why?", "model": NANO, "thinking_depth": depth, "max_tokens": 160}

    told = http.post("/thinking", json=ask).json()

    usage, details = told["usage"], told["usage"]["completion_tokens_details"]
    assert told["answer"].strip()
    assert told["reasoning"]["tokens"] == details["reasoning_tokens"]
    assert within(told)
    assert told["reasoning"]["end_reason"] == ("skipped" if depth == 0 else "budget")
    assert usage["completion_tokens"] == sum(details.values()) <= 160


def test_an_explicit_budget_beats_the_depth_and_clamping_is_told(http: httpx.Client) -> None:
    ask = {"question": "Why?", "model": NANO, "max_tokens": 200}
    exact = http.post("/thinking", json={**ask, "thinking_budget": 17}).json()
    clamped = http.post("/thinking", json={**ask, "thinking_budget": 190}).json()

    assert exact["budget"]["applied"] == 17 and within(exact)
    assert exact["budget"]["requested"] == 17 and exact["budget"]["clamped"] is False
    assert clamped["budget"]["clamped"] is True
    assert clamped["budget"]["applied"] < 190 and within(clamped)


def test_include_reasoning_false_only_hides(http: httpx.Client) -> None:
    ask = {"question": "Why?", "model": NANO, "max_tokens": 100, "include_reasoning": False}

    plain = http.post("/thinking", json=ask).json()
    told = events(http, "/thinking", ask)

    assert "text" not in plain["reasoning"] and plain["reasoning"]["tokens"] > 0
    assert not deltas(told, "thinking.reasoning.delta")


def test_a_stop_string_binds_the_answer_not_the_thought(http: httpx.Client) -> None:
    ask = {"question": "Explain how a letter is sent.", "temperature": 0, "max_tokens": 300}

    told = http.post("/thinking", json={**ask, "stop": "."}).json()

    assert "." in told["reasoning"]["text"]
    assert told["answer"].strip() and "." not in told["answer"]


def test_a_batch_keeps_order_and_isolates_a_bad_item(http: httpx.Client) -> None:
    body = {
        "requests": [
            {"prompt": "The capital of France is"},
            {"prompt": "x", "max_tokens": 0},
            {"prompt": "2 + 2 =", "model": "nobody"},
            {"messages": [{"role": "user", "content": "What is the capital of France?"}]},
            "not an object",
        ],
        "max_tokens": 12,
        "temperature": 0,
    }

    response = http.post("/batch_generate", json=body)

    told = response.json()
    first, zero, nobody, chat, text = told["results"]
    assert response.status_code == 200
    assert "Paris" in first["text"] and "Paris" in chat["text"]
    assert zero["status"] == 400 and zero["param"] == "max_tokens"
    assert nobody["status"] == 404 and nobody["code"] == "model_not_found"
    assert text["status"] == 400
    assert (told["stats"]["total"], told["stats"]["succeeded"], told["stats"]["failed"]) == (
        5,
        2,
        3,
    )
    assert told["usage"]["completion_tokens"] <= 24


def test_a_streamed_batch_sends_each_result_once(http: httpx.Client) -> None:
    prompts = [f"{number} +" for number in range(8)]

    told = events(http, "/batch_generate", {"prompts": prompts, "max_tokens": 4, "temperature": 0})

    results = {event["index"]: event["result"] for event in told[:-1]}
    assert sorted(results) == list(range(8)) and len(told) == 9
    assert told[-1]["response"]["results"] == [results[index] for index in range(8)]


def test_health_and_stats_say_what_is(http: httpx.Client) -> None:
    http.post("/generate", json={"prompt": "a", "max_tokens": 2})

    health, stats = http.get("/health").json(), http.get("/stats").json()

    assert http.get("/health/live").status_code == 200
    assert health["status"] == "ready"
    assert [model["state"] for model in health["models"]] == ["ready", "ready"]
    assert health["memory"]["available_bytes"] > 0
    assert stats["requests"]["by_route"]["/generate"]["ok"] >= 1
    assert stats["latency_s"]["p50"] > 0 and stats["uptime_s"] > 0
    assert stats["models"][DEMO]["generation_tokens"] > 0
