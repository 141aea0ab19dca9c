"""The native routes over a scripted engine: what the engine is asked, what the caller gets."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from gateway.engines.types import Job
from gateway.errors import EngineUnavailable, InvalidRequest
from tests.scripted import (
    Gateway,
    Script,
    ScriptedEngine,
    events_of,
    make_app,
    make_gateway,
    text_of,
)
from tests.wire import Wire, wire


@pytest.fixture
def engine() -> ScriptedEngine:
    engine = ScriptedEngine(context=1000)
    engine.script = lambda job: Script(["He", "llo"])
    return engine


async def post(engine: ScriptedEngine, path: str, body: Any, **settings: Any) -> Any:
    async with make_app(engine, **settings) as client:
        response = await client.post(path, json=body)
    return response.json() | {"http": response.status_code}


def job_of(engine: ScriptedEngine) -> Job:
    (job,) = engine.jobs
    return job


async def test_the_seed_call_of_generate_works_as_written(engine: ScriptedEngine) -> None:
    body = await post(
        engine, "/generate", {"prompt": "从前", "max_length": 200, "temperature": 0.7}
    )

    job = job_of(engine)
    assert (text_of(job.prompt), job.max_tokens, job.sampling["temperature"]) == ("从前", 200, 0.7)
    assert (body["http"], body["text"], body["finish_reason"]) == (200, "Hello", "stop")
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (2, 5)
    assert body["usage"]["total_tokens"] == 7


async def test_the_seed_call_of_thinking_works_as_written(engine: ScriptedEngine) -> None:
    body = await post(
        engine,
        "/thinking",
        {"question": "二加二?", "thinking_depth": 3, "include_reasoning": True},
    )

    assert (body["http"], body["answer"], body["reasoning"]["text"]) == (200, "Hello", "Hello")
    assert text_of(engine.jobs[0].prompt) == "<user>二加二?<assistant><think>\n"
    details = body["usage"]["completion_tokens_details"]
    assert body["usage"]["completion_tokens"] == sum(details.values())


@pytest.mark.parametrize("alias", ["max_tokens", "max_length", "max_new_tokens"])
@pytest.mark.parametrize("prompt", ["prompt", "text"])
async def test_the_names_of_other_servers_are_understood(
    engine: ScriptedEngine, alias: str, prompt: str
) -> None:
    await post(engine, "/generate", {prompt: "x", alias: 7})

    assert (job_of(engine).max_tokens, text_of(job_of(engine).prompt)) == (7, "x")


async def test_sglangs_form_is_understood(engine: ScriptedEngine) -> None:
    nested = {"max_new_tokens": 7, "temperature": 0.2, "stop": "END"}

    await post(engine, "/generate", {"text": "x", "sampling_params": nested})

    job = job_of(engine)
    assert (job.max_tokens, job.sampling["temperature"], job.sampling["stop"]) == (7, 0.2, ["END"])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"n": 1, "stop": []}),
        ({"top_p": 0.5, "top_k": 3, "min_p": 0.1}, {"top_p": 0.5, "top_k": 3, "min_p": 0.1}),
        ({"seed": 5, "n": 2, "logprobs": 1}, {"seed": 5, "n": 2, "logprobs": 1}),
        ({"do_sample": False, "temperature": 0.9}, {"temperature": 0.0}),
        ({"do_sample": True, "temperature": 0.9}, {"temperature": 0.9}),
        ({"stop": "a"}, {"stop": ["a"]}),
        ({"repetition_penalty": 1.2, "presence_penalty": 1}, {"repetition_penalty": 1.2}),
    ],
    ids=str,
)
async def test_sampling_reaches_the_engine(
    engine: ScriptedEngine, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    await post(engine, "/generate", {"prompt": "x", **given})

    sampling = job_of(engine).sampling
    assert {name: sampling.get(name) for name in expected} == expected
    assert "do_sample" not in sampling


async def test_what_is_not_given_is_left_to_the_model(engine: ScriptedEngine) -> None:
    await post(engine, "/generate", {"prompt": "x", "priority": -4})

    assert set(job_of(engine).sampling) == {"n", "stop"}


async def test_a_default_is_cut_to_the_context(engine: ScriptedEngine) -> None:
    await post(engine, "/generate", {"prompt": "x" * 900})

    assert job_of(engine).max_tokens == 100


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/generate", {"prompt": "x" * 900, "max_tokens": 101}, "max_tokens"),
        ("/generate", {"prompt": "x" * 1000}, "prompt"),
        ("/generate", {"prompt": "x" * 1001}, "prompt"),
        ("/generate", {"prompt": ""}, ""),
        ("/generate", {}, ""),
        ("/generate", {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, ""),
        ("/generate", {"prompt": "x", "temprature": 1}, "temprature"),
        ("/generate", {"prompt": "x", "n": 17}, "n"),
        ("/generate", {"prompt": "x", "logprobs": 21}, "logprobs"),
        ("/generate", {"prompt": "x", "stop": ["a"] * 17}, "stop"),
        ("/generate", {"prompt": "x", "stop": [""]}, "stop"),
        ("/generate", {"prompt": "x", "temperature": 2.5}, "temperature"),
        ("/generate", {"prompt": "x", "seed": 2**63}, "seed"),
        ("/generate", {"messages": [{"content": [{"type": "image_url"}]}]}, "messages"),
        ("/thinking", {"question": "x", "thinking_depth": 6}, "thinking_depth"),
        ("/thinking", {"question": "x", "thinking_depth": "deep"}, "thinking_depth"),
        ("/thinking", {"question": "x", "samples": 0}, "samples"),
        ("/thinking", {"question": "x", "samples": 17}, "samples"),
        ("/thinking", {"question": "x", "confidence": "very"}, "confidence"),
        ("/thinking", {"question": "x", "early_exit": True}, "early_exit"),
        ("/thinking", {"question": "x", "thinking_depth": 9}, "thinking_depth"),
        ("/thinking", {"question": ""}, "question"),
        ("/batch_generate", {"prompts": []}, "prompts"),
        ("/batch_generate", {"prompts": ["x"] * 65}, "requests"),
        ("/batch_generate", {"prompts": ["x"], "requests": [{}]}, ""),
        ("/batch_generate", {"prompts": ["x"], "temprature": 1}, "temprature"),
        ("/batch_generate", {"prompts": ["x"], "prompt": "y"}, "prompt"),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_a_wrong_request_names_the_field_and_reaches_no_engine(
    engine: ScriptedEngine, path: str, body: dict[str, Any], field: str
) -> None:
    problem = await post(engine, path, body)

    assert (problem["http"], problem["param"] or "") == (400, field)
    assert engine.jobs == []


async def test_a_native_body_nested_deeper_than_the_limit_is_refused(
    engine: ScriptedEngine,
) -> None:
    deep: Any = "x"
    for _ in range(100):
        deep = [deep]
    body = {"messages": [{"role": "user", "content": "x", "more": deep}]}

    problem = await post(engine, "/generate", body)

    assert (problem["http"], "deeper than 64" in problem.get("detail", "")) == (400, True)


@pytest.mark.parametrize("levels", range(100, 1000, 50))
async def test_nesting_of_any_depth_is_a_400(engine: ScriptedEngine, levels: int) -> None:
    body = b'{"prompt": %b1%b}' % (b"[" * levels, b"]" * levels)

    request = Wire("/generate", body)
    await request.through(make_gateway(engine).app)

    assert request.status == 400


@pytest.mark.parametrize("path", ["/generate", "/thinking"])
async def test_the_stream_ends_with_the_body_of_the_plain_call(
    engine: ScriptedEngine, path: str
) -> None:
    body = {"messages": [{"role": "user", "content": "x"}]}
    plain = await post(engine, path, body)

    async with make_app(engine) as client:
        events = events_of((await client.post(path, json=body | {"stream": True})).text)

    varying = {"id", "created", "generation_time_s", "tokens_per_second", "http"}
    streamed = events[-1]["response"]
    assert events[-1]["type"] == f"{path[1:]}.completed"
    assert {k: v for k, v in streamed.items() if k not in varying} == {
        k: v for k, v in plain.items() if k not in varying
    }
    assert [event["delta"] for event in events if "delta" in event][-2:] == ["He", "llo"]


async def test_hidden_reasoning_is_in_no_event(engine: ScriptedEngine) -> None:
    engine.script = lambda job: Script(["secret" if "think" in job.request_id[-6:] else "open"])
    body = {"question": "x", "include_reasoning": False, "stream": True}

    async with make_app(engine) as client:
        text = (await client.post("/thinking", json=body)).text

    assert "secret" not in text
    assert "open" in text


def item_failure(job: Job) -> Script:
    if text_of(job.prompt) == "bad":
        return Script(failure=InvalidRequest("the engine refuses it", "seed"))
    return Script([f"{text_of(job.prompt)}!"])


async def test_one_bad_item_does_not_hurt_the_others(engine: ScriptedEngine) -> None:
    engine.script = item_failure
    items: list[Any] = [{"prompt": "a"}, {"prompt": "bad"}, {"what": 1}, "text", {"text": "b"}]

    body = await post(engine, "/batch_generate", {"requests": items})

    results = body["results"]
    assert [result.get("text") for result in results] == ["a!", None, None, None, "b!"]
    assert [result.get("status") for result in results] == [None, 400, 400, 400, None]
    assert (body["stats"]["succeeded"], body["stats"]["failed"]) == (2, 3)
    assert body["usage"]["completion_tokens"] == 4


async def test_an_unexpected_failure_of_one_item_does_not_hurt_the_others(
    engine: ScriptedEngine,
) -> None:
    engine.script = lambda job: Script(
        failure=RuntimeError("secret") if text_of(job.prompt) == "bad" else None
    )

    body = await post(engine, "/batch_generate", {"prompts": ["a", "bad", "b"]})

    assert body["http"] == 200
    assert [result.get("text") for result in body["results"]] == ["ok", None, "ok"]
    assert "secret" not in str(body)


async def test_fields_beside_the_list_hold_for_items_that_do_not_say_otherwise(
    engine: ScriptedEngine,
) -> None:
    items = [{"prompt": "a"}, {"prompt": "b", "max_tokens": 7}, {"prompt": "c", "max_length": 8}]

    await post(engine, "/batch_generate", {"requests": items, "max_tokens": 5})

    assert sorted((text_of(job.prompt), job.max_tokens) for job in engine.jobs) == [
        ("a", 5),
        ("b", 7),
        ("c", 8),
    ]


async def test_results_keep_the_order_of_the_requests_whoever_is_ready_first(
    engine: ScriptedEngine,
) -> None:
    slow = asyncio.Event()
    engine.script = lambda job: Script(
        [text_of(job.prompt)], gate=slow if text_of(job.prompt) == "a" else None
    )
    request = wire("/batch_generate", {"prompts": ["a", "b"], "stream": True})
    async with asyncio.TaskGroup() as group:
        group.create_task(request.through(make_gateway(engine).app))
        await request.arrived.wait()
        slow.set()

    *results, completed = events_of(request.answer.decode())

    assert [event["index"] for event in results] == [1, 0]
    assert [result["text"] for result in completed["response"]["results"]] == ["a", "b"]


async def test_all_items_of_a_batch_are_in_the_engine_at_once(engine: ScriptedEngine) -> None:
    gate = asyncio.Event()
    engine.crowd = 64
    engine.limits = replace(engine.limits, max_num_seqs=64)
    engine.script = lambda job: Script(gate=gate)
    async with make_app(engine) as client, asyncio.TaskGroup() as group:
        call = group.create_task(client.post("/batch_generate", json={"prompts": ["x"] * 64}))
        await engine.crowded.wait()
        gate.set()

    assert call.result().json()["stats"]["succeeded"] == 64
    assert len({job.request_id for job in engine.jobs}) == 64


CALLS: list[tuple[str, dict[str, Any]]] = [
    ("/generate", {"prompt": "x"}),
    ("/thinking", {"question": "x"}),
    ("/batch_generate", {"prompts": ["x", "y"]}),
]
STREAM = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
EACH = pytest.mark.parametrize(("path", "body"), CALLS, ids=[path for path, _ in CALLS])


def left_over(gateway: Gateway) -> tuple[int, int]:
    return gateway.fleet.in_flight(), gateway.engines[0].unfinished()


@STREAM
@EACH
@pytest.mark.parametrize("failure", [None, EngineUnavailable("dead"), RuntimeError("x")], ids=str)
async def test_nothing_is_in_flight_after_an_answer_or_an_error(
    engine: ScriptedEngine,
    path: str,
    body: dict[str, Any],
    stream: bool,
    failure: Exception | None,
) -> None:
    engine.script = lambda job: Script(["a", "b"], failure=failure, fail_at=1)
    gateway = make_gateway(engine)

    await wire(path, body | {"stream": stream}).through(gateway.app)

    assert engine.jobs != []
    assert left_over(gateway) == (0, 0)


@STREAM
@EACH
@pytest.mark.parametrize("step", [0, 1], ids=["before the first token", "later"])
async def test_hanging_up_aborts_every_job_before_the_request_ends(
    engine: ScriptedEngine, path: str, body: dict[str, Any], stream: bool, step: int
) -> None:
    n_jobs = len(body.get("prompts", "x"))
    engine.script = lambda job: Script(["a", "b"], gate=asyncio.Event(), gate_at=step)
    engine.crowd = n_jobs
    gateway = make_gateway(engine)
    request = wire(path, body | {"stream": stream})

    async with asyncio.TaskGroup() as group:
        group.create_task(request.through(gateway.app))
        await engine.crowded.wait()
        assert gateway.fleet.in_flight() == n_jobs
        request.gone.set()

    assert len(engine.aborted) == n_jobs
    assert left_over(gateway) == (0, 0)


async def test_hanging_up_while_nothing_is_read_aborts_the_rest_of_a_batch(
    engine: ScriptedEngine,
) -> None:
    engine.script = lambda job: Script(
        gate=None if text_of(job.prompt) == "quick" else asyncio.Event()
    )
    gateway = make_gateway(engine)
    body = {"prompts": ["quick", "slow", "slow"], "stream": True}
    request = wire("/batch_generate", body, stuck_at=1)

    async def abandoned() -> tuple[int, int]:
        await request.through(gateway.app)
        return left_over(gateway)

    async with asyncio.TaskGroup() as group:
        call = group.create_task(abandoned())
        await request.stuck.wait()
        request.gone.set()

    assert call.result() == (0, 0)
    assert len(engine.aborted) == 2


@pytest.mark.parametrize("step", [0, 1], ids=["before the first token", "later"])
@STREAM
async def test_a_deadline_aborts_the_work_and_is_told(
    engine: ScriptedEngine, stream: bool, step: int
) -> None:
    engine.script = lambda job: Script(["a", "b"], gate=asyncio.Event(), gate_at=step)
    gateway = make_gateway(engine)
    body = {"prompt": "x", "deadline_s": 0.3 if step else 0.01, "stream": stream}

    response = await gateway.client.post("/generate", json=body)

    begun = stream and step == 1
    told = events_of(response.text)[-1]["response"] if begun else response.json()
    assert response.status_code == (200 if begun else 504)
    assert (told["status"], told["code"], told["param"]) == (504, "deadline_exceeded", "deadline_s")
    assert len(engine.aborted) == 1
    assert left_over(gateway) == (0, 0)


async def test_a_stream_that_the_engine_refuses_at_once_is_no_200(engine: ScriptedEngine) -> None:
    engine.script = lambda job: Script(failure=EngineUnavailable("dead"))

    async with make_app(engine) as client:
        generate = await client.post("/generate", json={"prompt": "x", "stream": True})
        thinking = await client.post("/thinking", json={"question": "x", "stream": True})

    assert (generate.status_code, thinking.status_code) == (503, 503)
