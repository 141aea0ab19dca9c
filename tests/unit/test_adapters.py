"""LoRA adapters by name: a model of their own, no path from a request, and a switch keeps them."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from engine_config.profile import Value
from gateway.errors import InvalidRequest
from tests.scripted import Script, ScriptedEngine
from tests.switching import Bench
from tests.unit.test_fleet import until

JSON = {"content-type": "application/json"}
LORA = Value(value=True, reason="It takes adapters.", source="a test")


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    for name in ("poet", "clerk"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text("{}")
    bench = Bench(adapters_dir=tmp_path)
    yield bench
    await bench.switcher.stop()


async def load(bench: Bench, name: str) -> httpx.Response:
    return await bench.admin.post("/admin/models/first/adapters", json={"adapter": name})


async def test_a_loaded_adapter_is_a_model_of_its_own(bench: Bench, tmp_path: Path) -> None:
    loaded = await load(bench, "poet")
    cards = (await bench.gateway.client.get("/v1/models")).json()["data"]
    answer = await bench.gateway.client.post("/generate", json={"prompt": "a", "model": "poet"})
    listed = await bench.admin.get("/admin/models/first/adapters")

    assert loaded.json()["adapters"] == ["poet"]
    assert [(card["id"], card.get("parent")) for card in cards] == [
        ("first", None),
        ("poet", "first"),
    ]
    assert answer.json()["model"] == "poet"
    assert bench.old.adapters == {"poet": tmp_path / "poet"}
    assert listed.json() == {"model": "first", "adapters": ["poet"], "available": ["clerk", "poet"]}


async def test_an_unloaded_adapter_is_unknown_again(bench: Bench) -> None:
    await load(bench, "poet")

    gone = await bench.admin.delete("/admin/models/first/adapters/poet", headers=JSON)
    answer = await bench.gateway.client.post("/generate", json={"prompt": "a", "model": "poet"})
    again = await bench.admin.delete("/admin/models/first/adapters/poet", headers=JSON)

    assert (gone.json()["adapters"], bench.old.adapters) == ([], {})
    assert (answer.status_code, again.status_code) == (404, 404)


async def test_an_adapter_is_freed_when_its_last_request_is_over(bench: Bench) -> None:
    await load(bench, "poet")
    gate = asyncio.Event()
    bench.old.script = lambda job: Script(["verse"], gate=gate)
    body = {"prompt": "a", "model": "poet"}
    running = asyncio.create_task(bench.gateway.client.post("/generate", json=body))
    await until(lambda: bool(bench.old.running))

    path = "/admin/models/first/adapters/poet"
    unloading = asyncio.create_task(bench.admin.delete(path, headers=JSON))
    await until(lambda: bench.model.adapters == {})
    unknown = await bench.gateway.client.post("/generate", json=body)
    held = dict(bench.old.adapters)
    gate.set()

    assert (await unloading).status_code == 200
    assert ((await running).json()["text"], unknown.status_code) == ("verse", 404)
    assert (list(held), bench.old.adapters) == (["poet"], {})


async def test_only_a_folder_of_the_operators_can_be_named(bench: Bench) -> None:
    refused = [await load(bench, name) for name in ("../poet", "/etc", "nobody", "", "a/b")]

    assert [each.status_code for each in refused] == [400] * 5
    assert "there are: clerk, poet" in refused[2].json()["detail"]


async def test_a_name_that_is_served_cannot_be_taken(bench: Bench) -> None:
    await load(bench, "poet")

    assert (await load(bench, "poet")).status_code == 409


def enable_lora(bench: Bench) -> None:
    catalogue = bench.switcher.catalogue
    able = bench.other.model_copy(update={"vllm": {"enable_lora": LORA}})
    catalogue.adopt({**catalogue.profiles, "other": able}, {})


async def test_a_switch_takes_the_adapters_along(bench: Bench, tmp_path: Path) -> None:
    await load(bench, "poet")
    enable_lora(bench)

    told = await bench.ended(await bench.begun())
    answer = await bench.gateway.client.post("/generate", json={"prompt": "a", "model": "poet"})

    assert told["state"] == "succeeded"
    assert bench.new.adapters == {"poet": tmp_path / "poet"}
    assert answer.headers["x-model-profile"] == "other"


async def test_a_profile_without_adapters_is_refused_while_some_are_loaded(bench: Bench) -> None:
    await load(bench, "poet")

    told = await bench.ended(await bench.begun())

    assert told["state"] == "failed" and "unload them first" in told["error"]


async def test_adapters_wait_until_a_switch_is_over(bench: Bench) -> None:
    bench.opener.gate.clear()
    operation = await bench.begun()
    await bench.reaches(operation, "loading")

    refused = await load(bench, "poet")
    bench.opener.gate.set()
    await bench.ended(operation)

    assert refused.status_code == 409
    assert (await load(bench, "poet")).status_code == 200


async def test_an_adapter_gone_from_the_disk_does_not_keep_a_dead_engine_down(bench: Bench) -> None:
    await load(bench, "poet")
    bench.model.adapters["ghost"] = Path("/nowhere/ghost")
    watcher = asyncio.create_task(bench.model.watch())

    bench.old.is_dead = True
    async with asyncio.timeout(60):
        while bench.model.restarts == 0:  # noqa: ASYNC110 - a count, no event
            await asyncio.sleep(0.05)
    watcher.cancel()
    await asyncio.gather(watcher, return_exceptions=True)

    assert list(bench.new.adapters) == ["poet"]


class Picky(ScriptedEngine):
    """Takes poets only."""

    async def load_adapter(self, name: str, path: Path) -> None:
        if name != "poet":
            raise InvalidRequest("its rank is too high")
        await super().load_adapter(name, path)


async def test_an_adapter_that_is_not_taken_any_more_does_not_keep_a_dead_engine_down(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    await load(bench, "poet")
    await load(bench, "clerk")
    rebuilt = Picky("first")
    bench.opener.outcomes = [rebuilt]
    watcher = asyncio.create_task(bench.model.watch())

    bench.old.is_dead = True
    await until(lambda: bench.model.restarts == 1)
    watcher.cancel()
    await asyncio.gather(watcher, return_exceptions=True)

    assert list(rebuilt.adapters) == list(bench.model.adapters) == ["poet"]
    assert "adapter clerk of first is dropped: its rank is too high" in caplog.text


async def test_a_switch_to_an_engine_that_does_not_take_them_all_changes_nothing(
    bench: Bench,
) -> None:
    await load(bench, "poet")
    await load(bench, "clerk")
    enable_lora(bench)
    refusing = Picky("first")
    bench.opener.outcomes = [refusing]

    told = await bench.ended(await bench.begun())

    assert (told["state"], told["error"]) == ("failed", "its rank is too high")
    assert (list(bench.model.adapters), refusing.closes) == (["poet", "clerk"], 1)


async def test_an_adapter_unloaded_while_a_request_waits_is_not_replaced_by_the_model(
    bench: Bench,
) -> None:
    await load(bench, "poet")
    bench.model.close_gate()
    body = {"prompt": "a", "model": "poet"}
    waiting = asyncio.create_task(bench.gateway.client.post("/generate", json=body))
    await until(lambda: bench.model.waiting == 1)

    await bench.admin.delete("/admin/models/first/adapters/poet", headers=JSON)
    bench.model.gate.set()

    assert ((await waiting).status_code, (await waiting).json()["code"]) == (404, "model_not_found")
    assert (bench.old.jobs, bench.gateway.fleet.in_flight()) == ([], 0)
