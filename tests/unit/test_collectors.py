"""What is read at a scrape: engines, limits, memory, GPUs, disks, Redis, switches; and live rates."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client import Counter as PrometheusCounter
from prometheus_client.parser import text_string_to_metric_families

from engine_config import hardware
from engine_config.hardware import GpuLoad
from gateway.engines.slot import State
from gateway.observability.collectors import GpuGauges, MachineGauges, RedisGauges
from gateway.observability.exposition import exposition
from gateway.observability.machine import Machine
from gateway.observability.recent import Rates
from gateway.observability.stats import Counters
from gateway.policy.ledger import MemoryLedger
from gateway.policy.redis_ledger import RedisLedger
from gateway.thinking.effort import Plan
from tests.runs import run_on
from tests.scripted import Gateway, ScriptedEngine, make_gateway
from tests.switching import Bench
from tests.tenants import Tenants
from tests.unit.test_fleet import until


def samples(gateway: Gateway, name: str) -> dict[tuple[str, ...], float]:
    """Values by the labels' values, those that are 0 left out."""
    found = Counters.of(gateway.figures.gauges).samples.get(name, [])
    return {tuple(sample.labels.values()): sample.value for sample in found if sample.value}


async def test_the_state_of_a_model_is_one_of_all_states() -> None:
    gateway = make_gateway(engine := ScriptedEngine("first"))
    seen = []
    for state in State:
        gateway.model.state = state
        seen.append(samples(gateway, "gateway_slot_state"))
    gateway.model.state = State.READY

    assert seen == [{("first", "first", "bfloat16", state.value): 1} for state in State]
    assert samples(gateway, "gateway_ready") == {(): 1}
    assert samples(gateway, "gateway_engine_up") == {("first",): 1}
    engine.silence_s, gateway.model.restarts, gateway.model.waiting = 7.5, 2, 3
    ages = samples(gateway, "gateway_engine_heartbeat_age_seconds")
    assert ages == {("first", "first", "bfloat16"): 7.5}
    assert samples(gateway, "gateway_engine_restarts_total") == {("first",): 2}
    assert samples(gateway, "gateway_parked_requests") == {("first",): 3}


async def test_a_dead_engine_is_down_and_has_no_heartbeat() -> None:
    gateway = make_gateway(engine := ScriptedEngine("first"))
    engine.kill()
    gateway.model.state = State.DEAD

    assert samples(gateway, "gateway_engine_up") == {}
    assert samples(gateway, "gateway_engine_heartbeat_age_seconds") == {}
    assert samples(gateway, "gateway_ready") == {}
    gateway.model.slot = None
    assert samples(gateway, "gateway_slot_state") == {("first", "first", "", "dead"): 1}


async def test_limits_are_told_where_there_are_any(tmp_path: Path) -> None:
    tenants = Tenants(tmp_path, {"a": {"rpm": 5, "max_thinking": 100}, "b": {}})

    told = samples(tenants.gateway, "gateway_tenant_limit")

    assert told == {("a", "rpm"): 5, ("a", "max_thinking"): 100}


async def test_limits_of_tenants_that_metrics_do_not_name_are_not_told(tmp_path: Path) -> None:
    many = {name: {"rpm": 5} for name in "abc"}
    tenants = Tenants(tmp_path, many, metrics_tenants=1)
    await tenants.post("b", "/generate", {"prompt": "x"})
    await tenants.post("c", "/generate", {"prompt": "x"})

    assert samples(tenants.gateway, "gateway_tenant_limit") == {("b", "rpm"): 5}


async def test_redis_is_up_until_it_is_away() -> None:
    ledger = RedisLedger("redis://127.0.0.1:1/0", MemoryLedger())
    registry = CollectorRegistry()
    registry.register(RedisGauges(ledger))

    assert registry.get_sample_value("gateway_redis_up") == 1
    await ledger.beat()  # nobody listens there
    assert registry.get_sample_value("gateway_redis_up") == 0
    assert samples(make_gateway(ScriptedEngine()), "gateway_redis_up") == {}


async def test_memory_and_disks_are_those_of_this_place(tmp_path: Path) -> None:
    registry, machine = CollectorRegistry(), Machine()
    absent = tmp_path / "not" / "yet"
    machine.watch([tmp_path, absent, tmp_path])
    registry.register(MachineGauges(machine))
    await machine.look()

    limit = registry.get_sample_value("gateway_memory_bytes", {"kind": "limit"})
    used = registry.get_sample_value("gateway_memory_bytes", {"kind": "used"})
    assert limit == hardware.here().memory_bytes
    assert used is not None and 0 < used < limit
    for folder in (tmp_path, absent):
        size = registry.get_sample_value("gateway_disk_size_bytes", {"path": str(folder)})
        free = registry.get_sample_value("gateway_disk_free_bytes", {"path": str(folder)})
        assert size is not None and free is not None and 0 < free <= size


async def test_gpus_tell_what_their_driver_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = [GpuLoad(0, 5, 8, 61, 0.87), GpuLoad(1, 6, 8, None, None)]
    monkeypatch.setattr(hardware, "gpu_loads", lambda: loads)
    registry, machine = CollectorRegistry(), Machine()
    registry.register(GpuGauges(machine))
    await machine.look()

    told = Counters.of(registry).by("gateway_gpu_memory_used_bytes", "gpu")
    warm = Counters.of(registry).by("gateway_gpu_temperature_celsius", "gpu")
    busy = registry.get_sample_value("gateway_gpu_utilization_ratio", {"gpu": "0"})
    assert (told, warm, busy) == ({"0": 5, "1": 6}, {"0": 61}, 0.87)


@pytest.mark.parametrize("fails", [False, True], ids=["succeeded", "failed"])
async def test_a_switch_is_counted_with_its_phases(fails: bool) -> None:
    bench = Bench()
    if fails:
        bench.opener.outcomes = [RuntimeError("no memory")]

    await bench.ended(await bench.begun())

    outcome = "failed" if fails else "succeeded"
    figures = Counters.of(bench.gateway.figures.registry)
    phases = figures.by("gateway_switch_phase_seconds_count", "phase")
    assert figures.by("gateway_switches_total", "outcome") == {outcome: 1}
    assert phases["loading"] == 1
    assert ("warming_up" in phases) is not fails


async def test_all_of_metrics_can_be_read_and_no_family_is_told_twice() -> None:
    gateway = make_gateway(ScriptedEngine("first"), ScriptedEngine("second"))
    await gateway.client.post("/thinking", json={"question": "x"})

    families = list(
        text_string_to_metric_families(exposition(gateway.fleet, gateway.figures).decode())
    )

    names = Counter(family.name for family in families)
    assert [name for name, times in names.items() if times > 1] == []
    for family in families:
        series = Counter((s.name, tuple(sorted(s.labels.items()))) for s in family.samples)
        assert max(series.values(), default=1) == 1, family.name
        assert family.documentation, family.name
    assert {"process_resident_memory_bytes", "python_info", "gateway_build_info"} <= set(names)


def test_rates_are_of_the_window_and_of_what_rose_in_it() -> None:
    rates = Rates(window_s=10)
    rates.add(0.0, {"slot a": 1000.0, "thinking": 500.0})
    assert rates.per_second("slot ") is None
    for second in range(1, 31):
        rates.add(float(second), {"slot a": 1000.0 + 20 * second, "thinking": 500.0 + 5 * second})

    assert (rates.per_second("slot "), rates.per_second("thinking")) == (20.0, 5.0)
    # Another engine: its counter starts from 0, the old one's goes with it.
    rates.add(31.0, {"slot b": 100.0, "thinking": 0.0})
    assert (rates.per_second("slot "), rates.per_second("thinking")) == (10.0, 0.0)


async def test_stats_tells_what_runs_right_now() -> None:
    gateway = make_gateway(engine := ScriptedEngine("first"))
    labels = ("model_name",)
    counter = PrometheusCounter("vllm:generation_tokens", "x", labels, registry=engine.registry)
    generated = counter.labels("first")
    plan = Plan(level=3)
    plan.begin([run_on(engine), run_on(engine)])
    before = (await gateway.client.get("/stats")).json()["live"]

    with gateway.app.state.running.registered("r", plan):
        generated.inc(30)
        plan.runs[0].phase, plan.runs[1].phase = "thinking", "answering"
        plan.runs[0].thought.ids.extend([1] * 10)
        stats = (await gateway.client.get("/stats")).json()

    now = stats["live"]
    assert (before["tokens_per_second"], before["thinking"], before["answering"]) == (None, 0, 0)
    assert (now["thinking"], now["answering"], now["window_s"]) == (1, 1, 10.0)
    assert now["tokens_per_second"] == pytest.approx(
        3 * now["thinking_tokens_per_second"], rel=0.01, abs=0.03
    )
    assert now["answer_tokens_per_second"] == pytest.approx(
        2 * now["thinking_tokens_per_second"], rel=0.01, abs=0.03
    )
    assert stats["models"]["first"]["generation_tokens"] == 30


async def test_live_rates_are_kept_without_anybody_asking() -> None:
    gateway = make_gateway(ScriptedEngine("first"))
    live = gateway.app.state.live

    keeping = asyncio.create_task(live.keep())
    await asyncio.sleep(0)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)

    assert len(live.rates.samples) == 1


async def test_live_rates_outlive_a_fault(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("gateway.observability.live.EVERY_S", 0)
    live = make_gateway(ScriptedEngine("first")).app.state.live
    beat, faults = live.beat, [RuntimeError("a registry that is being closed")]

    def faulty() -> None:
        if faults:
            raise faults.pop()
        beat()

    monkeypatch.setattr(live, "beat", faulty)
    keeping = asyncio.create_task(live.keep())
    await until(lambda: bool(live.rates.samples) or keeping.done())
    assert not keeping.done()
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)

    assert "live rates could not be read" in caplog.text


@pytest.mark.parametrize("path", ["/health", "/health/ready", "/health/live", "/stats"])
async def test_the_schema_names_every_field_that_is_told(path: str) -> None:
    gateway = make_gateway(ScriptedEngine("first"))
    schema = gateway.app.openapi()
    answered = schema["paths"][path]["get"]["responses"]["200"]
    reference = answered["content"]["application/json"]["schema"]["$ref"]
    named = schema["components"]["schemas"][reference.rsplit("/", 1)[1]]["properties"]

    body = (await gateway.client.get(path)).json()

    assert set(body) == set(named)
