"""What is added to vLLM's answers about thoughts, what is hidden, and what is left alone."""

import json
from typing import Any

import pytest
from starlette.types import Message

from gateway.routes import shape
from gateway.routes.shape import HIDDEN_BEAT, Shape
from gateway.thinking.effort import Plan, report
from tests.runs import LONG, engine_with, finish, phases

SECRET = "they must not see this"
EVENTS = b"text/event-stream; charset=utf-8"


class Through:
    """Messages sent through a shape, and what arrived."""

    def __init__(self, plan: Plan, fields: str = "both") -> None:
        self.sent: list[Message] = []
        self.shape = Shape(self._send, plan, fields)

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    async def start(self, kind: bytes, status: int = 200) -> None:
        headers = [(b"content-type", kind), (b"content-length", b"5")]
        await self.shape({"type": "http.response.start", "status": status, "headers": headers})

    async def body(self, data: bytes, more: bool = False) -> None:
        await self.shape({"type": "http.response.body", "body": data, "more_body": more})

    @property
    def data(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


@pytest.fixture
async def plan() -> Plan:
    """Of a request whose run has ended: at its budget of ten, with eleven tokens and an end of text."""
    run, _ = await finish(engine_with(phases(think=LONG)), budget=10)
    return Plan(3, runs=[run])


@pytest.fixture
def hidden(plan: Plan) -> Plan:
    plan.hidden = True
    return plan


async def plain(plan: Plan, body: dict[str, Any], fields: str = "both") -> Any:
    through = Through(plan, fields)
    await through.start(b"application/json")
    raw = json.dumps(body).encode()
    await through.body(raw[:9], more=True)
    await through.body(raw[9:])
    headers = dict(through.sent[0]["headers"])
    assert int(headers[b"content-length"]) == len(through.data)
    return json.loads(through.data)


def frame(body: dict[str, Any]) -> bytes:
    """As vLLM writes it: compact, with an event line on the routes that have one."""
    head = f"event: {body['type']}\n" if "type" in body else ""
    return f"{head}data: {json.dumps(body, separators=(',', ':'))}\n\n".encode()


async def streamed(plan: Plan, body: dict[str, Any], fields: str = "both") -> Any:
    """What arrives of one event; None: nothing."""
    through = Through(plan, fields)
    await through.start(EVENTS)
    await through.body(frame(body), more=True)
    if len(through.sent) == 1:
        return None
    head, _, data = through.data.partition(b"data: ")
    assert head == frame(body).partition(b"data: ")[0] and data.endswith(b"\n\n")
    return json.loads(data)


def message(**more: Any) -> dict[str, Any]:
    said = {"role": "assistant", "content": "four", "reasoning": SECRET}
    return {"choices": [{"index": 0, "message": said, "finish_reason": "stop", **more}]}


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish, **more}
    return {"object": "chat.completion.chunk", "choices": [choice]}


NAMES = [
    ("both", ["reasoning", "reasoning_content"]),
    ("reasoning", ["reasoning"]),
    ("reasoning_content", ["reasoning_content"]),
]


@pytest.mark.parametrize(("fields", "names"), NAMES)
async def test_a_thought_has_the_names_that_clients_read(
    plan: Plan, fields: str, names: list[str]
) -> None:
    said = (await plain(plan, message(), fields))["choices"][0]["message"]
    delta = (await streamed(plan, chunk({"reasoning": SECRET}), fields))["choices"][0]["delta"]

    assert said == {"role": "assistant", "content": "four"} | dict.fromkeys(names, SECRET)
    assert delta == dict.fromkeys(names, SECRET)


RESPONSE = {
    "object": "response",
    "output": [
        {
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": SECRET}],
            "content": [{"type": "reasoning_text", "text": SECRET}],
        },
        {"type": "message", "content": [{"type": "output_text", "text": "four"}]},
    ],
}
MESSAGE = {
    "type": "message",
    "content": [{"type": "thinking", "thinking": SECRET}, {"type": "text", "text": "four"}],
}
PLAIN = [message(), RESPONSE, MESSAGE]
ROUTES = ["chat", "responses", "messages"]


@pytest.mark.parametrize("body", PLAIN, ids=ROUTES)
async def test_a_plain_answer_tells_how_it_was_thought(plan: Plan, body: dict[str, Any]) -> None:
    told = await plain(plan, body)

    place = told["choices"][0] if "choices" in told else told
    assert place.pop("thinking") == report(plan.runs[0])
    assert SECRET in json.dumps(told)


@pytest.mark.parametrize("body", PLAIN, ids=ROUTES)
async def test_a_hidden_thought_is_in_no_plain_answer(hidden: Plan, body: dict[str, Any]) -> None:
    told = json.dumps(await plain(hidden, body))

    assert SECRET not in told
    assert "four" in told and '"end_reason": "budget"' in told


async def test_each_completion_tells_of_its_own_run(plan: Plan) -> None:
    other, _ = await finish(engine_with(phases(think=LONG)), budget=20)
    plan.runs.append(other)
    body = message()
    body["choices"] += message(index=1)["choices"]

    told = await plain(plan, body)
    chunked = await streamed(plan, chunk({}, "stop", index=1))

    tokens = [choice["thinking"]["tokens"] for choice in told["choices"]]
    assert [*tokens, chunked["choices"][0]["thinking"]["tokens"]] == [10, 20, 20]


async def test_a_request_that_became_no_run_has_no_report() -> None:
    assert "thinking" not in (await plain(Plan(3), message()))["choices"][0]


ENDS = [
    (chunk({}, "stop"), lambda told: told["choices"][0]),
    (chunk({"content": "r"}, "length"), lambda told: told["choices"][0]),
    ({"type": "response.completed", "response": RESPONSE}, lambda told: told["response"]),
    ({"type": "response.incomplete", "response": RESPONSE}, lambda told: told["response"]),
    ({"type": "message_delta", "delta": {"stop_reason": "end_turn"}}, lambda told: told),
]


@pytest.mark.parametrize(("body", "place"), ENDS)
async def test_the_end_of_a_stream_tells_how_it_was_thought(
    plan: Plan, body: dict[str, Any], place: Any
) -> None:
    assert place(await streamed(plan, body))["thinking"] == report(plan.runs[0])


REASONING_ITEM = RESPONSE["output"][0]
THOUGHTS = [
    chunk({"reasoning": SECRET}),
    chunk({"reasoning": SECRET}, logprobs={"content": [{"token": SECRET}]}),
    {"type": "response.reasoning_text.delta", "delta": SECRET},
    {"type": "response.reasoning_text.done", "text": SECRET},
    {"type": "response.reasoning_part.added", "part": {"type": "reasoning_text", "text": SECRET}},
    {"type": "response.reasoning_part.done", "part": {"type": "reasoning_text", "text": SECRET}},
    {"type": "response.content_part.added", "part": {"type": "reasoning_text", "text": ""}},
    {"type": "response.content_part.done", "part": {"type": "reasoning_text", "text": SECRET}},
    {"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": SECRET}},
]
PLACES = [
    chunk({"reasoning": SECRET}, "stop"),
    chunk({"reasoning": SECRET, "content": "four"}),
    chunk({"reasoning": SECRET}, token_ids=[SECRET], logprobs={"content": [SECRET]})
    | {"usage": {"completion_tokens": 3}},
    {"type": "response.output_item.added", "item": REASONING_ITEM},
    {"type": "response.output_item.done", "item": REASONING_ITEM},
    {"type": "response.completed", "response": RESPONSE},
    {"type": "response.incomplete", "response": RESPONSE},
]


@pytest.mark.parametrize("body", THOUGHTS)
async def test_a_hidden_thought_is_not_streamed(hidden: Plan, body: dict[str, Any]) -> None:
    assert await streamed(hidden, body) is None


@pytest.mark.parametrize("body", PLACES)
async def test_what_holds_the_place_of_a_hidden_thought_is_empty(
    hidden: Plan, body: dict[str, Any]
) -> None:
    told = await streamed(hidden, body)

    assert told is not None and SECRET not in json.dumps(told)


@pytest.mark.parametrize("body", THOUGHTS + PLACES)
async def test_what_is_not_hidden_is_streamed(plan: Plan, body: dict[str, Any]) -> None:
    assert (SECRET in json.dumps(body)) == (SECRET in json.dumps(await streamed(plan, body)))


async def test_the_tokens_of_a_hidden_thought_are_hidden_too(hidden: Plan) -> None:
    rows = [{"token": SECRET}] * 11 + [{"token": "a"}] * 12
    body = message(logprobs={"content": rows}, token_ids=[*range(11), *range(100, 112)])

    choice = (await plain(hidden, body))["choices"][0]

    assert choice["logprobs"]["content"] == [{"token": "a"}] * 12
    assert choice["token_ids"] == list(range(100, 112))


SILENT = [
    b": keep-alive\n\n",
    b"data: [DONE]\n\n",
    b"",
    frame(chunk({"content": "four"})),
    frame(chunk({"content": 'the word "reasoning" and "finish_reason":"x"'})),
    frame({"type": "response.output_text.delta", "delta": 'say "reasoning_text"'}),
    frame({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "a"}}),
    frame({"type": "message_start", "message": {"content": []}}),
]


@pytest.mark.parametrize("data", SILENT)
async def test_a_frame_that_is_no_concern_of_ours_is_the_very_same(
    hidden: Plan, data: bytes
) -> None:
    through = Through(hidden)
    await through.start(EVENTS)
    sent: Message = {"type": "http.response.body", "body": data, "more_body": True}

    await through.shape(sent)

    assert through.sent[1] is sent


@pytest.mark.parametrize(
    "body",
    [
        chunk({"content": 'data: {"reasoning": response.completed'}),
        {"type": "response.output_text.delta", "delta": "response.reasoning_text.delta\n\ndata: x"},
        {
            "type": "content_block_delta",
            "delta": {"type": "text_delta", "text": "response.completed"},
        },
        {
            "type": "response.content_part.done",
            "part": {"type": "output_text", "text": "reasoning"},
        },
        {
            "type": "response.output_item.done",
            "item": {"type": "message", "content": ["reasoning"]},
        },
    ],
)
async def test_an_answer_about_reasoning_is_not_mangled(hidden: Plan, body: dict[str, Any]) -> None:
    assert await streamed(hidden, body) == body


@pytest.mark.parametrize("status", [400, 404, 422, 500, 503])
async def test_errors_pass_untouched(hidden: Plan, status: int) -> None:
    through = Through(hidden)
    await through.start(b"application/json", status)
    await through.body(b'{"error":{"message":"reasoning"}}')

    assert through.sent[0]["status"] == status
    assert dict(through.sent[0]["headers"])[b"content-length"] == b"5"
    assert through.data == b'{"error":{"message":"reasoning"}}'


async def test_a_plain_answer_starts_when_it_is_whole(plan: Plan) -> None:
    through = Through(plan)
    await through.start(b"application/json")
    await through.body(b"{", more=True)
    assert through.sent == []

    await through.body(b"}")

    assert [sent["type"] for sent in through.sent] == ["http.response.start", "http.response.body"]
    assert not through.sent[1].get("more_body")


async def test_a_stream_that_hides_its_thought_is_not_silent(
    hidden: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shape, "BEAT_S", 0)
    through = Through(hidden)
    await through.start(EVENTS)

    await through.body(frame(chunk({"reasoning": SECRET})), more=True)

    assert through.data == HIDDEN_BEAT and through.sent[1]["more_body"]


async def test_the_end_of_a_stream_is_passed_on(hidden: Plan) -> None:
    through = Through(hidden)
    await through.start(EVENTS)

    await through.body(b"")

    assert through.sent[1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_the_nothing_that_vllm_says_to_somebody_who_left_is_no_answer(plan: Plan) -> None:
    through = Through(plan)

    await through.start(b"application/json")
    await through.body(b"null")

    assert through.sent == []


OFF_BY_SOME = {"completion_tokens": 14, "completion_tokens_details": {"reasoning_tokens": 7}}


async def test_reasoning_tokens_are_those_that_the_engine_drew(plan: Plan) -> None:
    """Not vLLM's count, which goes by the text: half a character is a token without any."""
    response = {"output": [], "usage": {"output_tokens_details": {"reasoning_tokens": 7}}}
    last = {"object": "chat.completion.chunk", "choices": [], "usage": OFF_BY_SOME}

    told = [
        await plain(plan, message() | {"usage": OFF_BY_SOME}),
        await plain(plan, response),
        await streamed(plan, last),
        (await streamed(plan, {"type": "response.completed", "response": response}))["response"],
    ]

    details = ("completion_tokens_details", "output_tokens_details")
    counted = [each["usage"][name] for each in told for name in details if name in each["usage"]]
    assert [each["reasoning_tokens"] for each in counted] == [10] * 4


async def test_continuous_usage_is_of_its_own_choice(plan: Plan) -> None:
    other, _ = await finish(engine_with(phases(think=LONG)), budget=5)
    plan.runs = [*plan.runs, other]
    second = {"index": 1, "delta": {"content": "a"}, "finish_reason": None}
    body = {"object": "chat.completion.chunk", "choices": [second], "usage": OFF_BY_SOME}

    told = await streamed(plan, body)

    assert told["usage"]["completion_tokens_details"]["reasoning_tokens"] == 5
