"""Which way a switch takes, and new weights in a running engine."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from safetensors.torch import save_file

from engine_config.profile import FolderModel, Profile, Value
from gateway.engines.slot import Slot, State
from gateway.engines.ways import NoWay, Room, choose, why_not_in_place
from tests.scripted import PATIENCE_S, ScriptedEngine, make_profile, slot_of
from tests.switching import Bench, answering, watched
from tests.unit.test_fleet import until

GIB = 1024**3
PLENTY = Room(need=GIB, held=GIB, free=100 * GIB, budget=None)


def model_folder(path: Path, weight: float = 1.0, columns: int = 4) -> Path:
    path.mkdir()
    (path / "config.json").write_text("{}")
    save_file({"layer.weight": torch.full((2, columns), weight)}, path / "model.safetensors")
    return path


def profile_of(folder: Path, **changes: object) -> Profile:
    model = FolderModel(kind="folder", path=folder)
    return make_profile("first").model_copy(
        update={"name": folder.name, "title": folder.name, "model": model, **changes}
    )


def slot_in(folder: Path, engine: ScriptedEngine | None = None) -> Slot:
    return slot_of(engine or answering(), profile_of(folder), folder)


@pytest.mark.parametrize(
    ("asked", "room", "way", "words"),
    [
        ("auto", PLENTY, "blue_green", "holds both"),
        ("park", PLENTY, "park", "asked for"),
        ("auto", Room(5 * GIB, 5 * GIB, 4 * GIB, None), "park", "5.0 GiB and 4.0 GiB are free"),
        ("auto", Room(5 * GIB, 5 * GIB, None, 9 * GIB), "park", "allows 9.0 GiB"),
        ("auto", Room(5 * GIB, 5 * GIB, None, 10 * GIB), "blue_green", "holds both"),
        ("auto", Room(5 * GIB, 5 * GIB, None, None), "park", "cannot be told"),
    ],
)
def test_the_way_follows_from_the_memory(
    tmp_path: Path, asked: str, room: Room, way: str, words: str
) -> None:
    old = slot_in(model_folder(tmp_path / "old"))
    new = model_folder(tmp_path / "new", columns=8)

    chosen, why = choose(asked, room, old, (profile_of(new), new))  # type: ignore[arg-type]

    assert chosen == way and words in why


@pytest.mark.parametrize(
    ("asked", "room", "words"),
    [
        ("blue_green", Room(5 * GIB, 5 * GIB, 4 * GIB, None), "blue_green is not possible"),
        ("in_place", PLENTY, "other names, shapes or types"),
        ("auto", Room(10 * GIB, 5 * GIB, 4 * GIB, None), "9.0 GiB would be free"),
        ("park", Room(10 * GIB, 5 * GIB, None, 9 * GIB), "does not fit"),
    ],
)
def test_a_way_that_is_not_open_is_told(tmp_path: Path, asked: str, room: Room, words: str) -> None:
    old = slot_in(model_folder(tmp_path / "old"))
    new = model_folder(tmp_path / "new", columns=8)

    with pytest.raises(NoWay, match=words):
        choose(asked, room, old, (profile_of(new), new))  # type: ignore[arg-type]


def test_a_dead_engine_needs_no_decision() -> None:
    assert choose("park", PLENTY, None, (make_profile("x"), "x"))[0] == "blue_green"


def test_weights_of_the_same_shape_go_into_the_running_engine(tmp_path: Path) -> None:
    old = slot_in(model_folder(tmp_path / "old"))
    new = model_folder(tmp_path / "new", weight=2.0)

    assert choose("auto", PLENTY, old, (profile_of(new), new))[0] == "in_place"


def test_what_keeps_weights_from_going_into_a_running_engine(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "old")
    old, quantised = slot_in(folder), answering()
    quantised.format = "compressed-tensors"
    same = model_folder(tmp_path / "same")
    other_text = model_folder(tmp_path / "text")
    (other_text / "chat_template.jinja").write_text("another")
    wider = model_folder(tmp_path / "wider", columns=8)
    setting = Value(value=1, reason="Another value.", source="a test")

    told = [
        why_not_in_place(slot_in(folder, quantised), profile_of(same), same),
        why_not_in_place(old, profile_of(same), "a/hub-id"),
        why_not_in_place(old, profile_of(folder), folder),
        why_not_in_place(old, profile_of(same, vllm={"max_num_seqs": setting}), same),
        why_not_in_place(old, profile_of(other_text), other_text),
        why_not_in_place(old, profile_of(wider), wider),
    ]

    words = ["quantised", "folder of this machine", "same folder", "differ in more"]
    words += ["chat_template.jinja differs", "other names, shapes or types"]
    assert [word for word, text in zip(words, told, strict=True) if word not in (text or "")] == []


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """A gateway whose model lies in a folder, with a fine-tune of it beside."""
    bench = Bench()
    before, after = model_folder(tmp_path / "before"), model_folder(tmp_path / "after", 2.0)
    bench.model.publish(slot_of(bench.old, profile_of(before), before))
    catalogue = bench.switcher.catalogue
    catalogue.adopt({"after": profile_of(after), "before": profile_of(before)}, {})
    bench.tools(locate=lambda profile, tell: profile.model.path)
    async with watched(bench):
        yield bench


async def test_new_weights_in_place_keep_the_engine(bench: Bench, tmp_path: Path) -> None:
    told = await bench.ended(await bench.begun(profile="after"))
    answer = await bench.ask()

    assert (told["state"], told["way"]) == ("succeeded", "in_place")
    assert (bench.old.weights, bench.old.closes) == ([tmp_path / "after"], 0)
    assert answer.headers["x-model-profile"] == "after"
    assert bench.model.location == tmp_path / "after"  # what a rebuild would load


async def test_a_file_that_is_cut_off_fails_before_anything_is_done(
    bench: Bench, tmp_path: Path
) -> None:
    path = tmp_path / "after" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])

    told = await bench.ended(await bench.begun(profile="after"))

    assert told["state"] == "failed" and "model.safetensors is cut off" in told["error"]
    assert (bench.old.weights, bench.opener.opened) == ([], [])


async def test_weights_that_cannot_be_taken_are_taken_back(bench: Bench, tmp_path: Path) -> None:
    bench.old.reload_failures = [RuntimeError("no such tensor")]

    told = await bench.ended(await bench.begun(profile="after"))

    assert (told["state"], told["error"]) == ("failed", "no such tensor")
    assert (bench.old.weights, bench.old.kills) == ([tmp_path / "before"], 0)
    assert (await bench.ask()).headers["x-model-profile"] == "before"


async def test_a_cancel_waits_for_weights_that_are_put_back(bench: Bench, tmp_path: Path) -> None:
    bench.old.reload_failures = [RuntimeError("no such tensor")]
    bench.old.reload_gate = asyncio.Event()
    operation = await bench.begun(profile="after")
    await bench.reaches(operation, "restoring")

    cancelling = asyncio.create_task(bench.switcher.cancel(operation))
    await asyncio.sleep(0)  # its first step asks
    bench.old.reload_gate.set()

    assert (await cancelling).state == "failed"
    assert (bench.old.weights, bench.old.kills) == ([tmp_path / "before"], 0)


async def test_a_server_that_ends_while_weights_are_put_back_leaves_no_half_of_them(
    bench: Bench,
) -> None:
    bench.old.reload_failures = [RuntimeError("no such tensor")]
    bench.old.reload_gate = asyncio.Event()
    operation = await bench.begun(profile="after")
    await bench.reaches(operation, "restoring")

    await bench.switcher.stop()

    assert (bench.old.kills, bench.model.state) == (1, State.DEAD)


async def test_a_server_that_ends_while_weights_go_in_puts_none_back(bench: Bench) -> None:
    bench.old.reload_gate = asyncio.Event()  # nobody sets it
    operation = await bench.begun(profile="after")
    await bench.reaches(operation, "reloading")

    async with asyncio.timeout(PATIENCE_S):
        await bench.switcher.stop()

    told = await bench.operation(operation)
    assert (told["state"], "restoring" in told["phase_seconds"]) == ("cancelled", False)
    assert (bench.old.weights, bench.old.kills, bench.model.state) == ([], 1, State.DEAD)


async def test_an_engine_with_half_its_weights_is_rebuilt(bench: Bench) -> None:
    bench.old.reload_failures = [RuntimeError("no such tensor"), RuntimeError("nor the old")]
    bench.opener.outcomes = [answering()]

    told = await bench.ended(await bench.begun(profile="after"))
    await until(lambda: bench.model.restarts == 1)

    assert told["state"] == "failed" and told["notes"] == ["the old engine was rebuilt"]
    assert (bench.old.kills, bench.opener.opened) == (1, ["before"])
    assert (await bench.ask()).headers["x-model-profile"] == "before"
