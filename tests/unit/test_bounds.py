"""What an OpenAI-style body may hold: limits, text only, nothing internal."""

from typing import Any

import pytest

from gateway.errors import InvalidRequest
from gateway.policy.bounds import check, check_ids, check_shape, parse
from tests.scripted import make_settings

SETTINGS = make_settings(
    max_n=4,
    max_output_tokens=100,
    max_logprobs=5,
    max_stop_strings=2,
    max_messages=3,
    max_tools=2,
    max_prompts=2,
    max_json_depth=12,
)
USER = {"role": "user", "content": "hi"}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
IMAGE = {"type": "image_url", "image_url": {"url": "http://x/y.png"}}


def content(*parts: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


def refused(request: dict[str, Any]) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        check(request, SETTINGS)
    return caught.value


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not valid JSON"),
        (b"", "not valid JSON"),
        (b'{"n": NaN}', "not valid JSON"),
        (b"[]", "not a list"),
        (b'"x"', "not a string"),
        (b"7", "not a number"),
        (b"true", "not a boolean"),
        (b"null", "not null"),
    ],
)
def test_what_is_no_json_object_is_refused_and_says_what_it_is(body: bytes, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        parse(body)


def nested(levels: int, left: bytes, right: bytes) -> bytes:
    return b'{"a": %b1%b}' % (left * (levels - 1), right * (levels - 1))


@pytest.mark.parametrize(("left", "right"), [(b"[", b"]"), (b'{"b": ', b"}")])
def test_nesting_up_to_the_limit_passes_and_beyond_is_refused(left: bytes, right: bytes) -> None:
    check_shape(parse(nested(11, left, right)), SETTINGS)

    with pytest.raises(InvalidRequest, match=r"deeper than 12 .*GATEWAY_MAX_JSON_DEPTH"):
        check_shape(parse(nested(13, left, right)), SETTINGS)


@pytest.mark.parametrize(
    "request_",
    [
        {"stop": [0] * 32_767},
        {"stop": [[0] * 32_766]},
        {"prompt": [7] * 200_000},
        {"prompt": [[7] * 100_000] * 2},
        {"tokens": list(range(100_000))},
    ],
    ids=["as many as may be", "in a list", "token ids", "lists of token ids", "tokens"],
)
def test_a_body_has_as_many_values_as_the_limit_and_any_number_of_token_ids(
    request_: dict[str, Any],
) -> None:
    check_shape(request_, SETTINGS)


MANY: dict[str, Any] = {
    "an object": {str(number): 0 for number in range(32_768)},
    "objects": [{}] * 32_768,
    "texts": ["7"] * 32_768,
    "nested ids": [[[7] * 32_768]],
    "too many prompts": [[7]] * 32_768,
}
NUMBERS: dict[str, Any] = {"numbers": [0] * 32_768, "lists": [[0] * 16_384] * 2}
TOO_MANY = [
    *((field, each) for field in ("stop", "prompt", "tokens") for each in MANY.values()),
    *(("stop", each) for each in NUMBERS.values()),  # elsewhere they are token ids
]


@pytest.mark.parametrize(("field", "value"), TOO_MANY)
def test_more_values_than_the_limit_are_refused(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"more than 32768 values .*MAX_JSON_VALUES"):
        check_shape({field: value}, SETTINGS)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (-1, "-1"),
        (2**63, str(2**63)),
        (1.5, "1.5"),
        (True, "True"),
        ("7", "a string"),
        ({}, "an object"),
    ],
)
@pytest.mark.parametrize("field", ["prompt", "tokens"])
def test_the_first_that_is_no_token_id_is_named(field: str, wrong: object, told: str) -> None:
    for given in ([7, 7, wrong, wrong], [[7, 7, wrong], [7]]):
        with pytest.raises(InvalidRequest, match=f"as its entry 2, but {told}$") as caught:
            check_shape({field: given}, SETTINGS)

        assert caught.value.param == field


@pytest.mark.parametrize(
    ("field", "limit", "setting"),
    [
        ("n", 4, "MAX_N"),
        ("best_of", 4, "MAX_N"),
        ("max_tokens", 100, "MAX_OUTPUT_TOKENS"),
        ("max_completion_tokens", 100, "MAX_OUTPUT_TOKENS"),
        ("max_output_tokens", 100, "MAX_OUTPUT_TOKENS"),
        ("min_tokens", 100, "MAX_OUTPUT_TOKENS"),
        ("top_logprobs", 5, "MAX_LOGPROBS"),
        ("logprobs", 5, "MAX_LOGPROBS"),
        ("prompt_logprobs", 5, "MAX_LOGPROBS"),
    ],
)
def test_an_integer_is_bounded_and_names_field_value_and_limit(
    field: str, limit: int, setting: str
) -> None:
    check({field: limit}, SETTINGS)

    error = refused({field: limit + 1})

    assert error.param == field
    assert error.message == (
        f"'{field}' is {limit + 1}; the limit is {limit} (setting GATEWAY_{setting})"
    )


@pytest.mark.parametrize("value", ["5", 5.0, 1e30], ids=["text", "float", "huge"])
def test_a_number_that_vllm_would_read_as_an_integer_is_bounded_too(value: object) -> None:
    assert refused({"n": value}).param == "n"


@pytest.mark.parametrize(
    ("field", "limit", "entry"),
    [
        ("stop", 2, "x"),
        ("stop_sequences", 2, "x"),
        ("messages", 3, USER),
        ("input", 3, CALL),
        ("tools", 2, {"type": "function"}),
        ("bad_words", 2, "x"),
        ("prompt", 2, "x"),
        ("prompt", 2, [1, 2, 3]),
    ],
)
def test_a_list_is_bounded(field: str, limit: int, entry: object) -> None:
    check({field: [entry] * limit}, SETTINGS)

    error = refused({field: [entry] * (limit + 1)})

    assert error.param == field
    assert f"{limit + 1} " in error.message
    assert f"the limit is {limit}" in error.message


@pytest.mark.parametrize(
    "request_body",
    [
        {"prompt": list(range(1000))},
        {"prompt": "x" * 100_000},
        {"stop": "a long stop string"},
        {"logprobs": True, "top_logprobs": 2},
        {"n": None, "stop": None, "messages": None, "tools": None, "chat_template_kwargs": None},
        {"chat_template": None, "kv_transfer_params": None, "prompt": None, "input": None},
        {"use_beam_search": False, "prompt": [], "chat_template_kwargs": {}},
        {"chat_template_kwargs": {"enable_thinking": False, "reasoning_effort": "low"}},
        {"some_field_of_tomorrow": {"a": 1}},
    ],
    ids=lambda body: ",".join(body),
)
def test_what_is_within_the_limits_passes(request_body: dict[str, Any]) -> None:
    check(request_body, SETTINGS)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("chat_template", "{{ 7 }}"),
        ("prompt_embeds", "abc"),
        ("mm_processor_kwargs", {"a": 1}),
        ("media_io_kwargs", {"a": 1}),
        ("kv_transfer_params", {"a": 1}),
        ("ec_transfer_params", {"a": 1}),
        ("use_beam_search", True),
        ("messages", {"role": "user"}),
        ("messages", "hi"),
        ("tools", "f"),
        ("chat_template_kwargs", [1]),
        ("chat_template_kwargs", {"enable_thinking": True, "chat_template": "x"}),
    ],
)
def test_what_no_request_may_set_is_refused_by_name(field: str, value: object) -> None:
    assert refused({field: value}).param == field


@pytest.mark.parametrize(
    "item",
    [
        CALL,
        {"type": "function_call_output", "call_id": "c", "output": "42"},
        {"type": "function_call_output", "output": [{"type": "input_text", "text": "42"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "t"}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "t"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "t"}]},
        USER,
    ],
    ids=lambda item: str(item.get("type")),
)
def test_the_items_of_the_responses_api_pass(item: dict[str, Any]) -> None:
    check({"input": [item]}, SETTINGS)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "text", "text": "t"},
        {"type": "thinking", "thinking": "t", "signature": "s"},
        {"type": "redacted_thinking", "data": "d"},
        {"type": "tool_use", "id": "i", "name": "f", "input": {}},
        {"type": "tool_result", "tool_use_id": "i", "content": "42"},
        {"type": "tool_result", "tool_use_id": "i", "content": [{"type": "text", "text": "42"}]},
        {"type": "refusal", "refusal": "no"},
    ],
    ids=lambda part: str(part["type"]),
)
def test_text_and_tool_parts_of_a_message_pass(part: dict[str, Any]) -> None:
    check(content(part), SETTINGS)


MEDIA: list[tuple[str, dict[str, Any]]] = [
    ("messages", content(IMAGE)),
    ("messages", content({"type": "text", "text": "t"}, {"type": "image", "source": {}})),
    ("messages", content({"type": "document", "source": {}})),
    ("messages", content({"type": "input_audio", "input_audio": {}})),
    ("messages", content({"type": "video_url", "video_url": {"url": "file:///etc/passwd"}})),
    ("messages", content({"type": "tool_result", "content": [{"type": "image", "source": {}}]})),
    ("messages", content({"type": "tool_result", "content": [{"type": "document"}]})),
    ("messages", content({"image_url": {"url": "http://x/y.png"}})),
    ("messages", content({"type": ["text"]})),
    ("messages", content({"type": {"text": "text"}})),
    ("input", {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
    ("input", {"input": [{"type": "message", "content": [{"type": "input_file"}]}]}),
    ("input", {"input": [{"type": "function_call_output", "output": [{"type": "input_image"}]}]}),
    ("system", {"system": [{"type": "image", "source": {}}]}),
]


@pytest.mark.parametrize(("field", "body"), MEDIA, ids=[str(body) for _, body in MEDIA])
def test_media_is_refused_wherever_it_stands(field: str, body: dict[str, Any]) -> None:
    error = refused(body)

    assert error.param == field
    assert "text only" in error.message


@pytest.mark.parametrize(
    "request_body",
    [
        {"logit_bias": {"100": 1}},
        {"logit_bias": {"-1": 1}},
        {"stop_token_ids": [5, 100]},
        {"allowed_token_ids": [-1]},
        {"logprob_token_ids": [1e30]},
    ],
    ids=lambda body: str(body),
)
def test_a_token_that_the_model_does_not_have_is_refused(request_body: dict[str, Any]) -> None:
    (field,) = request_body

    with pytest.raises(InvalidRequest, match="the model's are 0 to 99") as caught:
        check_ids(request_body, 100)

    assert caught.value.param == field
    check_ids(request_body, None)  # nobody knows


@pytest.mark.parametrize("given", [5, "word", [None, {}, "word"], {"word": 1}, [0, 99], None])
def test_ids_of_wrong_type_are_left_to_vllm(given: object) -> None:
    check_ids({"logit_bias": given, "stop_token_ids": given}, 100)
