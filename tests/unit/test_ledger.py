"""The ledger: what is granted stays within every limit, in memory and shared through a real Redis."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from gateway.errors import DependencyUnavailable
from gateway.policy.ledger import Ask, Grant, Ledger, MemoryLedger, Refusal, Window
from gateway.policy.redis_ledger import RedisLedger, open_ledger
from gateway.policy.tenant import Limits
from tests.redis_server import RedisServer, redis_server
from tests.scripted import PATIENCE_S


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as server:
        yield server


@pytest.fixture(params=["memory", "redis"])
async def ledger(request: pytest.FixtureRequest) -> AsyncIterator[Ledger]:
    if request.param == "memory":
        yield MemoryLedger()
        return
    shared = open_ledger(request.getfixturevalue("redis").url, "local")
    assert isinstance(shared, RedisLedger)
    yield shared
    assert not shared.away
    await shared.aclose()


def ask(requests: int = 1, tokens: int = 0, tenant: str = "a", **limits: Any) -> Ask:
    return Ask(tenant, Limits(**limits), requests, tokens)


async def granted(ledger: Ledger, asked: Ask) -> Grant:
    answer = await ledger.admit(asked)
    assert isinstance(answer, Grant), answer
    return answer


async def refused(ledger: Ledger, asked: Ask) -> Refusal:
    answer = await ledger.admit(asked)
    assert isinstance(answer, Refusal), answer
    return answer


async def count(asks: list[tuple[Ledger, Ask]]) -> int:
    """How many are granted when all ask at once."""
    answers = await asyncio.gather(*(ledger.admit(asked) for ledger, asked in asks))
    return sum(isinstance(answer, Grant) for answer in answers)


async def test_of_two_hundred_at_once_as_many_pass_as_the_minute_has(ledger: Ledger) -> None:
    assert await count([(ledger, ask(rpm=60))] * 200) == 60

    refusal = await refused(ledger, ask(rpm=60))
    assert refusal.limit == "rpm"
    assert 1 <= refusal.wait_s <= 61
    assert refusal.standing.requests == 60


async def test_reservations_made_at_once_stay_within_the_minutes_tokens(ledger: Ledger) -> None:
    assert await count([(ledger, ask(tokens=300, tpm=1000))] * 50) == 3

    refusal = await refused(ledger, ask(tokens=101, tpm=1000))
    assert (refusal.limit, refusal.standing.tokens) == ("tpm", 900)
    await granted(ledger, ask(tokens=100, tpm=1000))


async def test_what_was_reserved_and_not_used_is_given_back(ledger: Ledger) -> None:
    limits: dict[str, Any] = {"tpm": 1000, "daily_tokens": 1000}
    first = await granted(ledger, ask(tokens=900, **limits))
    assert (await refused(ledger, ask(tokens=200, **limits))).limit == "tpm"

    await ledger.settle(first, 10)

    second = await granted(ledger, ask(tokens=200, **limits))
    assert (second.standing.tokens, second.standing.today) == (210, 210)


async def test_what_was_used_beyond_the_reservation_is_charged(ledger: Ledger) -> None:
    first = await granted(ledger, ask(tokens=10, tpm=1000))

    await ledger.settle(first, 1200)

    refusal = await refused(ledger, ask(tokens=1, tpm=1000))
    assert refusal.standing.tokens == 1200


async def test_a_refused_request_costs_nothing(ledger: Ledger) -> None:
    limits: dict[str, Any] = {"rpm": 5, "tpm": 100, "max_concurrent": 5, "daily_tokens": 100}
    for _ in range(20):
        await refused(ledger, ask(tokens=101, **limits))

    standing = (await granted(ledger, ask(tokens=100, **limits))).standing
    assert (standing.requests, standing.tokens, standing.today, standing.running) == (
        1,
        100,
        100,
        1,
    )


async def test_what_runs_is_counted_until_it_is_settled(ledger: Ledger) -> None:
    running = [await granted(ledger, ask(max_concurrent=3)) for _ in range(3)]
    refusal = await refused(ledger, ask(max_concurrent=3))

    await ledger.settle(running[1], 0)

    assert (refusal.limit, refusal.wait_s) == ("max_concurrent", 1)
    await granted(ledger, ask(max_concurrent=3))
    await refused(ledger, ask(max_concurrent=3))


async def test_the_days_tokens_end_at_midnight_utc(ledger: Ledger) -> None:
    await granted(ledger, ask(tokens=100, daily_tokens=150))

    refusal = await refused(ledger, ask(tokens=100, daily_tokens=150))

    assert refusal.limit == "daily_tokens"
    assert 0 < refusal.wait_s <= 86_400


async def test_a_batch_counts_as_its_items(ledger: Ledger) -> None:
    batch = await granted(ledger, ask(requests=7, rpm=10, max_concurrent=10))

    assert (await refused(ledger, ask(requests=4, rpm=10))).limit == "rpm"
    assert (await refused(ledger, ask(requests=4, max_concurrent=10))).limit == "max_concurrent"
    await ledger.settle(batch, 0)
    await granted(ledger, ask(requests=10, max_concurrent=10))


async def test_tenants_do_not_use_each_others_limits(ledger: Ledger) -> None:
    await granted(ledger, ask(rpm=1))

    await granted(ledger, ask(rpm=1, tenant="b"))
    await refused(ledger, ask(rpm=1))


async def test_settling_twice_changes_nothing(ledger: Ledger) -> None:
    if isinstance(ledger, MemoryLedger):
        return  # only what crosses a network is ever sent again
    grant = await granted(ledger, ask(tokens=100, tpm=1000))

    await ledger.settle(grant, 40)
    await ledger.settle(grant, 40)

    assert (await granted(ledger, ask(tokens=1, tpm=1000))).standing.tokens == 41


def test_a_minute_is_over_a_minute_after_its_last_moment() -> None:
    window = Window()
    window.add(100, 5)
    window.add(130, 7)

    assert [window.at(now) for now in (100, 160, 161, 190, 191)] == [12, 12, 7, 7, 0]


def test_waiting_lasts_until_enough_has_fallen_out() -> None:
    window = Window()
    for second in (100, 110, 120):
        window.add(second, 10)

    assert [window.wait(120, excess) for excess in (1, 10, 11, 30, 31)] == [41, 41, 51, 61, 61]
    assert window.reset(120) == 61


def test_a_correction_counts_in_its_own_second_and_not_when_that_is_over() -> None:
    window = Window()
    window.add(100, 50)
    window.add(130, 50)

    window.correct(100, -40)
    assert (window.at(150), window.at(161)) == (60, 50)
    window.correct(100, -40)
    assert window.at(161) == 50


async def shared(redis: RedisServer, away: str = "local") -> RedisLedger:
    ledger = open_ledger(redis.url, away)
    assert isinstance(ledger, RedisLedger)
    return ledger


async def test_two_gateways_on_one_redis_are_together_never_over(redis: RedisServer) -> None:
    first, second = await shared(redis), await shared(redis)
    asked = ask(tokens=10, rpm=60, tpm=10_000)

    assert await count([(first, asked), (second, asked)] * 100) == 60
    assert (
        await count(
            [(first, ask(tokens=1500, tpm=10_000)), (second, ask(tokens=1500, tpm=10_000))] * 9
        )
        == 6
    )

    assert not (first.away or second.away)
    await asyncio.gather(first.aclose(), second.aclose())


async def test_in_redis_old_seconds_and_days_do_not_count(redis: RedisServer) -> None:
    ledger, now = await shared(redis), int(time.time())
    async with Redis.from_url(redis.url) as client:
        fields: dict[Any, Any] = {f"r{now - 62}": 9, f"t{now - 62}": 9, f"d{now // 86400 - 1}": 9}
        await client.hset("gateway:limits:{a}:used", mapping=fields)

    grant = await granted(ledger, ask(tokens=5, rpm=1, tpm=5, daily_tokens=5))

    assert grant.standing.today == 5
    await ledger.aclose()


async def test_a_killed_gateway_holds_no_place_for_long(redis: RedisServer) -> None:
    ledger, now = await shared(redis), int(time.time())
    async with Redis.from_url(redis.url) as client:
        leases = {"dead:0|1": now - 1, "alive:0|1": now + 60}
        await client.zadd("gateway:limits:{a}:running", leases)

    assert (await granted(ledger, ask(max_concurrent=2))).standing.running == 2
    await refused(ledger, ask(max_concurrent=2))
    await ledger.aclose()


async def again(ledger: RedisLedger) -> None:
    """Let it try Redis without waiting for its pause to be over."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            await ledger.beat()
            if not ledger.away:
                return
            await asyncio.sleep(0.05)


async def test_with_redis_away_each_gateway_counts_alone_until_it_is_back(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    ledger = await shared(redis)
    before = await granted(ledger, ask(tokens=50, rpm=3, tpm=1000))

    redis.kill()
    assert await count([(ledger, ask(tokens=50, rpm=3, tpm=1000))] * 20) == 3
    await ledger.settle(before, 10)
    redis.start()
    await again(ledger)

    assert await count([(ledger, ask(tokens=50, rpm=3, tpm=1000))] * 20) == 3
    told = [record.getMessage() for record in caplog.records if "Redis" in record.getMessage()]
    assert len(told) == 2, told
    assert "counts alone" in told[0] and told[1] == "Redis is back"
    await ledger.aclose()


async def test_with_refuse_nobody_passes_while_redis_is_away(redis: RedisServer) -> None:
    ledger = await shared(redis, "refuse")
    redis.kill()

    for _ in range(3):
        with pytest.raises(DependencyUnavailable) as caught:
            await ledger.admit(ask(rpm=60))
        assert caught.value.headers["retry-after"] == "1"

    redis.start()
    await again(ledger)
    await granted(ledger, ask(rpm=60))
    await ledger.aclose()


async def test_a_redis_that_came_back_empty_learns_of_what_runs(redis: RedisServer) -> None:
    ledger, other = await shared(redis), await shared(redis)
    running = [await granted(ledger, ask(max_concurrent=2)) for _ in range(2)]
    redis.kill()
    redis.start()

    await ledger.beat()
    await again(ledger)

    await refused(other, ask(max_concurrent=2))
    await ledger.settle(running[0], 0)
    await granted(other, ask(max_concurrent=2))
    await asyncio.gather(ledger.aclose(), other.aclose())


async def test_what_redis_did_not_hear_is_told_when_it_is_back(redis: RedisServer) -> None:
    ledger = await shared(redis)
    grant = await granted(ledger, ask(tokens=900, tpm=1000, max_concurrent=1))
    with redis.hanging():
        await ledger.settle(grant, 100)
    assert ledger.away

    await again(ledger)

    standing = (await granted(ledger, ask(tokens=900, tpm=1000, max_concurrent=1))).standing
    assert (standing.tokens, standing.running) == (1000, 1)
    await ledger.aclose()


async def test_a_redis_that_hangs_keeps_nobody_waiting(redis: RedisServer) -> None:
    ledger = await shared(redis)

    with redis.hanging():
        async with asyncio.timeout(PATIENCE_S / 2):
            assert await count([(ledger, ask(rpm=5))] * 50) == 5
    await ledger.aclose()
