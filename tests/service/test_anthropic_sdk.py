"""The official anthropic SDK works against `/v1/messages`."""

import anthropic
import pytest

from tests.service.server import DEMO

QUESTION: list[anthropic.types.MessageParam] = [
    {"role": "user", "content": "What is the capital of France?"}
]
GREEDY = {"temperature": 0}  # this SDK knows no temperature any more; the API does


def text(message: anthropic.types.Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_a_message_is_answered(claude: anthropic.Anthropic) -> None:
    message = claude.messages.create(
        model=DEMO, max_tokens=30, messages=QUESTION, extra_body=GREEDY
    )

    assert "Paris" in text(message)
    assert message.usage.input_tokens > 0 and message.usage.output_tokens > 0


def test_a_stream_ends_in_the_same_message(claude: anthropic.Anthropic) -> None:
    plain = claude.messages.create(model=DEMO, max_tokens=30, messages=QUESTION, extra_body=GREEDY)
    with claude.messages.stream(
        model=DEMO, max_tokens=30, messages=QUESTION, extra_body=GREEDY
    ) as stream:
        deltas = "".join(stream.text_stream)
        final = stream.get_final_message()

    assert deltas == text(plain) == text(final)
    assert final.stop_reason == plain.stop_reason


def test_tokens_are_counted_without_generating(claude: anthropic.Anthropic) -> None:
    counted = claude.messages.count_tokens(model=DEMO, messages=QUESTION)
    message = claude.messages.create(model=DEMO, max_tokens=1, messages=QUESTION)

    cached = message.usage.cache_read_input_tokens or 0
    assert counted.input_tokens == message.usage.input_tokens + cached


def test_errors_have_anthropics_shape(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        claude.messages.create(model="claude-9", max_tokens=5, messages=QUESTION)

    body = caught.value.body
    assert isinstance(body, dict)
    assert body["type"] == "error"
    assert body["error"]["type"] == "not_found_error"
    assert "claude-9" in body["error"]["message"]
    assert body["request_id"] == caught.value.request_id
