"""Disks and GPUs that take their time, or for ever: nobody waits for them on the event loop."""

import asyncio
import logging
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine_config import hardware
from engine_config.hardware import GpuLoad
from gateway.engines import adapters
from gateway.observability import machine as module
from gateway.observability.machine import Machine
from gateway.settings import Settings
from tests.scripted import PATIENCE_S, ScriptedEngine, client_of, make_admin, make_gateway
from tests.switching import Bench
from tests.unit.test_fleet import until


class Driver:
    """In the place of NVML: counts who asks, and answers when it is let."""

    def __init__(self) -> None:
        self.asked = 0
        self.on_the_loop = False
        self.answers = threading.Event()
        self.answers.set()

    def __call__(self) -> list[GpuLoad]:
        self.asked += 1
        self.on_the_loop |= threading.current_thread() is threading.main_thread()
        assert self.answers.wait(PATIENCE_S)
        return [GpuLoad(0, self.asked, 8, None, None)]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    driver = Driver()
    monkeypatch.setattr(hardware, "gpu_loads", driver)
    yield driver
    driver.answers.set()


def used(machine: Machine) -> list[int]:
    return [gpu.memory_used_bytes for gpu in machine.seen.gpus]


async def test_questions_close_together_are_one_look(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine()
    monkeypatch.setattr(module, "EVERY_S", 3600.0)

    await asyncio.gather(*(machine.look() for _ in range(5)))
    await machine.look()
    assert used(machine) == [1]

    monkeypatch.setattr(module, "EVERY_S", 0.0)
    await machine.look()
    assert used(machine) == [2]


async def test_what_hangs_is_asked_once_and_told_as_it_was(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine()
    await machine.look()
    monkeypatch.setattr(module, "EVERY_S", 0.0)
    monkeypatch.setattr(module, "PATIENCE_S", 0.01)
    driver.answers.clear()

    await machine.look()
    await until(lambda: driver.asked == 2)
    for _ in range(2):
        await machine.look()
    assert (used(machine), driver.asked) == ([1], 2)

    driver.answers.set()
    async with asyncio.timeout(PATIENCE_S):
        while used(machine) == [1]:
            await machine.look()


async def test_a_driver_that_fails_leaves_what_was_seen(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    monkeypatch.setattr(module, "EVERY_S", 0.0)
    machine = Machine()
    await machine.look()

    def fails() -> Any:
        raise RuntimeError("the card fell off the bus")

    monkeypatch.setattr(hardware, "gpu_loads", fails)
    await machine.look()

    assert used(machine) == [1]
    assert "fell off the bus" in caplog.text


async def test_a_disk_that_cannot_be_asked_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, ask = Machine(), shutil.disk_usage
    machine.watch([tmp_path, Path("/")])

    def fails_for_the_root(path: Path) -> Any:
        if path == Path("/"):
            raise OSError("stale file handle")
        return ask(path)

    monkeypatch.setattr(shutil, "disk_usage", fails_for_the_root)
    seen = await machine.look()

    assert [disk.folder for disk in seen.disks] == [tmp_path]


async def test_health_and_metrics_ask_beside_the_event_loop(driver: Driver) -> None:
    gateway = make_gateway(ScriptedEngine("first"))
    admin = client_of(make_admin(gateway))

    health = (await gateway.client.get("/health")).json()
    metrics = (await admin.get("/metrics")).text

    assert [gpu["memory_used_bytes"] for gpu in health["gpus"]] == [1]
    assert 'gateway_gpu_memory_used_bytes{gpu="0"} 1.0' in metrics
    assert "gateway_disk_free_bytes{" in metrics
    assert (driver.asked, driver.on_the_loop) == (1, False)


async def test_a_switch_asks_for_free_memory_beside_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()
    asked_by: list[threading.Thread] = []

    def free_memory() -> int:
        asked_by.append(threading.current_thread())
        return 2**40

    monkeypatch.setattr(bench.old, "free_memory", free_memory)
    assert (await bench.ended(await bench.begun()))["state"] == "succeeded"

    assert asked_by and threading.main_thread() not in asked_by


async def test_adapters_are_looked_for_beside_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = make_gateway(ScriptedEngine("first"), adapters_dir=tmp_path)
    admin = client_of(make_admin(gateway))
    look = adapters.available
    looked_by: list[threading.Thread] = []

    def available(settings: Settings) -> list[str]:
        looked_by.append(threading.current_thread())
        return look(settings)

    monkeypatch.setattr(adapters, "available", available)
    path = "/admin/models/first/adapters"
    assert (await admin.get(path)).json()["available"] == []
    assert (await admin.post(path, json={"adapter": "none"})).status_code == 400

    assert len(looked_by) == 2 and threading.main_thread() not in looked_by
