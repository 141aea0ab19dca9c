"""Traces and logs of a real engine: what a real OTLP receiver gets, and what stands in the log."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.otlp import Receiver, values
from tests.service.server import DEMO, PATIENCE_S, Gateway, wait_for

CANARY = "the canary sings at noon"
TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
QUESTION = [{"role": "user", "content": CANARY}]


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver("grpc") as running:
        yield running


@pytest.fixture(scope="module")
def traced(receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    log = tmp_path_factory.mktemp("traced") / "serve.log"
    settings = {"trace_endpoint": receiver.url, "trace_protocol": "grpc"}
    gateway = Gateway(log, "demo", **settings)
    gateway.env["VLLM_LOGGING_LEVEL"] = "INFO"
    with gateway as running:
        yield running


def spans_of(receiver: Receiver, trace_id: str) -> list[Span]:
    return [span for span in receiver.spans if span.trace_id.hex() == trace_id]


def ask(
    traced: Gateway, receiver: Receiver, path: str, body: dict[str, Any]
) -> tuple[httpx.Response, list[Span]]:
    """The answer, and the spans of its trace when the server's has come."""
    answer = httpx.post(f"{traced.url}{path}", json=body, timeout=PATIENCE_S)
    assert answer.status_code == 200, answer.text
    _, trace_id, root, _ = answer.headers["traceresponse"].split("-")

    def whole() -> bool:
        return root in [span.span_id.hex() for span in spans_of(receiver, trace_id)]

    wait_for(whole, PATIENCE_S, "the server's span")
    return answer, spans_of(receiver, trace_id)


def below(spans: list[Span], parent: bytes) -> list[Any]:
    """Names below names, in the order of the alphabet."""
    rows = [
        {span.name: rest} if (rest := below(spans, span.span_id)) else span.name
        for span in spans
        if span.parent_span_id == parent
    ]
    return sorted(rows, key=lambda row: row if isinstance(row, str) else "~")


@pytest.mark.parametrize("stream", [False, True])
def test_a_thinking_request_is_one_tree_down_to_vllms_span(
    traced: Gateway, receiver: Receiver, stream: bool
) -> None:
    """The thought is cut: vLLM has no span for its aborted request, and one for the answer's."""
    body = {"question": CANARY, "thinking_budget": 16, "max_tokens": 64, "temperature": 0}

    answer, spans = ask(traced, receiver, "/thinking", {**body, "stream": stream})

    inference = {f"chat {DEMO}": ["answer", "close", "llm_request", "render", "think"]}
    assert below(spans, b"") == [{"POST /thinking": ["auth", "queue", inference]}]
    engine = values(next(span for span in spans if span.name == "llm_request"))
    assert engine["gen_ai.request.id"] == f"think-{answer.headers['x-request-id']}-answer"
    assert engine["gen_ai.usage.completion_tokens"] > 0


@pytest.mark.parametrize(
    ("path", "body", "inference"),
    [
        ("/generate", {"prompt": CANARY}, {f"text_completion {DEMO}": ["llm_request", "render"]}),
        (
            "/v1/completions",
            {"prompt": CANARY, "model": DEMO},
            {f"text_completion {DEMO}": ["llm_request", "render"]},
        ),
        (
            "/v1/chat/completions",
            {"messages": QUESTION, "model": DEMO, "reasoning_effort": "none"},
            {f"chat {DEMO}": ["answer", "llm_request", "render"]},
        ),
        (
            "/v1/messages",
            {"messages": QUESTION, "model": DEMO, "reasoning_effort": "none"},
            {f"chat {DEMO}": ["answer", "llm_request", "render"]},
        ),
    ],
)
def test_every_generating_route_is_one_tree(
    traced: Gateway,
    receiver: Receiver,
    path: str,
    body: dict[str, Any],
    inference: dict[str, Any],
) -> None:
    _, spans = ask(traced, receiver, path, {**body, "max_tokens": 16})

    assert below(spans, b"") == [{f"POST {path}": ["auth", "queue", inference]}]
    (name,) = inference
    call = values(next(span for span in spans if span.name == name))
    used = ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens")
    assert all(call[each] > 0 for each in used)


def test_a_caller_that_does_not_sample_leaves_nothing(traced: Gateway, receiver: Receiver) -> None:
    body = {"prompt": CANARY, "max_tokens": 4}
    headers = {"traceparent": f"00-{TRACE}-{CALLER}-00"}
    for path in ("/generate", "/v1/completions"):
        call = {**body, "model": DEMO}
        assert (
            httpx.post(
                f"{traced.url}{path}", json=call, headers=headers, timeout=PATIENCE_S
            ).status_code
            == 200
        )

    ask(traced, receiver, "/generate", body)  # when that has come, what was before it has, too

    assert spans_of(receiver, TRACE) == []


def test_no_prompt_is_in_any_span_or_line(traced: Gateway, receiver: Receiver) -> None:
    """Of all requests above, and of one that is refused with the prompt in the wrong place."""
    wrong = {"question": CANARY, "max_tokens": CANARY}
    assert httpx.post(f"{traced.url}/thinking", json=wrong, timeout=PATIENCE_S).status_code == 400

    assert CANARY not in str(receiver.requests)
    assert CANARY not in traced.log.read_text()


def test_the_access_log_agrees_with_the_answer(traced: Gateway, receiver: Receiver) -> None:
    body = {"question": CANARY, "thinking_budget": 16, "max_tokens": 64, "stream": False}
    answer, spans = ask(traced, receiver, "/thinking", body)

    (line,) = [
        line
        for line in lines_of(traced)
        if line["logger"] == "gateway.access"
        and line["request_id"] == answer.headers["x-request-id"]
    ]

    used = answer.json()["usage"]
    assert line["trace_id"] == spans[0].trace_id.hex()
    assert (line["model"], line["route"], line["status"]) == (DEMO, "/thinking", 200)
    assert line["prompt_tokens"] == used["prompt_tokens"]
    assert line["thinking_tokens"] == used["completion_tokens_details"]["reasoning_tokens"]
    assert line["duration_s"] > 0


def test_vllm_and_its_engine_process_write_the_same_lines(traced: Gateway) -> None:
    lines = [line for line in lines_of(traced) if line["logger"].startswith("vllm")]
    strays = [line for line in traced.log.read_text().splitlines() if "vllm.v1" in line[:80]]

    assert {line["level"] for line in lines} >= {"INFO"}
    assert "EngineCore" in {line.get("process") for line in lines}
    assert [line for line in strays if not line.startswith("{")] == []


@pytest.mark.parametrize(("level", "told"), [("debug", True), ("ERROR", False), ("info", False)])
def test_the_level_changes_while_it_runs(
    traced: Gateway, receiver: Receiver, level: str, told: bool
) -> None:
    """Probes are told at DEBUG only."""
    command = [sys.executable, "-m", "gateway", "log-level", level]
    command += ["--admin-url", traced.admin_url]

    done = subprocess.run(command, capture_output=True, text=True, check=True)
    probe = httpx.get(f"{traced.url}/health/live", timeout=PATIENCE_S)
    ask(traced, receiver, "/generate", {"prompt": "Hi", "max_tokens": 1})  # by then it is written

    ids = [line.get("request_id") for line in lines_of(traced)]
    assert done.stdout == f"the log level is {level.upper()}\n"
    assert (probe.headers["x-request-id"] in ids) is told


def lines_of(gateway: Gateway) -> list[dict[str, Any]]:
    """The log's JSON lines; what the console tells people is between them."""
    lines = gateway.log.read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]
