"""A request's trace: the whole tree however it ends, the caller's context kept, and no prompt in it."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.trace import StatusCode

from gateway.engines.types import Job
from gateway.errors import EngineUnavailable
from tests.runs import phases
from tests.scripted import PATIENCE_S, Script, ScriptedEngine, make_gateway
from tests.tenants import Tenants, bearer
from tests.traced import Traced, told
from tests.wire import Wire

CANARY = "the canary sings at noon"
TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
THOUGHT = ["Hm", "</think>", "Four"]
CUT = ["y"] * 400


def traced(*texts: str, **values: Any) -> Traced:
    engine = ScriptedEngine("first")
    engine.script = lambda job: Script(texts or ("ok",), cached=2)
    return Traced(make_gateway(engine, **values))


def limited(folder: Path, *texts: str) -> tuple[Traced, dict[str, str]]:
    tenants = Tenants(folder, {"acme": {"rpm": 100}})
    tenants.engine.script = lambda job: Script(texts)
    return Traced(tenants.gateway), bearer(tenants.keys["acme"])


async def test_a_thinking_request_is_one_whole_tree(tmp_path: Path) -> None:
    place, key = limited(tmp_path, *THOUGHT)

    await place.client.post("/thinking", json={"question": "2+2?"}, headers=key)

    phases_ = ["render", "think", "answer"]
    assert place.tree() == {
        "POST /thinking": ["auth", "limits", "queue", {"chat first": phases_}],
    }


async def test_what_is_told_of_a_thinking_request(tmp_path: Path) -> None:
    place, key = limited(tmp_path, *THOUGHT)
    body = {"question": "2+2?", "max_tokens": 200, "temperature": 0.5, "thinking_depth": 2}

    answer = await place.client.post("/thinking", json=body, headers=key)

    root, call = told(place.named("POST /thinking")), told(place.named("chat first"))
    used = answer.json()["usage"]
    server = {
        "http.request.method": "POST",
        "http.route": "/thinking",
        "http.response.status_code": 200,
        "url.path": "/thinking",
        "gateway.request_id": answer.headers["x-request-id"],
        "gateway.outcome": "ok",
        "gateway.tenant": "acme",
        "gateway.model": "first",
        "gateway.thinking_tokens": 2,
    }
    assert {name: root.get(name) for name in server} == server
    inference = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "first",
        "gen_ai.request.max_tokens": 200,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.usage.input_tokens": used["prompt_tokens"],
        "gen_ai.usage.output_tokens": used["completion_tokens"],
        "gen_ai.usage.reasoning.output_tokens": 2,
        "gen_ai.response.finish_reasons": ("stop",),
    }
    assert {name: call.get(name) for name in inference} == inference
    think = told(place.named("think"))
    assert (think["gateway.thinking.tokens"], think["gateway.thinking.end_reason"]) == (
        2,
        "natural",
    )


async def test_a_cut_thought_is_closed_by_a_span_of_its_own() -> None:
    place = traced()
    place.gateway.engines[0].script = phases(think=Script(CUT), answer=Script(["Four"]))

    await place.client.post("/thinking", json={"question": "2+2?", "thinking_budget": 32})

    names = ["render", "think", "close", "answer"]
    assert place.tree() == {"POST /thinking": ["auth", "queue", {"chat first": names}]}
    assert told(place.named("think"))["gateway.thinking.forced"] is True
    assert told(place.named("close"))["gateway.closing_tokens"] > 0


async def test_each_sample_has_its_phases() -> None:
    place = traced(*THOUGHT)
    body = {"question": "2+2?", "samples": 3}

    answer = await place.client.post("/thinking", json=body)

    rid = answer.headers["x-request-id"]
    thinking = [
        told(span)["gateway.engine_request"] for span in place.spans if span.name == "think"
    ]
    assert sorted(thinking) == [f"think-{rid}-s{index}" for index in range(3)]


async def test_every_engine_request_works_below_the_inference() -> None:
    place = traced()
    engine = place.gateway.engines[0]
    engine.script = phases(think=Script(CUT), answer=Script(["Four"]))
    body = {"question": "2+2?", "thinking_budget": 32, "confidence": "full"}

    await place.client.post("/thinking", json=body)

    context = place.named("chat first").context
    assert context is not None and len(engine.jobs) == 3
    header = f"00-{context.trace_id:032x}-{context.span_id:016x}"
    assert all((job.trace or {})["traceparent"].startswith(header) for job in engine.jobs)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"prompt": "Hi"}, "text_completion first"),
        ({"messages": [{"role": "user", "content": "Hi"}], "stream": True}, "chat first"),
    ],
)
async def test_generate_is_one_whole_tree(body: dict[str, Any], name: str) -> None:
    place = traced("so", "me")

    await place.client.post("/generate", json=body)

    assert place.tree() == {"POST /generate": ["auth", "queue", {name: ["render"]}]}
    call = told(place.named(name))
    assert call["gen_ai.usage.output_tokens"] == 4 > 0 < call["gen_ai.usage.input_tokens"]
    assert call["gen_ai.usage.cache_read.input_tokens"] == 2
    assert call["gen_ai.response.finish_reasons"] == ("stop",)


async def test_a_batch_has_an_inference_for_each_item() -> None:
    place = traced()

    await place.client.post("/batch_generate", json={"prompts": ["a", "b"]})

    names = [span.name for span in place.spans]
    assert names.count("text_completion first") == names.count("queue") == 2


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}, "chat first"),
        ("/v1/completions", {"prompt": "Hi"}, "text_completion first"),
    ],
)
async def test_vllms_routes_get_our_context_and_a_whole_tree(
    path: str, body: dict[str, Any], name: str
) -> None:
    place = traced()
    theirs = f"00-{TRACE}-{SPAN}-01"

    await place.client.post(path, json=body, headers={"traceparent": theirs})

    assert place.tree() == {f"POST {path}": ["auth", "queue", {name: ["render"]}]}
    call = place.named(name)
    assert told(call)["gen_ai.usage.output_tokens"] == 3
    seen = place.gateway.engines[0].contexts
    assert call.context is not None
    assert seen == [f"00-{TRACE}-{call.context.span_id:016x}-01"]


async def test_routes_that_generate_nothing_have_no_inference() -> None:
    place = traced()

    await place.client.post("/tokenize", json={"prompt": "Hi"})

    assert place.tree() == {"POST /tokenize": ["auth", "queue"]}


async def test_the_callers_trace_goes_on_and_it_is_told_which() -> None:
    place = traced()
    headers = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "vendor=1"}

    answer = await place.client.post("/generate", json={"prompt": "Hi"}, headers=headers)

    root = place.named("POST /generate")
    assert root.parent is not None and root.context is not None
    assert f"{root.parent.span_id:016x}" == SPAN
    assert {f"{span.context.trace_id:032x}" for span in place.spans if span.context} == {TRACE}
    assert answer.headers["traceresponse"] == f"00-{TRACE}-{root.context.span_id:016x}-01"
    given = place.gateway.engines[0].jobs[0].trace or {}
    assert given["tracestate"] == "vendor=1"


async def test_a_caller_that_does_not_sample_is_not_traced_and_its_context_goes_on() -> None:
    place = traced()
    headers = {"traceparent": f"00-{TRACE}-{SPAN}-00"}

    answer = await place.client.post("/generate", json={"prompt": "Hi"}, headers=headers)

    given = place.gateway.engines[0].jobs[0].trace or {}
    assert place.spans == []
    assert given["traceparent"].startswith(f"00-{TRACE}-") and given["traceparent"].endswith("-00")
    assert answer.headers["traceresponse"].startswith(f"00-{TRACE}-")


@pytest.mark.parametrize(
    "sent", ["", "garbage", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01\xff"]
)
async def test_a_context_that_is_none_begins_a_trace_of_our_own(sent: str) -> None:
    place = traced()

    answer = await place.client.get("/stats", headers={b"traceparent": sent.encode("latin-1")})

    assert answer.status_code == 200
    assert place.named("GET /stats").parent is None


async def test_a_share_of_nothing_traces_nothing_of_its_own_accord() -> None:
    place = Traced(make_gateway(ScriptedEngine("first")), sample=0.0)

    await place.client.post("/generate", json={"prompt": "Hi"})
    await place.client.post(
        "/generate", json={"prompt": "Hi"}, headers={"traceparent": f"00-{TRACE}-{SPAN}-01"}
    )

    assert [span.name for span in place.spans].count("POST /generate") == 1


async def test_probes_are_not_traced() -> None:
    place = traced()

    await place.client.get("/health")

    assert place.spans == []


async def test_without_tracing_no_job_has_a_context_and_no_answer_a_header() -> None:
    engine = ScriptedEngine("first")

    answer = await make_gateway(engine).client.post("/thinking", json={"question": "Hi"})

    assert {job.trace for job in engine.jobs} == {None}
    assert "traceresponse" not in answer.headers


async def test_a_refused_key_ends_the_tree_at_auth(tmp_path: Path) -> None:
    place, _ = limited(tmp_path)

    await place.client.post("/generate", json={"prompt": "Hi"}, headers=bearer("no such key"))

    assert place.tree() == {"POST unmatched": ["auth"]}
    root = place.named("POST unmatched")
    assert told(root)["error.type"] == told(place.named("auth"))["error.type"] == "invalid_api_key"
    assert root.status.status_code is StatusCode.UNSET, "a caller's mistake is none of the server's"


async def test_an_engine_that_dies_is_an_error_all_the_way_up() -> None:
    place = traced()
    failure = EngineUnavailable("gone")
    place.gateway.engines[0].script = lambda job: Script(["Hm", "m"], failure=failure, fail_at=1)

    await place.client.post("/thinking", json={"question": "Hi", "stream": True})

    for name in ("POST /thinking", "chat first", "think"):
        span = place.named(name)
        assert span.status.status_code is StatusCode.ERROR, name
        assert told(span)["error.type"] == failure.code, name
        assert not span.events, "no message of an exception"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_caller_that_hangs_up_leaves_a_whole_tree(stream: bool) -> None:
    place = traced()
    engine = place.gateway.engines[0]
    waiting = asyncio.Event()
    engine.script = lambda job: Script(["a", "b", "c"], gate=waiting, gate_at=2)
    engine.opens_thought = True
    body = b'{"question": "Hi", "stream": %s}' % (b"true" if stream else b"false")
    wire = Wire("/thinking", body)

    call = asyncio.create_task(wire.through(place.app))
    async with asyncio.timeout(PATIENCE_S):
        await engine.crowded.wait()
        wire.gone.set()
        await call

    assert place.tree() == {
        "POST /thinking": ["auth", "queue", {"chat first": ["render", "think"]}]
    }
    assert told(place.named("POST /thinking"))["gateway.outcome"] == "disconnected"
    for name in ("chat first", "think"):
        assert told(place.named(name))["gateway.cancelled"] is True


def broken(job: Job) -> Script:
    return Script([CANARY], failure=RuntimeError(CANARY), fail_at=1)


BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/thinking", {"question": CANARY}),
    ("/thinking", {"question": CANARY, "samples": 2, "stream": True}),
    ("/thinking", {"question": CANARY, "max_tokens": CANARY}),
    ("/generate", {"prompt": CANARY, "stop": [CANARY]}),
    ("/batch_generate", {"prompts": [CANARY]}),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": CANARY}], "temperature": CANARY},
    ),
    ("/v1/completions", {"prompt": CANARY, "model": CANARY}),
]


@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.parametrize(("path", "body"), BODIES)
async def test_no_prompt_and_no_answer_is_in_a_trace(
    path: str, body: dict[str, Any], failing: bool
) -> None:
    place = traced(CANARY, "</think>", CANARY)
    if failing:
        place.gateway.engines[0].script = broken

    await Wire(path, json.dumps(body).encode()).through(place.app)

    assert place.spans and CANARY not in place.text()


async def test_prompts_are_there_where_the_operator_asked() -> None:
    place = traced("Hm", "</think>", "Four", trace_prompts=True)

    await place.client.post("/thinking", json={"question": CANARY})

    call = told(place.named("chat first"))
    assert CANARY in call["gen_ai.input.messages"] and "Four" in call["gen_ai.output.messages"]
