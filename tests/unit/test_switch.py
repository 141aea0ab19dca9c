"""Switching the engine of a model: what a request sees, and what is left when it goes wrong."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from tests.scripted import Entry, Script, ScriptedEngine
from tests.switching import JSON, Bench, answering, watched
from tests.unit.test_fleet import until


@pytest_asyncio.fixture
async def bench() -> AsyncIterator[Bench]:
    async with watched(Bench()) as bench:
        yield bench


async def test_the_new_engine_serves_and_the_old_one_ends(bench: Bench) -> None:
    told = await bench.ended(await bench.begun())
    answer = await bench.ask()

    assert (told["state"], told["way"], told["published"]) == ("succeeded", "blue_green", True)
    assert (bench.old.closes, bench.new.closes, len(bench.new.jobs)) == (
        1,
        0,
        2,
    )  # one is the probe
    assert answer.headers["x-model-profile"] == "other"
    assert bench.model.retiring == []


async def test_a_request_in_flight_ends_on_the_engine_it_began_on(bench: Bench) -> None:
    gate = asyncio.Event()
    bench.old.script = lambda job: Script(["old"], gate=gate)
    running = asyncio.create_task(bench.ask())
    await until(lambda: bool(bench.old.running))

    operation = await bench.begun()
    await bench.reaches(operation, "draining")
    later = await bench.ask()
    closes = bench.old.closes
    gate.set()
    told = await bench.ended(operation)

    assert (await running).json()["text"] == "old"
    assert (await running).headers["x-model-profile"] == "first"
    assert (later.headers["x-model-profile"], closes, bench.old.closes) == ("other", 0, 1)
    assert told["state"] == "succeeded"


@pytest.mark.parametrize("way", ["blue_green", "park"])
async def test_a_start_that_fails_leaves_the_old_profile_in_service(bench: Bench, way: str) -> None:
    bench.opener.outcomes = [RuntimeError("no such tensor"), answering()]

    told = await bench.ended(await bench.begun(way=way))
    answer = await bench.ask()

    assert (told["state"], told["error"]) == ("failed", "no such tensor")
    assert (answer.status_code, answer.headers["x-model-profile"]) == (200, "first")
    assert bench.opener.opened == {"blue_green": ["other"], "park": ["other", "first"]}[way]


def mute(engine: ScriptedEngine) -> None:
    engine.script = lambda job: Script(["no"])


def crash(engine: ScriptedEngine) -> None:
    engine.script = lambda job: Script(failure=RuntimeError("it died"))


def not_numbers(engine: ScriptedEngine) -> None:
    row = {ord("x"): Entry(float("nan"))}
    engine.script = lambda job: Script(["x" * 16], logprobs=[row] * 16)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(mute, "2 tokens instead of 16"), (crash, "it died"), (not_numbers, "weights are broken")],
)
async def test_an_engine_that_does_not_answer_is_not_put_in_service(
    bench: Bench, spoil: Callable[[ScriptedEngine], None], words: str
) -> None:
    spoil(bench.new)

    told = await bench.ended(await bench.begun())

    assert told["state"] == "failed" and words in told["error"]
    assert (bench.new.closes, bench.old.closes) == (1, 0)
    assert (await bench.ask()).headers["x-model-profile"] == "first"


async def test_without_room_for_two_requests_wait_and_none_fails(bench: Bench) -> None:
    bench.old.free = 0
    bench.opener.gate.clear()

    operation = await bench.begun()
    await bench.reaches(operation, "loading")
    waiting = [asyncio.create_task(bench.ask()) for _ in range(3)]
    await until(lambda: bench.model.waiting == 3)
    ready = await bench.gateway.client.get("/health/ready")
    closed = bench.old.closes
    bench.opener.gate.set()
    told = await bench.ended(operation)
    answers = await asyncio.gather(*waiting)

    assert (told["state"], told["way"]) == ("succeeded", "park")
    assert "memory does not hold both" in told["why"]
    assert {(each.status_code, each.headers["x-model-profile"]) for each in answers} == {
        (200, "other")
    }
    assert (closed, ready.status_code, ready.json()["status"]) == (1, 200, "switching")


async def test_the_requests_that_wait_are_bounded_in_number_and_time(bench: Bench) -> None:
    def adopt(**changes: float) -> None:
        settings = bench.gateway.settings
        settings.adopt(settings.model_copy(update=changes), list(changes))

    adopt(max_parked=1)
    bench.opener.gate.clear()
    operation = await bench.begun(way="park")
    await bench.reaches(operation, "loading")

    first = asyncio.create_task(bench.ask())
    await until(lambda: bench.model.waiting == 1)
    second = await bench.ask()
    adopt(max_parked=2, park_timeout_s=0.01)
    third = await bench.ask()
    bench.opener.gate.set()

    assert (second.status_code, "1 requests wait already" in second.text) == (503, True)
    assert "retry-after" in second.headers
    assert (third.status_code, "not done after 0.01 s" in third.text) == (503, True)
    assert (await first).status_code == 200


async def test_a_drain_that_takes_too_long_changes_nothing(bench: Bench) -> None:
    gate = asyncio.Event()
    bench.old.script = lambda job: Script(["old"], gate=gate)
    fresh = bench.gateway.settings.model_copy(update={"switch_drain_s": 0.01})
    bench.gateway.settings.adopt(fresh, ["switch_drain_s"])
    running = asyncio.create_task(bench.ask())
    await until(lambda: bool(bench.old.running))

    told = await bench.ended(await bench.begun(way="park"))
    gate.set()

    assert told["state"] == "failed" and "nothing was changed" in told["error"]
    assert (await running).json()["text"] == "old"
    assert (bench.old.closes, bench.opener.opened) == (0, [])
    assert (await bench.ask()).status_code == 200


@pytest.mark.parametrize("way", ["blue_green", "park"])
async def test_a_cancelled_switch_leaves_everything_as_it_was(bench: Bench, way: str) -> None:
    bench.opener.gate.clear()
    bench.opener.outcomes = [answering()]
    operation = await bench.begun(way=way)
    await bench.reaches(operation, "loading")

    cancelling = asyncio.create_task(
        bench.admin.post(f"/admin/operations/{operation}/cancel", headers=JSON)
    )
    await until(lambda: bench.opener.cancelled == 1)
    bench.opener.gate.set()
    told = (await cancelling).json()

    assert (told["state"], told["error"]) == ("cancelled", "cancelled by request")
    assert (await bench.ask()).headers["x-model-profile"] == "first"
    again = await bench.admin.post(f"/admin/operations/{operation}/cancel", headers=JSON)
    assert (again.status_code, again.json()["code"]) == (409, "conflict")


async def test_a_switch_that_serves_already_cannot_be_cancelled(bench: Bench) -> None:
    gate = asyncio.Event()
    bench.old.script = lambda job: Script(["old"], gate=gate)
    running = asyncio.create_task(bench.ask())
    await until(lambda: bool(bench.old.running))
    operation = await bench.begun()
    await bench.reaches(operation, "draining")

    refused = await bench.admin.post(f"/admin/operations/{operation}/cancel", headers=JSON)
    gate.set()

    assert (refused.status_code, "serves already" in refused.json()["detail"]) == (409, True)
    assert (await running).status_code == 200
    assert (await bench.ended(operation))["state"] == "succeeded"


async def test_one_switch_at_a_time(bench: Bench) -> None:
    bench.opener.gate.clear()
    operation = await bench.begun()

    second = await bench.switch()
    bench.opener.gate.set()
    await bench.ended(operation)

    assert second.status_code == 409 and operation in second.json()["detail"]


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        ("nobody", "there are: first, other"),
        ("second", "serves 'second', not 'first'"),
        ("../etc/passwd", "is not a profile"),
        ("/etc/passwd", "is not a profile"),
    ],
)
async def test_only_a_profile_of_the_list_can_be_named(
    bench: Bench, profile: str, words: str
) -> None:
    refused = await bench.switch(profile=profile)

    assert (refused.status_code, refused.json()["param"]) == (400, "profile")
    assert words in refused.json()["detail"]
    assert bench.switcher.operations == {}


async def test_the_operators_list_narrows_the_choice() -> None:
    bench = Bench(switch_profiles="first")

    refused = await bench.switch(profile="other")
    models = (await bench.admin.get("/admin/models")).json()["data"]

    assert refused.status_code == 400
    assert models[0]["may_switch_to"] == ["first"]


async def test_a_profile_that_does_not_fit_at_all_fails_before_anybody_waits(bench: Bench) -> None:
    bench.gateway.settings.adopt(
        bench.gateway.settings.model_copy(update={"engine_memory_bytes": 10}),
        ["engine_memory_bytes"],
    )
    sizes = {"other": 11, "first": 1}
    bench.tools(footprint=lambda profile, location: sizes[profile.name])

    told = await bench.ended(await bench.begun())

    assert told["state"] == "failed" and "profile other does not fit" in told["error"]
    assert (bench.opener.opened, bench.old.closes) == ([], 0)


async def test_an_engine_that_dies_meanwhile_is_replaced_by_the_new_one(bench: Bench) -> None:
    bench.opener.gate.clear()
    operation = await bench.begun()
    await bench.reaches(operation, "loading")

    bench.old.is_dead = True
    refused = await bench.ask()
    bench.opener.gate.set()
    told = await bench.ended(operation)

    assert (refused.status_code, told["state"]) == (503, "succeeded")
    assert (await bench.ask()).headers["x-model-profile"] == "other"
    assert bench.opener.opened == ["other"]  # the old one was not built again


async def test_a_failed_switch_over_a_dead_engine_ends_in_a_rebuild(bench: Bench) -> None:
    bench.opener.gate.clear()
    bench.opener.outcomes = [RuntimeError("no"), answering()]
    operation = await bench.begun()
    await bench.reaches(operation, "loading")

    bench.old.is_dead = True
    bench.opener.gate.set()
    told = await bench.ended(operation)
    await until(lambda: bench.model.restarts == 1)

    assert told["state"] == "failed"
    assert (await bench.ask()).headers["x-model-profile"] == "first"


async def test_a_profile_that_does_not_start_again_can_be_switched_away_from(bench: Bench) -> None:
    bench.opener.outcomes = [RuntimeError("gone"), answering()]
    bench.opener.gate.clear()

    bench.old.is_dead = True
    await until(lambda: bench.opener.opened == ["first"])
    operation = await bench.begun()
    await until(lambda: bool(bench.model.changing._waiters))  # it is next, before another rebuild
    bench.opener.gate.set()
    told = await bench.ended(operation)

    assert told["state"] == "succeeded"
    assert (await bench.ask()).headers["x-model-profile"] == "other"
    assert (bench.opener.opened, bench.model.restarts) == (["first", "other"], 0)


async def test_a_model_that_is_still_starting_is_not_switched(bench: Bench) -> None:
    bench.model.built = 0

    refused = await bench.switch()

    assert (refused.status_code, "still starting" in refused.text) == (409, True)


async def test_an_old_engine_that_does_not_end_cleanly_is_a_note(bench: Bench) -> None:
    async def stuck() -> None:
        raise RuntimeError("it would not go")

    bench.old.aclose = stuck  # type: ignore[method-assign]

    told = await bench.ended(await bench.begun())

    assert told["state"] == "succeeded" and "it would not go" in told["notes"][0]
    assert bench.model.retiring == []


async def test_a_server_that_ends_calls_the_switch_off_and_restores_nothing(bench: Bench) -> None:
    bench.opener.gate.clear()
    operation = await bench.begun(way="park")
    await bench.reaches(operation, "loading")
    waiting = asyncio.create_task(bench.ask())
    await until(lambda: bench.model.waiting == 1)

    bench.gateway.fleet.draining = True
    await bench.switcher.stop()

    told = await bench.operation(operation)
    assert (told["state"], told["error"]) == ("cancelled", "the server is shutting down")
    assert (await waiting).status_code == 503
    assert bench.opener.opened == ["other"]
    assert (await bench.switch()).status_code == 409


async def test_a_change_must_be_declared_as_json(bench: Bench) -> None:
    refused = [
        await bench.admin.post("/admin/reload"),
        await bench.admin.post("/admin/operations/x/cancel"),
        await bench.admin.delete("/admin/models/first/adapters/x"),
    ]

    assert [each.status_code for each in refused] == [415, 415, 415]
