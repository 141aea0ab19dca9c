"""Who would keep others out of an engine: a stream of short prompts, a request of very many sequences."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gateway.engines.types import Limits
from gateway.policy.admission import Admission, Source
from gateway.policy.line import Ticket
from gateway.policy.places import Places
from tests.crowded import ASK, CHAT, Crowded
from tests.drawn import Drawn
from tests.scripted import PATIENCE_S, make_settings
from tests.unit.test_fleet import until


@dataclass
class Engine:
    limits: Limits = field(
        default_factory=lambda: Limits(max_model_len=4096, max_num_seqs=8, max_batched_tokens=1000)
    )


@dataclass
class Slot:
    places: Places = field(default_factory=Places)
    in_flight: int = 0
    engine: Engine = field(default_factory=Engine)


async def entering(admission: Admission[Slot], each: Ticket) -> "asyncio.Task[object]":
    """A request on its way in; it has had its turn to ask."""
    assert admission.enter_now(each) is None
    task = asyncio.create_task(admission.enter(each))
    await until(lambda: each in admission._futures or task.done())
    await asyncio.sleep(0)
    return task


async def test_a_long_prompt_is_not_passed_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    slot = Slot()

    async def take() -> Slot:
        return slot

    admission = Admission(
        "m", make_settings(keys_file=Path("keys.yaml")), Source(lambda: slot, take)
    )
    short = [Ticket("b", 1.0, "normal", 100) for _ in range(3)]
    long = Ticket("a", 1.0, "normal", 1950)
    assert admission.enter_now(short[0]) is not None

    monkeypatch.setattr("gateway.policy.admission.PASSED_S", 1000.0)
    waits = await entering(admission, long)
    passes = await entering(admission, short[1])
    await until(passes.done)
    monkeypatch.setattr("gateway.policy.admission.PASSED_S", 0.0)
    behind = await entering(admission, short[2])
    assert not (waits.done() or behind.done())
    for each in short[:2]:  # their prompts are through
        each.drawn.append(Drawn(100, output=1))
    admission.pump()
    await waits

    assert slot.places.running == [short[0], short[1], long]
    long.drawn.append(Drawn(1950, output=1))
    admission.pump()
    await behind


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", ASK | {"n": 5}),
        ("/thinking", {"question": "x", "samples": 5}),
        ("/v1/completions", {"prompt": ["x", "y"], "n": 3}),
        ("/v1/chat/completions", CHAT | {"n": 5}),
    ],
    ids=["generate", "thinking", "completions", "chat"],
)
async def test_more_sequences_than_an_engine_runs_are_refused(
    tmp_path: Path, path: str, body: dict[str, object], busy: bool
) -> None:
    crowded = Crowded(tmp_path, places=4)
    before = crowded.asks("a", 4 if busy else 0)
    await until(lambda: len(crowded.gates) == len(before))

    async with asyncio.timeout(PATIENCE_S):
        refused = await crowded.post("b", path, body)

    wanted = 6 if path == "/v1/completions" else 5
    assert refused.status_code == 400
    assert f"{wanted} sequences" in refused.text and "runs 4 at once" in refused.text
    assert crowded.model.admission.queued == 0
    await crowded.drained()
    assert [(await each).status_code for each in before] == [200] * len(before)
    assert crowded.idle()


async def test_where_nobody_else_can_come_nothing_is_held_back_for_fairness() -> None:
    """As stock vLLM: its scheduler reads prompts of any number, and a request of any number of sequences."""
    slot = Slot()

    async def take() -> Slot:
        return slot

    admission = Admission("m", make_settings(), Source(lambda: slot, take))
    many = Ticket("default", 1.0, "normal", 100, sequences=20)
    place = admission.enter_now(many)
    assert place is not None
    admission.leave(place)

    long = [Ticket("default", 1.0, "normal", 3000) for _ in range(8)]

    assert all(admission.enter_now(each) is not None for each in long)
    assert admission.enter_now(Ticket("default", 1.0, "normal", 1)) is None  # the ninth sequence
