"""The official openai SDK, pointed at the gateway, just works."""

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

from tests.service.server import DEMO, NANO

CAPITAL: list[ChatCompletionMessageParam] = [
    {"role": "user", "content": "What is the capital of France?"}
]
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
        },
    },
}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def test_chat_answers_from_the_real_model(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=DEMO, messages=CAPITAL, temperature=0, max_tokens=30
    )

    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.model == DEMO
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_streamed_chunks_make_the_plain_answer_and_tell_usage(client: openai.OpenAI) -> None:
    plain = client.chat.completions.create(
        model=DEMO, messages=CAPITAL, temperature=0, max_tokens=30
    )
    chunks = list(
        client.chat.completions.create(
            model=DEMO,
            messages=CAPITAL,
            temperature=0,
            max_tokens=30,
            stream=True,
            stream_options={"include_usage": True},
        )
    )

    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == plain.choices[0].message.content
    assert chunks[-1].usage is not None and plain.usage is not None
    assert chunks[-1].usage.completion_tokens == plain.usage.completion_tokens


def test_the_second_same_prompt_is_found_in_the_prefix_cache(client: openai.OpenAI) -> None:
    long: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say it. " * 200}]
    for _ in range(2):
        answer = client.chat.completions.create(model=DEMO, messages=long, max_tokens=1)

    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    assert (answer.usage.prompt_tokens_details.cached_tokens or 0) >= 128


def test_named_tool_choice_calls_that_tool_with_valid_arguments(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=DEMO,
        messages=[{"role": "user", "content": "How is the weather in Rome?"}],
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        temperature=0,
        max_tokens=100,
    )

    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert isinstance(json.loads(call.function.arguments)["city"], str)


def test_a_required_tool_is_called_streamed(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=DEMO,
        messages=[{"role": "user", "content": "How is the weather in Rome?"}],
        tools=[WEATHER],
        tool_choice="required",
        temperature=0,
        max_tokens=100,
        stream=True,
    )
    calls = [c for chunk in stream for c in (chunk.choices[0].delta.tool_calls or [])]

    assert "".join(c.function.name or "" for c in calls if c.function) == "get_weather"
    arguments = "".join(c.function.arguments or "" for c in calls if c.function)
    assert "city" in json.loads(arguments)


def test_tools_reach_the_prompt_of_a_model_whose_own_template_drops_them(
    client: openai.OpenAI,
) -> None:
    without = client.chat.completions.create(model=DEMO, messages=CAPITAL, max_tokens=1)
    with_tools = client.chat.completions.create(
        model=DEMO, messages=CAPITAL, max_tokens=1, tools=[WEATHER], tool_choice="auto"
    )

    assert without.usage is not None and with_tools.usage is not None
    assert with_tools.usage.prompt_tokens > without.usage.prompt_tokens + 20


def test_a_json_schema_is_kept(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=DEMO,
        messages=[{"role": "user", "content": "Invent a person."}],
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "person", "schema": PERSON, "strict": True},
        },
        max_tokens=100,
        temperature=0,
    )

    person = json.loads(answer.choices[0].message.content or "")
    assert set(person) == {"name", "age"}
    assert isinstance(person["age"], int)


def test_logprobs_come_for_each_token(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=DEMO, messages=CAPITAL, max_tokens=5, logprobs=True, top_logprobs=3, temperature=0
    )

    rows = (answer.choices[0].logprobs and answer.choices[0].logprobs.content) or []
    assert len(rows) == 5
    assert all(len(row.top_logprobs) == 3 and row.logprob <= 0 for row in rows)
    assert all(row.top_logprobs[0].token == row.token for row in rows)


def test_n_gives_as_many_choices(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=DEMO, messages=CAPITAL, n=3, max_tokens=8, temperature=1, seed=7
    )

    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1


def test_completions_take_several_prompts(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=DEMO, prompt=["The capital of France is", "2 + 2 ="], max_tokens=6, temperature=0
    )

    assert len(answer.choices) == 2
    assert "Paris" in answer.choices[0].text


@pytest.mark.parametrize("model", [DEMO, NANO])
def test_a_grammar_binds_a_completion_from_its_first_token(http: httpx.Client, model: str) -> None:
    """Stock vLLM with a reasoning parser waits for the end of a thought that is not there."""
    bound = {"structured_outputs": {"choice": ["yes", "no"]}}
    body = {"model": model, "prompt": "Is water wet?", "max_tokens": 32, **bound}

    response = http.post("/v1/completions", json=body)

    assert response.json()["choices"][0]["text"] in ("yes", "no")


def test_completions_stream_as_they_answer(client: openai.OpenAI) -> None:
    ask = {"model": DEMO, "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
    plain = client.completions.create(**ask)  # type: ignore[call-overload]
    chunks = client.completions.create(**ask, stream=True)  # type: ignore[call-overload]

    assert "".join(chunk.choices[0].text for chunk in chunks) == plain.choices[0].text


@pytest.mark.parametrize("break_", ["\x85", "\u2028", "\u2029"], ids=["U+0085", "U+2028", "U+2029"])
def test_a_streamed_event_is_one_line_also_for_httpx(http: httpx.Client, break_: str) -> None:
    """Whose `iter_lines` splits by `str.splitlines`, so that stock vLLM's JSON comes in two pieces."""
    text = f"one{break_}two"
    body = {
        "model": DEMO,
        "prompt": "Say",
        "stream": True,
        "structured_outputs": {"choice": [text]},
    }

    with http.stream("POST", "/v1/completions", json=body) as response:
        lines = [line[6:] for line in response.iter_lines() if line.startswith("data: {")]

    told = [choice["text"] for line in lines for choice in json.loads(line)["choices"]]
    assert "".join(told) == text


def test_responses_answer(client: openai.OpenAI) -> None:
    response = client.responses.create(
        model=DEMO,
        input="What is the capital of France?",
        temperature=0,
        max_output_tokens=30,
    )

    assert "Paris" in response.output_text
    assert response.usage is not None and response.usage.output_tokens > 0


def test_responses_stream_to_the_same_text(client: openai.OpenAI) -> None:
    events = list(
        client.responses.create(
            model=DEMO,
            input="What is the capital of France?",
            temperature=0,
            max_output_tokens=30,
            stream=True,
        )
    )

    deltas = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert "Paris" in deltas
    final = events[-1]
    assert final.type in ("response.completed", "response.incomplete")
    assert final.response.output_text == deltas


def test_both_models_are_listed_the_first_is_the_default(
    client: openai.OpenAI, http: httpx.Client
) -> None:
    models = client.models.list().data
    unnamed = http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).json()

    assert [model.id for model in models] == [DEMO, NANO]
    assert all(model.owned_by == "vllm" for model in models)
    assert client.models.retrieve(NANO).id == NANO
    assert unnamed["model"] == DEMO


def test_each_model_answers_for_itself(client: openai.OpenAI) -> None:
    thinker = client.chat.completions.create(model=NANO, messages=CAPITAL, max_tokens=80)
    talker = client.chat.completions.create(model=DEMO, messages=CAPITAL, max_tokens=8)

    assert thinker.model == NANO and talker.model == DEMO
    assert getattr(thinker.choices[0].message, "reasoning", None)
    assert thinker.choices[0].message.content and talker.choices[0].message.content
    assert not getattr(talker.choices[0].message, "reasoning", None)


def test_an_unknown_model_is_named_with_those_there_are(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-9", messages=CAPITAL)

    assert caught.value.code == "model_not_found"
    assert "gpt-9" in caught.value.message and NANO in caught.value.message
    assert caught.value.request_id


def test_sixteen_streams_at_once_are_each_whole(client: openai.OpenAI) -> None:
    def ask(number: int) -> tuple[int, str | None]:
        stream = client.chat.completions.create(
            model=DEMO,
            messages=[{"role": "user", "content": f"Count from {number}."}],
            max_tokens=24,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        chunks = list(stream)
        reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
        assert chunks[-1].usage is not None
        return chunks[-1].usage.completion_tokens, reasons[-1]

    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(ask, range(16)))

    assert results == [(24, "length")] * 16


def test_tokenize_and_detokenize_are_inverse(http: httpx.Client) -> None:
    text = "Hello, 世界! 🙂"
    tokens = http.post("/tokenize", json={"prompt": text, "model": NANO}).json()["tokens"]
    back = http.post("/detokenize", json={"tokens": tokens, "model": NANO}).json()["prompt"]

    assert back == text


def test_version_and_ping_answer_as_stock(http: httpx.Client) -> None:
    assert http.get("/version").json()["version"].startswith("0.32")
    assert http.get("/ping").status_code == 200
