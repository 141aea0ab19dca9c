"""What Redis hears late, twice or in the wrong order: nothing counts twice and nothing stays."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from gateway.policy import redis_ledger
from gateway.policy.ledger import Ask, MemoryLedger, Standing
from gateway.policy.redis_ledger import RedisLedger, open_ledger
from tests.redis_server import RedisServer, redis_server
from tests.scripted import PATIENCE_S
from tests.unit.test_fleet import until
from tests.unit.test_ledger import again, ask, granted

LIMITS: dict[str, Any] = {"tpm": 5000, "daily_tokens": 5000}


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as server:
        yield server


@pytest.fixture
async def ledger(redis: RedisServer) -> AsyncIterator[RedisLedger]:
    """Redis knows its scripts: one it has to be told first would be told too late."""
    found = open_ledger(redis.url, "local")
    assert isinstance(found, RedisLedger)
    await found.settle(await granted(found, wanted(5)), 5)
    yield found
    await found.aclose()


def wanted(tokens: int) -> Ask:
    return ask(tokens=tokens, **LIMITS)


async def standing(ledger: RedisLedger) -> Standing:
    """Of the tenant, with a request of one token more."""
    return (await granted(ledger, wanted(1))).standing


async def heard(redis: RedisServer, running: int) -> None:
    """It goes on with what it was told while it hung, and so many leases are there then."""
    async with Redis.from_url(redis.url) as client, asyncio.timeout(PATIENCE_S):
        while await client.zcard("gateway:limits:{a}:running") != running:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_what_was_settled_without_our_hearing_it_is_not_settled_twice(
    redis: RedisServer, ledger: RedisLedger
) -> None:
    grant = await granted(ledger, wanted(1900))
    with redis.hanging():
        await ledger.settle(grant, 1000)
    assert ledger.away

    await heard(redis, running=0)
    await again(ledger)

    told = await standing(ledger)
    assert (told.tokens, told.today, told.running) == (1006, 1006, 1)


async def test_an_admission_that_came_too_late_is_undone(
    redis: RedisServer, ledger: RedisLedger
) -> None:
    with redis.hanging():
        grant = await granted(ledger, wanted(700))
    assert isinstance(grant.ledger, MemoryLedger)

    await heard(redis, running=1)
    await again(ledger)

    told = await standing(ledger)
    assert (told.tokens, told.today, told.running, told.requests) == (6, 6, 1, 2)


async def test_an_admission_whose_caller_left_meanwhile_is_undone(
    redis: RedisServer, ledger: RedisLedger
) -> None:
    with redis.hanging():
        asking = asyncio.create_task(ledger.admit(wanted(700)))
        await until(lambda: ledger._turn._value < redis_ledger.TURNS)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    (lease,) = ledger._doubtful

    await again(ledger)

    assert not ledger._doubtful
    keys, args = redis_ledger._keys("a"), redis_ledger._wanted(wanted(700), lease)
    await ledger._try(ledger._admit, keys, args)  # heard now, or for the second time
    assert (await standing(ledger)).today == 6


async def test_what_was_undone_is_not_admitted_after_that(ledger: RedisLedger) -> None:
    late = wanted(700)
    assert await ledger._undone("late", late)

    keys, args = redis_ledger._keys("a"), redis_ledger._wanted(late, "late")
    assert await ledger._try(ledger._admit, keys, args) is not None

    told = await standing(ledger)
    assert (told.today, told.running) == (6, 1)


async def test_a_renewal_under_way_does_not_bring_back_what_was_settled(
    ledger: RedisLedger,
) -> None:
    grant = await granted(ledger, wanted(700))
    await ledger.settle(grant, 100)

    ledger._running[grant.lease] = grant  # as the renewal saw it
    await ledger.beat()
    del ledger._running[grant.lease]

    assert (await standing(ledger)).running == 1


async def test_renewing_goes_on_whatever_happens(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    ledger, again = RedisLedger("redis://127.0.0.1:1/0", None), asyncio.Event()
    outcomes = [RuntimeError("unforeseen")]

    async def renewed() -> None:
        if outcomes:
            raise outcomes.pop()
        again.set()

    monkeypatch.setattr(redis_ledger, "BEAT_S", 0)
    monkeypatch.setattr(ledger, "beat", renewed)
    keeping = asyncio.create_task(ledger.keep())
    async with asyncio.timeout(PATIENCE_S):
        await again.wait()
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)

    assert "leases could not be renewed" in caplog.text
