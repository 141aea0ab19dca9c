"""The promise: a thinking request that returns 200 has an answer. On the real engine, on every route."""

import itertools
import json
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from bench.sweep import cases, summary, sweep
from tests.service.server import DEMO, NANO, PATIENCE_S, Gateway, wait_for
from tests.service.test_native import deltas, events

# Far more than a test waits for.
ENDLESS = 30_000
WHY: Any = [{"role": "user", "content": "Why?"}]
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["n"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("model", [NANO, DEMO])
async def test_every_length_depth_and_route_has_an_answer(gateway: Gateway, model: str) -> None:
    got = await sweep(gateway.url, model)

    faulty = [one for one in got if one.faults()]
    assert faulty == [], summary(got)
    assert len(got) == len(list(cases())) == 576
    wait_for(lambda: gateway.idle(model), PATIENCE_S, "KV cache empty")


def test_effort_changes_how_long_it_thinks(client: openai.OpenAI) -> None:
    def thought(effort: Any) -> int:
        answer = client.chat.completions.create(
            model=NANO, messages=WHY, max_tokens=400, reasoning_effort=effort
        )
        assert answer.usage and answer.usage.completion_tokens_details
        assert answer.choices[0].message.content
        return answer.usage.completion_tokens_details.reasoning_tokens or 0

    assert thought("none") == 0 < thought("minimal") < thought("low") < thought("high")


def test_a_stream_shows_reasoning_then_content_under_both_names(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=NANO, messages=WHY, max_tokens=100, reasoning_effort="low", stream=True, seed=1
    )
    kinds, reasoning, content, told = [], "", "", None
    for chunk in stream:
        delta = chunk.choices[0].delta.model_dump(exclude_none=True)
        told = getattr(chunk.choices[0], "thinking", None) or told
        assert delta.get("reasoning") == delta.get("reasoning_content")
        kinds += [kind for kind in ("reasoning", "content") if delta.get(kind)]
        reasoning += delta.get("reasoning", "")
        content += delta.get("content", "")
    plain = client.chat.completions.create(
        model=NANO, messages=WHY, max_tokens=100, reasoning_effort="low", seed=1
    )

    assert kinds == sorted(kinds, reverse=True) and set(kinds) == {"reasoning", "content"}
    message = plain.choices[0].message.model_dump()
    assert (reasoning, content) == (message["reasoning"], message["content"])
    assert told == plain.choices[0].model_dump()["thinking"]
    assert told["forced"] is True and told["end_reason"] == "budget"


def test_include_reasoning_false_hides_and_nothing_else(http: httpx.Client) -> None:
    ask = {"model": NANO, "messages": WHY, "max_tokens": 100, "seed": 1, "temperature": 1}
    shown = http.post("/v1/chat/completions", json=ask).json()
    hidden = http.post("/v1/chat/completions", json={**ask, "include_reasoning": False}).json()

    message = hidden["choices"][0]["message"]
    assert message["content"] == shown["choices"][0]["message"]["content"]
    assert "reasoning" not in message and "reasoning_content" not in message
    assert (
        hidden["usage"]["completion_tokens_details"]
        == (shown["usage"]["completion_tokens_details"])
    )


@pytest.mark.parametrize("hidden", [False, True])
def test_json_behind_a_thought_is_json(client: openai.OpenAI, hidden: bool) -> None:
    shape: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
    answer = client.chat.completions.create(
        model=DEMO,
        messages=[{"role": "user", "content": "How many legs has a spider?"}],
        max_tokens=300,
        temperature=0,
        reasoning_effort="low",
        response_format=shape,
        extra_body={"include_reasoning": not hidden},
    )

    assert 0 <= json.loads(answer.choices[0].message.content or "")["n"] <= 99
    assert answer.model_dump()["choices"][0]["thinking"]["tokens"] > 0


def test_a_stop_string_inside_the_thought_does_not_end_it(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=NANO, messages=WHY, max_tokens=300, stop=["e"], reasoning_effort="high", seed=2
    )

    said = answer.model_dump()["choices"][0]
    assert "e" in said["message"]["reasoning"]
    assert said["message"]["content"].strip() and "e" not in said["message"]["content"]


def test_n_completions_each_think_and_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=NANO, messages=WHY, max_tokens=80, n=3, seed=5, temperature=1
    )

    said = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert all(said) and len(set(said)) == 3


def test_the_responses_route_has_a_reasoning_item_and_a_message(client: openai.OpenAI) -> None:
    answer = client.responses.create(
        model=NANO, input="Why?", max_output_tokens=120, reasoning={"effort": "low"}
    )

    assert [item.type for item in answer.output] == ["reasoning", "message"]
    assert answer.output_text.strip()
    assert answer.model_dump()["thinking"]["budget"]["applied"] > 0


def test_anthropics_thinking_comes_before_its_text(claude: anthropic.Anthropic) -> None:
    answer = claude.messages.create(
        model=NANO,
        max_tokens=1200,
        messages=[{"role": "user", "content": "Why?"}],
        thinking={"type": "enabled", "budget_tokens": 1024},
    )
    quick = claude.messages.create(
        model=NANO, max_tokens=50, messages=WHY, thinking={"type": "disabled"}
    )

    assert [part.type for part in answer.content] == ["thinking", "text"]
    assert [part.type for part in quick.content] == ["text"]


@pytest.mark.parametrize("field", ["reasoning_effort", "thinking_depth", "thinking_budget"])
def test_a_wish_that_is_none_is_a_400_with_the_field(http: httpx.Client, field: str) -> None:
    ask = {"model": NANO, "messages": WHY, field: "a lot"}

    refused = http.post("/v1/chat/completions", json=ask)

    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == field and "a lot" in refused.text


@pytest.mark.parametrize("route", ["/thinking", "/v1/chat/completions"])
def test_answer_now_ends_the_thought_of_a_running_request(http: httpx.Client, route: str) -> None:
    asked = {"question": "Why?"} if route == "/thinking" else {"messages": WHY}
    body = {"model": NANO, **asked, "max_tokens": ENDLESS, "stream": True, "thinking_depth": 5}
    named = {"x-request-id": "hurry-up"}
    with http.stream("POST", route, json=body, headers=named) as response:
        chunks = response.iter_text()
        text = next(chunks)
        told = httpx.post(f"{http.base_url}/thinking/hurry-up/answer_now", timeout=PATIENCE_S)
        # What is left of max_tokens is the answer's; the test need not wait for it.
        for chunk in chunks:
            text += chunk
            if '"content":' in text or "thinking.answer.delta" in text:
                break

    assert told.status_code == 200 and told.json()["phase"] in ("waiting", "thinking")
    assert http.post("/thinking/nobody/answer_now").status_code == 404


def test_samples_vote_and_are_told(http: httpx.Client) -> None:
    body = {"question": "What is 2+2?", "samples": 3, "max_tokens": 80, "seed": 1}

    plain = http.post("/thinking", json=body).json()
    told = events(http, "/thinking", body)

    assert plain["answer"].strip() and len(plain["samples"]) == 3
    assert plain["answer"] in [sample["answer"] for sample in plain["samples"]]
    final = told[-1]["response"]
    assert deltas(told, "thinking.answer.delta") == final["answer"]
    assert len([event for event in told if event["type"] == "thinking.sample"]) == 3
    details = plain["usage"]["completion_tokens_details"]
    assert sum(details.values()) == plain["usage"]["completion_tokens"]


def test_hanging_up_on_samples_ends_all_of_them(gateway: Gateway, http: httpx.Client) -> None:
    body = {"question": "Why?", "model": NANO, "samples": 4, "stream": True}
    body |= {"max_tokens": ENDLESS, "thinking_depth": 5}
    with http.stream("POST", "/thinking", json=body) as response:
        chunks = response.iter_text()  # a generator that is let go hangs up
        next(chunks)
        wait_for(lambda: gateway.metric("vllm:num_requests_running", NANO) == 4, PATIENCE_S, "four")

    wait_for(lambda: gateway.idle(NANO), PATIENCE_S, "all ended")


def test_random_weights_are_not_confident(http: httpx.Client) -> None:
    told = http.post("/thinking", json={"question": "Why?", "model": NANO, "max_tokens": 200})

    confidence = told.json()["confidence"]
    assert confidence["score"] < 0.05 and confidence["calibrated"] is False
    assert confidence["components"]["token_entropy"] < 0.2


def test_the_model_can_be_asked_about_its_own_answer(http: httpx.Client) -> None:
    body = {"question": "What is 2+2?", "confidence": "full", "max_tokens": 100, "seed": 1}

    told = http.post("/thinking", json=body).json()

    verdict = told["confidence"]["components"]["p_true"]
    assert verdict is None or 0 <= verdict <= 1
    assert told["usage"]["completion_tokens_details"]["probe_tokens"] == 1


@pytest.mark.parametrize("mode", ["logprob", "probe"])
def test_early_exit_says_what_it_did(http: httpx.Client, mode: str) -> None:
    body = {"question": "What is 2+2?", "early_exit": mode, "max_tokens": 300, "seed": 3}

    told = http.post("/thinking", json=body).json()

    assert told["answer"].strip()
    assert told["early_exit"]["mode"] == mode
    assert told["early_exit"]["fired"] == (told["reasoning"]["end_reason"] == "early_exit")


def test_steps_cover_the_thoughts_tokens(http: httpx.Client) -> None:
    told = http.post(
        "/thinking", json={"question": "Plan a week.", "max_tokens": 400, "seed": 1}
    ).json()

    steps = told["reasoning"]["steps"]
    ends = [step["tokens"] for step in steps]
    assert ends[0][0] == 0 and ends[-1][1] == told["reasoning"]["tokens"]
    assert all(before[1] == after[0] for before, after in itertools.pairwise(ends))
    assert {check["status"] for check in told["validation"]["checks"]} <= {
        *("pass", "warn", "fail", "skip")
    }


def test_a_template_that_always_opens_a_thought_works_too(tmp_path: Path) -> None:
    """Qwen3-Thinking's prompt ends in <think>, whatever effort is asked for."""
    shipped = Path("engine_config/profiles/nano-qwen3.yaml").read_text(encoding="utf-8")
    always = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    (tmp_path / "always.jinja").write_text(always + "<|im_start|>assistant\n<think>\n")
    template = f"""vllm:
  chat_template:
    value: {tmp_path / "always.jinja"}
    reason: As Qwen3-Thinking has it.
    source: a test
"""
    profile = shipped.replace("name: nano-qwen3\n", "name: always\n", 1)
    (tmp_path / "always.yaml").write_text(profile.replace("vllm:\n", template, 1))
    with Gateway(tmp_path / "log", "always", profiles_dir=tmp_path) as gateway:
        url = f"{gateway.url}/v1/chat/completions"
        for effort in ("none", "low"):
            body = {"messages": WHY, "max_tokens": 100, "reasoning_effort": effort}
            told = httpx.post(url, json=body, timeout=PATIENCE_S).json()["choices"][0]
            assert told["message"]["content"].strip()
            assert bool(told["message"].get("reasoning")) == (effort == "low")
