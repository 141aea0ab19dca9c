"""What happens to a switch when something else happens at the worst moment."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from engine_config.profile import HubModel, ProfileError, load
from gateway.engines import probe
from gateway.engines.opening import check, locate
from gateway.engines.operation import Operation
from gateway.engines.slot import State
from tests.scripted import (
    PATIENCE_S,
    Script,
    ScriptedEngine,
    make_admin,
    make_gateway,
    make_profile,
)
from tests.switching import Bench, answering, watched
from tests.unit.test_fleet import until


@pytest_asyncio.fixture
async def bench() -> AsyncIterator[Bench]:
    async with watched(Bench()) as bench:
        yield bench


async def restoring(bench: Bench) -> str:
    """A switch by `park` has failed, and the old engine is being built again: held at the opener's gate."""
    bench.opener.outcomes = [RuntimeError("no such tensor"), answering()]
    operation = await bench.begun(way="park")
    await until(lambda: len(bench.opener.opened) == 1)
    bench.opener.gate.clear()
    await until(lambda: len(bench.opener.opened) == 2)
    return operation


async def cancelling(bench: Bench, operation: str) -> "asyncio.Task[Operation]":
    """Has asked for it, and waits for its end."""
    task = asyncio.create_task(bench.switcher.cancel(operation))
    await asyncio.sleep(0)  # its first step asks
    return task


async def test_a_cancel_waits_for_what_is_being_put_back(bench: Bench) -> None:
    operation = await restoring(bench)

    asked = await cancelling(bench, operation)
    bench.opener.gate.set()
    told = await asked

    assert (told.state, told.error) == ("failed", "no such tensor")
    assert bench.opener.cancelled == 0
    assert (await bench.ask()).headers["x-model-profile"] == "first"


async def test_two_cancels_are_as_one(bench: Bench) -> None:
    bench.opener.gate.clear()
    bench.opener.outcomes = [answering()]
    operation = await bench.begun(way="park")
    await bench.reaches(operation, "loading")

    first = await cancelling(bench, operation)
    await bench.reaches(operation, "restoring")
    second = await cancelling(bench, operation)
    bench.opener.gate.set()
    answers = [(await each).state for each in (first, second)]

    assert answers == ["cancelled", "cancelled"]
    assert (await bench.ask()).headers["x-model-profile"] == "first"


async def test_an_end_of_the_server_in_the_middle_of_that_leaves_no_green_light(
    bench: Bench,
) -> None:
    await restoring(bench)

    await bench.switcher.stop()

    assert (bench.model.state, bench.model.slot) == (State.DEAD, None)


async def test_an_engine_that_dies_while_a_checkpoint_is_fetched_is_rebuilt_meanwhile(
    bench: Bench,
) -> None:
    fetched = threading.Event()

    def locate(*_: object) -> Path:
        fetched.wait(PATIENCE_S)
        return Path("nowhere")

    bench.tools(locate=locate)
    bench.opener.outcomes = [answering(), answering()]
    operation = await bench.begun()
    await bench.reaches(operation, "locating")
    try:
        bench.old.is_dead = True
        await until(lambda: bench.model.restarts == 1)
        meanwhile = (await bench.ask()).headers["x-model-profile"]
    finally:
        fetched.set()
    told = await bench.ended(operation)

    assert (meanwhile, told["state"]) == ("first", "succeeded")
    assert bench.opener.opened == ["first", "other"]


async def test_an_engine_that_comes_up_and_never_answers_is_given_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "TIMEOUT_S", 0.01)
    bench.new.script = lambda job: Script(["x"], gate=asyncio.Event())

    told = await bench.ended(await bench.begun())

    assert told["state"] == "failed" and "not answered within" in told["error"]
    assert (bench.new.closes, bench.new.running) == (1, set())


async def test_the_memory_of_all_engines_counts_against_the_operators_limit() -> None:
    first, second = answering("first"), ScriptedEngine("second")
    gateway = make_gateway(first, second, engine_memory_bytes=8)
    other = make_profile("first").model_copy(update={"name": "other"})
    app = make_admin(gateway, other)
    switcher = app.state.switcher
    switcher.tools = switcher.tools.__class__(
        locate=lambda profile, tell: Path("nowhere"),
        footprint=lambda profile, where: 3,
        check=lambda profile, where: None,
    )

    operation = switcher.start("first", "other")
    await until(lambda: operation.state != "running")

    assert operation.way == "park" and "all engines need" in operation.why


async def test_a_second_model_that_still_starts_keeps_the_first_from_being_switched() -> None:
    gateway = make_gateway(answering("first"), ScriptedEngine("second"))
    gateway.fleet.models["second"].built = 0
    admin = make_admin(gateway, gateway.model.profile)

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(admin), base_url="http://localhost"
    ) as client:
        refused = await client.post("/admin/models/first/switch", json={"profile": "first"})

    assert (refused.status_code, "'second' is still starting" in refused.text) == (409, True)


def test_a_profile_for_another_device_is_refused_before_vllm_is_asked() -> None:
    with pytest.raises(ProfileError, match="is for a GPU"):
        check(load("qwen3-0.6b-gptq-int8"), "nowhere")


def test_a_repository_that_cannot_be_fetched_is_told_before_anything_is_touched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = HubModel(kind="hub", repo="nobody/nothing", revision="0" * 40)
    profile = make_profile("first").model_copy(update={"model": model})

    with pytest.raises(ProfileError, match=r"nobody/nothing at 0000.* cannot be fetched"):
        locate(profile, lambda text, fraction: None)
