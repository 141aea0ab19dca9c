"""The queue in front of an engine: order, bounds, time-outs, and that every place comes back."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.crowded import ASK, CHAT, TENANTS, Crowded
from tests.scripted import PATIENCE_S, Script, ScriptedEngine, make_gateway, tokens
from tests.switching import Bench, answering
from tests.tenants import Tenants, bearer, header
from tests.unit.test_fleet import until
from tests.wire import wire


@pytest.fixture
def crowded(tmp_path: Path) -> Crowded:
    return Crowded(tmp_path)


@pytest.fixture
async def busy(crowded: Crowded) -> AsyncIterator[Crowded]:
    """Its one place is taken by tenant `a`."""
    first = crowded.asks("a", x_request_id="first")
    await until(lambda: bool(crowded.gates))
    yield crowded
    await crowded.drained()
    assert (await first[0]).status_code == 200
    assert crowded.idle()


async def test_tenants_take_turns_although_one_came_with_many(busy: Crowded) -> None:
    busy.asks("a", 1, x_request_id="a1")
    busy.asks("a", 1, x_request_id="a2")
    await busy.waiting(2)
    busy.asks("b", 1, x_request_id="b1")
    busy.asks("b", 1, x_request_id="b2")
    await busy.waiting(4)

    order = await busy.drained()

    assert order[:2] == ["first", "b1"]
    assert sorted(order[2:4]) == ["a1", "b2"]


async def test_without_fairness_the_first_to_come_goes_first(tmp_path: Path) -> None:
    plain = Crowded(tmp_path, fair=False)
    admission = plain.model.admission
    for number, name in enumerate(("a0", "a1", "b0"), 1):
        plain.asks(name[0], x_request_id=name)
        await until(lambda number=number: admission.queued + admission.running == number)  # type: ignore[misc]

    assert await plain.drained() == ["a0", "a1", "b0"]


async def test_a_class_goes_before_the_one_below_and_none_above_its_keys(busy: Crowded) -> None:
    wanted = [
        ("slow", {"x_priority": "interactive"}),  # capped
        ("a", {"x_priority": "batch"}),
        ("b", {}),
        ("fast", {"x_priority": "Normal"}),
        ("fast", {}),
    ]
    for number, (tenant, headers) in enumerate(wanted):
        busy.asks(tenant, 1, x_request_id=str(number), **headers)
        await busy.waiting(number + 1)

    order = await busy.drained()

    assert order[:2] == ["first", "4"]
    assert set(order[2:4]) == {"2", "3"}
    assert set(order[4:]) == {"0", "1"}


@pytest.mark.parametrize(("priority", "queue"), [(5, "batch"), (-1000, "normal"), (0, "normal")])
@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions"])
async def test_a_bodys_priority_lowers_but_never_raises(
    busy: Crowded, priority: int, queue: Any, path: str
) -> None:
    body = (ASK if path == "/generate" else CHAT) | {"priority": priority}
    call = asyncio.create_task(busy.post("b", path, body))
    await busy.waiting(1)

    assert busy.model.admission.line.waiting(queue) == 1
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)


async def test_an_engine_that_heeds_priorities_gets_the_class_and_nothing_else(
    tmp_path: Path,
) -> None:
    tenants = Tenants(tmp_path, TENANTS)
    engine = tenants.engine
    engine.limits = replace(engine.limits, by_priority=True)

    for tenant in ("fast", "a", "slow"):
        await tenants.post(tenant, "/generate", ASK | {"priority": -900})
        await tenants.post(tenant, "/v1/chat/completions", CHAT | {"priority": -900})

    assert [job.priority for job in engine.jobs] == [0, 1, 2]
    assert [b'"priority":%d' % rank in engine.bodies[rank] for rank in range(3)] == [True] * 3


@pytest.mark.parametrize("path", ["/generate", "/thinking", "/v1/completions"])
async def test_a_class_that_is_none_is_refused_by_name(crowded: Crowded, path: str) -> None:
    response = await crowded.asks("a", 1, path, x_priority="urgent")[0]

    assert response.status_code == 400
    assert "X-Priority" in response.text


@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions"])
async def test_a_full_queue_is_told_as_our_capacity(tmp_path: Path, path: str) -> None:
    crowded = Crowded(tmp_path, max_queued=4)
    crowded.asks("a", 3)
    await crowded.waiting(2)

    own = await crowded.asks("a", 1, path)[0]  # its share is half
    other = crowded.asks("b", 2)
    await crowded.waiting(4)
    full = await crowded.asks("fast", 1, path)[0]
    await crowded.drained()

    assert [own.status_code, full.status_code] == [503, 503]
    for refused in (own, full):
        assert "queue_full" in refused.text
        assert int(refused.headers["retry-after"]) >= 1
    assert [(await task).status_code for task in other] == [200, 200]
    assert crowded.idle()


async def test_waiting_has_an_end(tmp_path: Path) -> None:
    crowded = Crowded(tmp_path, queue_timeout_s=0.01)
    crowded.asks("a")
    await until(lambda: bool(crowded.gates))

    refused = [await crowded.asks("b", 1, path)[0] for path in ("/generate", "/v1/completions")]

    assert [response.status_code for response in refused] == [503, 503]
    assert all("queue_timeout" in response.text for response in refused)
    await crowded.drained()
    assert crowded.idle()


async def test_retry_after_follows_the_rate_at_which_requests_left(
    crowded: Crowded, monkeypatch: pytest.MonkeyPatch
) -> None:
    admission = crowded.model.admission
    assert admission.retry_after_s(10) == 60  # nothing left in the last minute

    monkeypatch.setattr("gateway.policy.admission.time.monotonic", lambda: 1000.0)
    admission._left.extend(980.0 + second for second in range(20))  # one a second

    assert admission.retry_after_s(10) == 10
    assert admission.retry_after_s(0) == 1
    assert admission.retry_after_s(10_000) == 300


@pytest.mark.parametrize("path", ["/generate", "/thinking", "/v1/chat/completions"])
async def test_a_hang_up_in_the_queue_frees_the_place_at_once(busy: Crowded, path: str) -> None:
    body = CHAT if path != "/generate" else ASK
    one = wire(path, body)
    one.headers = [*one.headers, header(busy.keys["b"])]
    call = asyncio.create_task(one.through(busy.gateway.app))
    await busy.waiting(1)

    one.gone.set()
    await call

    assert busy.model.admission.queued == 0
    assert len(busy.engine.jobs) == 1
    assert not busy.engine.bodies


async def test_whoever_leaves_in_the_moment_of_its_turn_gives_the_place_back(
    busy: Crowded,
) -> None:
    admission, slot = busy.model.admission, busy.model.slot
    assert slot is not None
    (call,) = busy.asks("b")
    await busy.waiting(1)

    busy.gates[0].set()
    await until(lambda: admission.queued == 0)  # its turn has come; it has not woken yet
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)

    await until(busy.idle)


async def test_completions_and_samples_count_each(tmp_path: Path) -> None:
    crowded = Crowded(tmp_path, places=4)
    more = [asyncio.create_task(crowded.post("a", "/generate", ASK | {"n": 2}))]
    await until(lambda: bool(crowded.gates))
    more += [asyncio.create_task(crowded.post("b", "/v1/completions", ASK | {"n": 3}))]
    await crowded.waiting(1)

    assert len(crowded.engine.jobs) == 1
    await crowded.drained()
    assert [(await task).status_code for task in more] == [200, 200]


async def test_the_items_of_a_batch_wait_each(tmp_path: Path) -> None:
    crowded = Crowded(tmp_path, places=2)
    call = asyncio.create_task(crowded.post("a", "/batch_generate", {"prompts": ["x"] * 5}))
    await crowded.waiting(3)

    await crowded.drained()

    assert (await call).json()["stats"]["succeeded"] == 5
    assert crowded.idle()


async def test_what_generates_nothing_does_not_wait(busy: Crowded) -> None:
    for path, body in (("/tokenize", ASK), ("/v1/messages/count_tokens", CHAT)):
        assert (await busy.post("b", path, body)).status_code == 200
    key = bearer(busy.keys["b"])
    assert (await busy.client.get("/version", headers=key)).status_code == 200


async def test_a_tenant_alone_is_never_held_below_what_the_engine_runs() -> None:
    engine = ScriptedEngine("first")
    gate = asyncio.Event()
    engine.script = lambda job: Script(["o", "k"], gate=gate, gate_at=1)
    engine.crowd = engine.limits.max_num_seqs
    gateway = make_gateway(engine)

    calls = [
        asyncio.create_task(gateway.client.post("/generate", json={"prompt": "x" * 3000}))
        for _ in range(engine.crowd)
    ]
    await engine.crowded.wait()  # each prompt was let in as the ones before had been read
    gate.set()

    assert {(await call).status_code for call in calls} == {200}


async def test_places_come_back_after_errors(tmp_path: Path) -> None:
    tenants = Tenants(tmp_path, TENANTS)
    tenants.engine.script = lambda job: Script(["x"], failure=RuntimeError("boom"))

    for path, body in (("/generate", ASK), ("/thinking", CHAT)):
        assert (await tenants.post("a", path, body)).status_code == 500
    headers = bearer(tenants.keys["a"]) | {"x-scripted": "boom"}
    for path in ("/v1/chat/completions", "/v1/completions"):
        response = await tenants.client.post(path, json=CHAT, headers=headers)
        assert response.status_code == 500

    slot = tenants.gateway.model.slot
    assert slot is not None
    assert (slot.places.sequences, slot.in_flight, tenants.gateway.model.admission.running) == (
        0,
        0,
        0,
    )


async def test_a_dead_engine_lets_nobody_wait(busy: Crowded) -> None:
    waiting = busy.asks("b", 2)
    await busy.waiting(2)

    busy.engine.is_dead = True
    watcher = asyncio.create_task(busy.model.watch())
    answers = [await call for call in waiting]
    watcher.cancel()
    await asyncio.gather(watcher, return_exceptions=True)

    assert [answer.json()["code"] for answer in answers] == ["engine_unavailable"] * 2
    assert busy.model.admission.queued == 0


async def test_a_new_engine_beside_the_old_takes_those_who_wait() -> None:
    bench = Bench()
    gate = asyncio.Event()
    bench.old.limits = replace(bench.old.limits, max_num_seqs=1)
    bench.old.script = lambda job: Script(
        ["five words of an answer."], gate=gate if job.prompt == tokens("a") else None
    )
    first = asyncio.create_task(bench.ask())
    second = asyncio.create_task(bench.ask())
    await until(lambda: bench.model.admission.queued == 1)

    operation = await bench.begun()
    answer = await second  # from the new engine, while the old one still works

    assert answer.status_code == 200
    assert answer.headers["x-model-profile"] == "other"
    assert not first.done()
    gate.set()
    assert (await first).headers["x-model-profile"] == "first"
    assert (await bench.ended(operation))["state"] == "succeeded"
    assert all(slot.places.sequences == 0 for slot in bench.model.slots())


async def test_those_who_queue_wait_at_the_gate_while_the_engine_is_replaced() -> None:
    bench = Bench()
    model, gate = bench.model, asyncio.Event()
    bench.old.limits = replace(bench.old.limits, max_num_seqs=1)
    bench.old.script = lambda job: Script(["ok"], gate=gate)
    calls = [asyncio.create_task(bench.ask()) for _ in range(3)]
    await until(lambda: model.admission.queued == 2)

    model.close_gate()
    await until(lambda: model.waiting == 2)
    assert model.admission.queued == 0
    gate.set()
    await calls[0]
    before = model.slot
    fresh = answering()
    assert before is not None
    model.publish(replace(before, engine=fresh, number=2))
    model.gate.set()

    assert [(await call).status_code for call in calls] == [200] * 3
    assert before is not model.slot
    assert len(fresh.jobs) == 2
    assert bench.gateway.fleet.in_flight() == 0


async def test_draining_refuses_those_who_wait(busy: Crowded) -> None:
    waiting = busy.asks("b", 2)
    await busy.waiting(2)

    drain = asyncio.create_task(busy.gateway.fleet.drain(10 * PATIENCE_S))
    answers = [await call for call in waiting]
    busy.gates[0].set()

    assert [answer.status_code for answer in answers] == [503, 503]
    assert await drain


async def test_the_queue_is_in_metrics_stats_and_notes(busy: Crowded) -> None:
    seen: list[Any] = []
    admission = busy.model.admission
    (call,) = busy.asks("b")
    await busy.waiting(1)

    value, gauge = (
        each.get_sample_value
        for each in (busy.gateway.figures.registry, busy.gateway.figures.gauges)
    )
    labels = {"model": "first", "class": "normal"}
    assert gauge("gateway_queued_requests", labels) == 1
    assert gauge("gateway_running_requests", {"model": "first"}) == 1
    stats = await busy.client.get("/stats", headers=bearer(busy.keys["a"]))
    assert stats.json()["queued"] == 1
    observe, admission.observe = admission.observe, lambda *given: seen.append(given)
    busy.gates[0].set()
    await until(lambda: bool(seen))
    admission.observe = observe

    assert value("gateway_admissions_total", labels) == 1
    assert value("gateway_queue_time_seconds_count", labels) == 1
    assert seen[0][0] == "normal"
    assert seen[0][1] > 0
    busy.gates[1].set()
    assert (await call).status_code == 200
