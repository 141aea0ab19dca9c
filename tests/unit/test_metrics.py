"""Each family of /metrics moves when it should, and `/stats` tells the same."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gateway.engines.slot import State
from gateway.errors import EngineOverloaded, EngineUnavailable, QueueFull, QueueTimeout
from gateway.observability.outcome import OUTCOMES
from gateway.observability.stats import Counters
from gateway.policy.meter import Meter
from gateway.thinking.effort import Plan
from gateway.thinking.run import ThinkingRun
from tests.drawn import Drawn
from tests.runs import ANSWER, phases, run_on
from tests.scripted import Gateway, Script, ScriptedEngine, make_gateway
from tests.tenants import Tenants
from tests.unit.test_figures import exchange
from tests.wire import Wire, wire

THOUGHT = Script(["so so", "</think>", "It is", " four."], tail=(0,), cached=3)
LONG = Script(["x"] * 900, finish="length")
ASKED = {"question": "2+2?", "max_tokens": 1000}


def values(gateway: Gateway, name: str, **labels: str) -> float:
    """Sum of the samples of that name whose labels fit."""
    samples = Counters.of(gateway.figures.registry).samples.get(name, [])
    return sum(
        sample.value
        for sample in samples
        if all(sample.labels[key] == value for key, value in labels.items())
    )


def thinker(**scripts: Script) -> Gateway:
    engine = ScriptedEngine("first")
    engine.script = phases(**scripts) if scripts else lambda job: Script(["ok", "ok"])
    return make_gateway(engine)


@pytest.mark.parametrize(
    ("scripts", "changes", "reason", "forced"),
    [
        ({"think": THOUGHT}, {}, "natural", "false"),
        ({"think": LONG, "answer": ANSWER}, {"thinking_budget": 10}, "budget", "true"),
        ({"think": Script(["so"], tail=(0,)), "answer": ANSWER}, {}, "eos", "true"),
    ],
    ids=["natural", "budget", "eos"],
)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
async def test_a_thought_is_counted_by_its_end(
    scripts: dict[str, Script], changes: dict[str, Any], reason: str, forced: str, stream: bool
) -> None:
    gateway = thinker(**scripts)

    await gateway.client.post("/thinking", json=ASKED | changes | {"stream": stream})

    labels = {"model": "first", "end_reason": reason, "forced": forced}
    assert values(gateway, "gateway_thoughts_total") == 1
    assert values(gateway, "gateway_thoughts_total", **labels) == 1
    assert values(gateway, "gateway_budget_hits_total") == (reason == "budget")


async def test_a_skipped_thought_is_none() -> None:
    gateway = thinker(answer=ANSWER)

    await gateway.client.post("/thinking", json=ASKED | {"thinking_depth": 0})

    assert values(gateway, "gateway_thoughts_total") == 0
    assert values(gateway, "gateway_time_to_first_answer_token_seconds_count") == 0
    assert values(gateway, "gateway_requests_total", outcome="ok") == 1


async def test_each_sample_has_a_thought_of_its_own() -> None:
    gateway = thinker(think=THOUGHT)

    await gateway.client.post("/thinking", json=ASKED | {"samples": 3})

    assert values(gateway, "gateway_thoughts_total") == 3
    assert values(gateway, "gateway_time_to_first_answer_token_seconds_count") == 3
    assert values(gateway, "gateway_time_to_first_token_seconds_count") == 1


async def run_out(run: ThinkingRun, pieces: int | None = None) -> ThinkingRun:
    seen = 0
    async for _ in run.pieces():
        seen += 1
        if seen == pieces:
            break
    return run


async def test_thoughts_behind_vllms_own_routes_are_counted_from_their_runs() -> None:
    """There the runs are made by the engine's client; what the edge sees is the plan."""
    gateway = thinker(think=LONG, answer=ANSWER)
    plan = Plan(level=3)
    plan.begin([await run_out(run_on(gateway.engines[0], budget=10)) for _ in range(2)])
    slot = gateway.model.slot

    notes = {"plan": plan, "slot": slot, "model": "first", "meter": meter_of()}
    gateway.figures.observe(exchange(route="/v1/chat/completions", notes=notes))

    assert values(gateway, "gateway_thoughts_total", end_reason="budget", forced="true") == 2
    assert values(gateway, "gateway_budget_hits_total", model="first") == 2


async def test_a_thought_that_nobody_waited_for_was_aborted() -> None:
    gateway = thinker(think=LONG)
    plan = Plan(level=3)
    plan.begin([await run_out(run_on(gateway.engines[0]), pieces=3)])

    notes = {"plan": plan, "slot": gateway.model.slot, "model": "first", "meter": meter_of()}
    gateway.figures.observe(exchange(disconnected=True, notes=notes))

    assert values(gateway, "gateway_thoughts_total", end_reason="aborted", forced="false") == 1


def meter_of(*drawn: Drawn, told: Mapping[str, Any] | None = None) -> Any:
    from_notes = {"usage": told} if told else {}
    meter = Meter(from_notes)
    meter.drawn.extend(drawn)
    return meter


def test_times_are_the_engines_own() -> None:
    """Arrival at 100: two generations, of which the second came first."""
    gateway = thinker()
    first = Drawn(5, output=3, first_at=100.5, last_at=102.5)
    second = Drawn(5, output=5, first_at=100.25, last_at=101.25)
    notes = {"slot": gateway.model.slot, "model": "first", "meter": meter_of(first, second)}

    gateway.figures.observe(exchange(first_byte=107.0, seconds=7.5, notes=notes))

    assert values(gateway, "gateway_time_to_first_token_seconds_sum") == 0.25
    assert values(gateway, "gateway_time_per_output_token_seconds_sum") == 0.5  # 3 s, 6 tokens
    assert values(gateway, "gateway_request_duration_seconds_sum") == 7.5


async def test_a_plain_answer_began_before_it_was_whole() -> None:
    gateway = thinker(think=LONG, answer=ANSWER)
    run = await run_out(run_on(gateway.engines[0], budget=10, stream=False))
    plan = Plan(level=3, runs=[run])
    drawn = Drawn(5, output=2, name="r-answer", first_at=101.5, last_at=109.0)
    run.answer_at = 109.0
    notes = {"plan": plan, "slot": gateway.model.slot, "model": "first", "meter": meter_of(drawn)}

    gateway.figures.observe(exchange(notes=notes))

    assert values(gateway, "gateway_time_to_first_answer_token_seconds_sum") == 1.5


def test_of_a_generation_of_one_token_there_is_no_time_between_tokens() -> None:
    gateway = thinker()
    meter = meter_of(Drawn(5, output=1, first_at=100.5, last_at=100.5))
    notes = {"slot": gateway.model.slot, "model": "first", "meter": meter}

    gateway.figures.observe(exchange(notes=notes))

    assert values(gateway, "gateway_time_per_output_token_seconds_count") == 0
    assert values(gateway, "gateway_time_to_first_token_seconds_count") == 1


async def test_tokens_are_counted_by_kind_as_they_are_accounted() -> None:
    gateway = thinker(think=THOUGHT)

    told = (await gateway.client.post("/thinking", json=ASKED)).json()["usage"]

    counted = {
        kind: values(gateway, "gateway_tokens_total", kind=kind, tenant="default")
        for kind in ("prompt", "cached", "thinking", "answer")
    }
    assert counted["prompt"] == told["prompt_tokens"]
    assert counted["cached"] == told["prompt_tokens_details"]["cached_tokens"] == 3
    assert counted["thinking"] == told["completion_tokens_details"]["reasoning_tokens"] == 5
    assert counted["thinking"] + counted["answer"] == told["completion_tokens"]


@pytest.mark.parametrize("mode", ["off", "logprobs"])
async def test_confidence_is_counted_where_it_was_measured(mode: str) -> None:
    gateway = thinker(think=THOUGHT)

    body = (await gateway.client.post("/thinking", json=ASKED | {"confidence": mode})).json()

    assert values(gateway, "gateway_confidence_count", model="first") == ("confidence" in body)
    if mode != "off":
        assert values(gateway, "gateway_confidence_sum") == body["confidence"]["score"]


@pytest.mark.parametrize(
    ("failure", "outcome"),
    [
        (EngineUnavailable("x"), "server_error"),
        *((refusal("x"), "rejected") for refusal in (EngineOverloaded, QueueFull, QueueTimeout)),
    ],
    ids=lambda value: value if isinstance(value, str) else value.code,
)
async def test_a_refusal_is_told_from_a_failure(failure: EngineUnavailable, outcome: str) -> None:
    gateway = thinker()
    gateway.engines[0].script = lambda job: Script(failure=failure)

    await gateway.client.post("/generate", json={"prompt": "x"})

    assert values(gateway, "gateway_requests_total", outcome=outcome, route="/generate") == 1
    rejected = float(outcome == "rejected")
    assert values(gateway, "gateway_rejections_total", reason=failure.code) == rejected
    assert values(gateway, "gateway_request_duration_seconds_count") == 0


async def test_what_fails_for_its_engines_state_is_counted_for_its_model() -> None:
    gateway = thinker()
    gateway.model.state = State.DEAD

    await gateway.client.post("/generate", json={"prompt": "x"})

    labels = {"model": "first", "profile": "", "format": ""}
    assert values(gateway, "gateway_requests_total", outcome="server_error", **labels) == 1


async def test_outcomes_of_generating_requests_begin_at_0_and_leave_polls_out(
    tmp_path: Path,
) -> None:
    """A series that is born at 1 has no rate; polls of /stats would flatter the share of errors."""
    tenants = Tenants(tmp_path, {"a": {"rpm": 2}})
    name = "gateway_outcomes_total"
    outcomes = {
        sample.labels["outcome"]: sample.value
        for sample in Counters.of(tenants.gateway.figures.registry).samples[name]
    }
    assert outcomes == dict.fromkeys(OUTCOMES, 0)

    await tenants.post("a", "/generate", {"prompt": "x"})
    tenants.gateway.model.state = State.DEAD
    await tenants.post("a", "/thinking", {"question": "x"})
    await tenants.post("a", "/generate", {"prompt": "x"})  # over its limit
    await tenants.client.post("/v1/completions", json={"prompt": "x"})  # no key
    for path in ("/stats", "/thinking", "/v1/models", "/nothing"):
        await tenants.client.get(path)

    told = {outcome: values(tenants.gateway, name, outcome=outcome) for outcome in OUTCOMES}
    assert told == dict.fromkeys(OUTCOMES, 1) | {"disconnected": 0}


async def test_a_tenants_limit_rejects_with_its_reason(tmp_path: Path) -> None:
    tenants = Tenants(tmp_path, {"a": {"rpm": 1}})

    for _ in range(3):
        await tenants.post("a", "/generate", {"prompt": "x"})
    await tenants.client.post("/generate", json={"prompt": "x"})  # no key

    gateway = tenants.gateway
    assert values(gateway, "gateway_rejections_total", reason="rate_limit_exceeded") == 2
    assert values(gateway, "gateway_requests_total", outcome="rejected", tenant="a") == 2
    assert values(gateway, "gateway_requests_total", outcome="ok", tenant="a", model="first") == 1
    assert values(gateway, "gateway_requests_total", outcome="client_error", tenant="") == 1


async def test_a_hang_up_is_counted_with_the_tokens_it_cost() -> None:
    gateway = thinker()
    gate = asyncio.Event()
    gateway.engines[0].script = lambda job: Script(["ab", "cd"], gate=gate, gate_at=1)
    call: Wire = wire("/generate", {"prompt": "x", "stream": True})

    async def leave() -> None:
        await call.arrived.wait()
        call.gone.set()

    await asyncio.gather(call.through(gateway.app), leave())

    assert values(gateway, "gateway_requests_total", outcome="disconnected") == 1
    assert values(gateway, "gateway_tokens_total", kind="answer") == 2
    assert values(gateway, "gateway_time_to_first_token_seconds_count") == 1
    assert values(gateway, "gateway_request_duration_seconds_count") == 0


async def test_metrics_name_so_many_tenants_and_no_more(tmp_path: Path) -> None:
    tenants = Tenants(tmp_path, {"a": {}, "b": {}, "c": {}}, metrics_tenants=2)

    for name in ("c", "a", "b", "c"):
        await tenants.post(name, "/generate", {"prompt": "x"})

    gateway = tenants.gateway
    told = {
        name: values(gateway, "gateway_requests_total", tenant=name)
        for name in ("a", "b", "c", "other")
    }
    assert told == {"a": 1, "b": 0, "c": 2, "other": 1}


async def test_switched_off_no_request_is_counted_and_all_is_served() -> None:
    gateway = make_gateway(ScriptedEngine(), metrics=False)

    answered = await gateway.client.post("/generate", json={"prompt": "x"})
    stats = (await gateway.client.get("/stats")).json()

    assert answered.status_code == 200
    assert (stats["requests"]["total"], stats["latency_s"]["count"]) == (0, 0)
    assert values(gateway, "gateway_requests_total") == 0


async def test_an_observer_that_fails_hurts_neither_the_answer_nor_the_others(
    tmp_path: Path,
) -> None:
    settings = {"usage_url": f"sqlite:///{tmp_path / 'usage.db'}"}
    gateway = make_gateway(ScriptedEngine(), **settings)
    gateway.figures.requests.tokens = None  # type: ignore[assignment]

    answer = await gateway.client.post("/generate", json={"prompt": "x"})

    assert answer.status_code == 200
    assert [row["outcome"] for row in gateway.tenancy.usage.waiting] == ["ok"]


async def test_stats_and_metrics_tell_the_same() -> None:
    gateway = thinker(think=LONG, answer=ANSWER)
    client = gateway.client
    await client.post("/thinking", json=ASKED | {"thinking_budget": 10, "samples": 2})
    await client.post("/thinking", json={})
    await client.post("/generate", json={"prompt": "x", "stream": True})
    await client.post("/v1/chat/completions", json={"messages": []}, headers={"x-scripted": "boom"})
    await client.get("/nowhere")

    stats = (await client.get("/stats")).json()

    requests, thinking, tokens = stats["requests"], stats["thinking"], stats["tokens"]
    assert requests["total"] == values(gateway, "gateway_requests_total") - 1 == 5
    for route, outcomes in requests["by_route"].items():
        for outcome, count in outcomes.items():
            labels = {"route": route, "outcome": outcome}
            assert values(gateway, "gateway_requests_total", **labels) == count, labels
    assert requests["by_outcome"] == {"ok": 2, "client_error": 2, "server_error": 1}
    assert requests["success_rate"] == round(2 / 3, 6)
    for kind, count in tokens.items():
        assert values(gateway, "gateway_tokens_total", kind=kind) == count, kind
    assert thinking["thoughts"] == values(gateway, "gateway_thoughts_total") == 2
    assert thinking["budget_hits"] == values(gateway, "gateway_budget_hits_total") == 2
    assert (thinking["forced"], thinking["forced_rate"]) == (2, 1.0)
    assert thinking["tokens"] == tokens["thinking"] == 20
    answered = values(gateway, "gateway_request_duration_seconds_count", route="/generate")
    assert stats["ttft_s"]["count"] == stats["latency_s"]["count"] == 1 + answered == 2
