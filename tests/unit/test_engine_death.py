"""vLLM's own waits: calls that it never ends once the engine is dead, and starts that cannot be cancelled."""

import asyncio
import importlib
import threading
import warnings
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.errors import EngineUnavailable
from tests.scripted import PATIENCE_S, make_profile


@pytest.fixture(scope="module")
def adapter() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's own, at its import
        return importlib.import_module("gateway.engines.vllm_adapter")


async def some_turns() -> None:
    """Of the event loop: whatever can go on without waiting has gone on."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture(scope="module")
def start(adapter: Any) -> Any:
    return importlib.import_module("gateway.engines.vllm_start")


async def test_a_call_to_an_engine_that_dies_ends(adapter: Any) -> None:
    client, never = SimpleNamespace(errored=False), asyncio.Event()

    waiting = asyncio.create_task(adapter.unless_dead(client, never.wait()))
    await asyncio.sleep(0)
    client.errored = True

    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(EngineUnavailable, match="stopped meanwhile"):
            await waiting


async def test_a_call_that_is_answered_gives_its_answer(adapter: Any) -> None:
    async def answer() -> int:
        return 5

    assert await adapter.unless_dead(SimpleNamespace(errored=False), answer()) == 5


async def test_an_answer_that_came_before_the_death_counts(adapter: Any) -> None:
    async def answer() -> int:
        return 5

    assert await adapter.unless_dead(SimpleNamespace(errored=True), answer()) == 5


async def test_a_start_that_is_cancelled_twice_leaves_no_engine(start: Any) -> None:
    up, shut = threading.Event(), threading.Event()
    client = SimpleNamespace(shutdown=lambda timeout: shut.set())

    class Slow(start.Start):  # type: ignore[misc]
        def run(self) -> Any:
            up.wait(PATIENCE_S)
            return None, client

    loading = asyncio.create_task(Slow(make_profile("a"), "nowhere", None, None).loaded())
    for _ in range(2):
        await some_turns()
        loading.cancel()
    await some_turns()
    up.set()

    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(asyncio.CancelledError):
            await loading
    assert shut.is_set()
