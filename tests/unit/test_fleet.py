"""What keeps a model alive: death, hanging, failing starts, draining."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from engine_config.profile import Profile
from gateway.engines.fleet import EngineStartFailed, Fleet
from gateway.engines.served import WATCH_S, ServedModel
from gateway.engines.slot import State
from gateway.errors import EngineUnavailable, ModelNotFound
from tests.scripted import PATIENCE_S, Gateway, ScriptedEngine, make_gateway, slot_of

real_sleep = asyncio.sleep


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await real_sleep(0)


class Opener:
    """Opens the engines it was given, one after the other; an exception in the list is raised."""

    def __init__(self, *outcomes: ScriptedEngine | Exception) -> None:
        self.outcomes = list(outcomes)
        self.calls = 0
        self.gates: dict[int, asyncio.Event] = {}  # of a call, counted from 1: waits for it

    async def __call__(
        self, profile: Profile, location: Path | str, cores: str | None = None
    ) -> ScriptedEngine:
        self.calls += 1
        if gate := self.gates.get(self.calls):
            await gate.wait()
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the fleet would have slept, in seconds; here it only yields."""
    recorded: list[float] = []

    async def sleep(seconds: float) -> None:
        recorded.append(seconds)
        await real_sleep(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return recorded


@pytest.fixture
def gateway() -> Gateway:
    return make_gateway(
        ScriptedEngine("first"), engine_hang_s=10, rebuild_backoff_s=1, rebuild_attempts=3
    )


@pytest_asyncio.fixture
async def model(gateway: Gateway, waits: list[float]) -> AsyncIterator[ServedModel]:
    """The gateway's model, watched."""
    task = asyncio.create_task(gateway.model.watch())
    yield gateway.model
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def engine(gateway: Gateway) -> ScriptedEngine:
    return gateway.engines[0]


async def test_a_dead_engine_is_closed_and_replaced(
    model: ServedModel, engine: ScriptedEngine
) -> None:
    new = ScriptedEngine("first")
    model.opener = Opener(new)

    engine.is_dead = True
    await until(lambda: model.state is State.READY and model.restarts == 1)

    assert (await model.take()).engine is new
    assert (engine.closes, new.closes, model.failures) == (1, 0, 0)


async def test_while_a_dead_engine_is_replaced_callers_are_told_to_come_back(
    model: ServedModel, engine: ScriptedEngine
) -> None:
    opener = Opener(ScriptedEngine("first"))
    opener.gates[1] = asyncio.Event()
    model.opener = opener

    engine.is_dead = True
    await until(lambda: opener.calls == 1)

    with pytest.raises(EngineUnavailable, match="is being restarted"):
        await model.take()


async def test_a_start_that_fails_is_tried_again_ever_more_slowly(
    model: ServedModel, engine: ScriptedEngine, waits: list[float]
) -> None:
    model.opener = Opener(*[RuntimeError("no memory")] * 8, ScriptedEngine("first"))

    engine.is_dead = True
    await until(lambda: model.restarts == 1)

    backoffs = [wait for wait in waits if wait != WATCH_S]
    assert backoffs == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert (model.state, model.failures) == (State.READY, 0)


async def test_a_start_that_hangs_is_given_up_and_tried_again(
    gateway: Gateway, model: ServedModel, engine: ScriptedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    name, new = "engine_start_s", ScriptedEngine("first")
    gateway.settings.adopt(gateway.settings.model_copy(update={name: 0.01}), [name])
    opener = Opener(new)
    opener.gates[1] = asyncio.Event()  # nobody sets it
    model.opener = opener

    engine.is_dead = True
    await until(lambda: model.restarts == 1)

    assert ((await model.take()).engine, opener.calls) == (new, 2)
    assert "not up after 0.01 s (setting GATEWAY_ENGINE_START_S)" in caplog.text


async def test_live_fails_once_the_starts_failed_too_often_and_recovers(
    gateway: Gateway, model: ServedModel, engine: ScriptedEngine
) -> None:
    opener = Opener(*[RuntimeError("no")] * 3, ScriptedEngine("first"))
    opener.gates = {3: asyncio.Event(), 4: asyncio.Event()}
    model.opener = opener
    seen = []

    engine.is_dead = True
    for call, gate in opener.gates.items():
        await until(lambda expected=call: opener.calls == expected)  # type: ignore[misc]
        seen.append((await gateway.client.get("/health/live")).status_code)
        gate.set()
    await until(lambda: model.restarts == 1)
    seen.append((await gateway.client.get("/health/live")).status_code)

    assert seen == [200, 503, 200]


async def test_an_engine_that_came_up_but_cannot_be_used_is_shut_down(
    model: ServedModel, engine: ScriptedEngine
) -> None:
    class Stillborn(ScriptedEngine):
        async def model_card(self) -> dict[str, Any]:
            raise EngineUnavailable("it died again")

    stillborn = Stillborn("first")
    model.opener = Opener(stillborn, ScriptedEngine("first"))

    engine.is_dead = True
    await until(lambda: model.restarts == 1)

    assert stillborn.closes == 1


async def test_an_engine_that_makes_no_progress_is_not_ready_until_it_does(
    gateway: Gateway, model: ServedModel, engine: ScriptedEngine
) -> None:
    engine.silence_s = 11
    await until(lambda: model.state is State.HUNG)
    ready = await gateway.client.get("/health/ready")
    with pytest.raises(EngineUnavailable, match="no progress"):
        await model.take()
    engine.silence_s = 0
    await until(lambda: model.state is State.READY)

    assert (ready.status_code, ready.json()["status"]) == (503, "hung")
    assert (engine.kills, (await model.take()).engine) == (0, engine)


async def test_an_engine_that_hangs_twice_as_long_is_killed_and_replaced(
    model: ServedModel, engine: ScriptedEngine
) -> None:
    new = ScriptedEngine("first")
    model.opener = Opener(new)

    engine.silence_s = 21
    await until(lambda: model.restarts == 1)

    assert (engine.kills, engine.closes) == (1, 1)
    assert (await model.take()).engine is new


async def test_a_drain_waits_for_what_runs_and_takes_nothing_new(
    gateway: Gateway, waits: list[float]
) -> None:
    async with gateway.fleet.seat(None, {}):
        draining = asyncio.create_task(gateway.fleet.drain(1000))
        await until(lambda: len(waits) > 3)
        with pytest.raises(EngineUnavailable, match="shutting down"):
            async with gateway.fleet.seat(None, {}):
                pass
        assert not draining.done()

    assert await draining is True


async def test_a_drain_gives_up_at_its_limit_and_says_so(gateway: Gateway) -> None:
    async with gateway.fleet.seat(None, {}):
        assert await gateway.fleet.drain(0) is False


async def test_models_are_opened_one_after_the_other_and_closed_once() -> None:
    engines = ScriptedEngine("first"), ScriptedEngine("second")
    fleet = make_gateway(*engines).fleet
    for model in fleet.models.values():
        model.slot, model.state = None, State.LOADING
    seen: list[list[State]] = []

    await fleet.start(lambda _: seen.append([each.state for each in fleet.models.values()]))
    ready = fleet.ready()
    await fleet.close()
    await fleet.close()

    assert seen == [[State.LOADING, State.LOADING], [State.READY, State.LOADING]]
    assert ready
    assert [engine.closes for engine in engines] == [1, 1]


async def test_a_first_start_that_fails_is_told_to_the_caller(gateway: Gateway) -> None:
    gateway.model.opener = Opener(RuntimeError("no such model"))

    with pytest.raises(EngineStartFailed, match=r"first .* did not start: no such model"):
        await gateway.fleet.start()


@pytest.mark.parametrize("name", ["third", "", 1, ["first"]], ids=str)
async def test_a_name_that_is_not_served_is_told_with_those_that_are(
    gateway: Gateway, name: object
) -> None:
    with pytest.raises(ModelNotFound, match="served: first"):
        async with gateway.fleet.seat(name, {}):
            pass


async def test_a_slot_is_free_again_after_a_failure(gateway: Gateway) -> None:
    fleet: Fleet = gateway.fleet
    with pytest.raises(RuntimeError):
        async with fleet.seat("first", {}):
            assert fleet.in_flight() == 1
            raise RuntimeError

    assert fleet.in_flight() == 0


async def test_an_engine_that_does_not_close_leaves_no_other_open(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Stuck(ScriptedEngine):
        async def aclose(self) -> None:
            raise RuntimeError("it would not go")

    engines = ScriptedEngine("first"), Stuck("second"), ScriptedEngine("third")
    gateway = make_gateway(*engines)
    gateway.model.retiring.append(slot_of(Stuck("first"), gateway.model.profile))

    await gateway.fleet.close()

    assert (engines[0].closes, engines[2].closes) == (1, 1)
    assert caplog.text.count("RuntimeError: it would not go") == 2
