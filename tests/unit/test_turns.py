"""Turns: of those that wait each tenant is next in its turn, and no place is lost."""

import asyncio

import pytest

from gateway.policy.turns import Turns
from tests.unit.test_fleet import until


class Room:
    """Work that lasts until it is let go; `order` is in which it began."""

    def __init__(self, places: int) -> None:
        self.turns = Turns(places)
        self.order: list[str] = []
        self.gates: list[asyncio.Event] = []

    async def work(self, name: str) -> None:
        async with self.turns.place(name[0]):
            self.order.append(name)
            self.gates.append(asyncio.Event())
            await self.gates[-1].wait()

    async def come(self, *names: str) -> list["asyncio.Task[None]"]:
        """In this order, and each as far as it gets."""
        tasks = []
        for name in names:
            tasks.append(asyncio.create_task(self.work(name)))
            await asyncio.sleep(0)
        return tasks

    async def end(self, tasks: list["asyncio.Task[None]"]) -> None:
        """Let all of them go, one after the other."""
        done = 0
        while not all(task.done() for task in tasks):
            await until(lambda done=done: len(self.gates) > done)  # type: ignore[misc]
            self.gates[done].set()
            done += 1
            await until(
                lambda done=done: len(self.gates) > done or all(task.done() for task in tasks)  # type: ignore[misc]
            )


async def test_tenants_take_turns_although_one_came_with_many() -> None:
    room = Room(1)

    await room.end(await room.come("a0", "a1", "a2", "a3", "b0", "b1", "c0"))

    assert room.order == ["a0", "a1", "b0", "c0", "a2", "b1", "a3"]


async def test_a_tenant_alone_has_all_places() -> None:
    room = Room(2)

    tasks = await room.come("a0", "a1", "a2")

    assert room.order == ["a0", "a1"]
    await room.end(tasks)
    assert room.order == ["a0", "a1", "a2"]


@pytest.mark.parametrize("given", [False, True], ids=["waiting", "in the moment of its turn"])
async def test_whoever_gives_up_loses_nobodys_place(given: bool) -> None:
    room = Room(1)

    async with room.turns.place("a"):
        gone, stays = await room.come("b0", "a1")
        if not given:
            gone.cancel()
    if given:  # it has not woken yet
        gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    await until(lambda: room.order == ["a1"])
    room.gates[0].set()
    await stays

    (last,) = await room.come("c0")
    assert room.order == ["a1", "c0"]
    room.gates[1].set()
    await last
