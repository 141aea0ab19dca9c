"""The queue at its worst moments: requests that leave in the turn in which a place comes free."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.crowded import Crowded
from tests.unit.test_fleet import until


@pytest.fixture
async def busy(tmp_path: Path) -> AsyncIterator[Crowded]:
    """Its one place is taken by tenant `a`."""
    crowded = Crowded(tmp_path)
    first = crowded.asks("a")
    await until(lambda: bool(crowded.gates))
    yield crowded
    await crowded.drained()
    assert (await first[0]).status_code == 200
    assert crowded.idle()


def first_waiting(crowded: Crowded) -> "asyncio.Future[Any]":
    return next(iter(crowded.model.admission._futures.values()))


async def test_a_place_is_not_given_to_one_who_just_left(busy: Crowded) -> None:
    """A cancelled request leaves the queue a turn of the event loop later."""
    _, stays = busy.asks("b", 2)
    await busy.waiting(2)

    first_waiting(busy).cancel()
    busy.engine.limits = replace(busy.engine.limits, max_num_seqs=2)
    busy.model.admission.pump()

    await until(lambda: busy.model.admission.running == 2)
    await busy.drained()
    assert (await stays).status_code == 200


async def test_one_who_just_left_keeps_nobody_from_looking_again(busy: Crowded) -> None:
    _, *stay = busy.asks("b", 3)
    await busy.waiting(3)

    first_waiting(busy).cancel()
    busy.model.admission.recheck()

    await busy.waiting(2)
    await busy.drained()
    assert [(await each).status_code for each in stay] == [200, 200]


async def test_whoever_waited_at_the_gate_is_not_refused_behind_it(tmp_path: Path) -> None:
    crowded = Crowded(tmp_path, max_queued=1)
    crowded.model.gate.clear()
    parked = crowded.asks("a", 4)
    await until(lambda: crowded.model.waiting == 4)

    crowded.model.gate.set()

    await until(lambda: bool(crowded.gates))
    await crowded.drained()
    assert [(await each).status_code for each in parked] == [200] * 4
