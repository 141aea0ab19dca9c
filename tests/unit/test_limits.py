"""Tenants are held to their limits on every route, and whatever ends a request, its tokens are settled."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.engines.types import Job
from gateway.errors import EngineUnavailable
from gateway.policy.ledger import MemoryLedger
from gateway.policy.meter import METER
from gateway.policy.redis_ledger import RedisLedger
from tests.redis_server import RedisServer, redis_server
from tests.scripted import OPENAI_COST, PATIENCE_S, Script, ScriptedEngine, make_gateway
from tests.tenants import Tenants, bearer, header
from tests.wire import wire

JSON = (b"content-type", b"application/json")
PROMPT = {"prompt": "abcde", "max_tokens": 100}  # 5 tokens of the scripted engine
CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 100}


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as server:
        yield server


async def used(tenants: Tenants, tenant: str = "a") -> int:
    """Tokens of the last minute, with nothing running any more."""
    ledger = tenants.gateway.tenancy.ledger
    assert isinstance(ledger, MemoryLedger)
    account = ledger._accounts[tenant]
    assert account.running == {}
    assert account.tokens.total == account.today
    return account.today


async def test_two_hundred_streams_at_once_stay_at_sixty_a_minute_and_none_is_lost(
    tmp_path: Path,
) -> None:
    tenants = Tenants(tmp_path, {"a": {"rpm": 60}})
    body = {**PROMPT, "stream": True}

    answers = await asyncio.gather(*(tenants.post("a", "/generate", body) for _ in range(200)))

    assert Counter(answer.status_code for answer in answers) == {200: 60, 429: 140}
    assert len(tenants.engine.jobs) == 60
    assert all("[DONE]" in answer.text for answer in answers if answer.status_code == 200)
    assert all(answer.headers["retry-after"] for answer in answers if answer.status_code == 429)


async def test_two_gateways_on_one_redis_are_together_never_over(
    tmp_path: Path, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.policy.redis_ledger.TIMEOUT_S", 30.0)
    first = Tenants(tmp_path, {"a": {"rpm": 60, "tpm": 100_000}}, redis_url=redis.url)
    engine = ScriptedEngine("first")
    second = make_gateway(engine, keys_file=first.file, redis_url=redis.url)
    auth, body = bearer(first.keys["a"]), {**PROMPT, "stream": True}

    answers = await asyncio.gather(
        *(
            client.post("/generate", json=body, headers=auth)
            for client in [first.client, second.client] * 100
        )
    )

    assert Counter(answer.status_code for answer in answers) == {200: 60, 429: 140}
    assert len(first.engine.jobs) + len(engine.jobs) == 60
    assert first.engine.jobs and engine.jobs
    for ledger in (first.gateway.tenancy.ledger, second.tenancy.ledger):
        assert isinstance(ledger, RedisLedger)
        await ledger.aclose()


async def test_redis_killed_and_back_is_no_error_for_callers(
    tmp_path: Path, redis: RedisServer
) -> None:
    tenants = Tenants(tmp_path, {"a": {"rpm": 1000}}, redis_url=redis.url)
    statuses = [(await tenants.post("a", "/generate", PROMPT)).status_code]

    redis.kill()
    statuses += [(await tenants.post("a", "/generate", PROMPT)).status_code for _ in range(5)]
    redis.start()
    statuses += [(await tenants.post("a", "/generate", PROMPT)).status_code for _ in range(5)]

    assert statuses == [200] * 11
    ledger = tenants.gateway.tenancy.ledger
    assert isinstance(ledger, RedisLedger)
    await ledger.aclose()


async def test_redis_away_and_refused_is_our_fault_and_says_when_to_come_back(
    tmp_path: Path, redis: RedisServer
) -> None:
    tenants = Tenants(tmp_path, {"a": {"rpm": 9}}, redis_url=redis.url, redis_away="refuse")
    redis.kill()

    answer = await tenants.post("a", "/v1/chat/completions", CHAT)

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"]["code"] == "dependency_unavailable"


async def test_parallel_streams_never_use_more_than_the_minutes_tokens(tmp_path: Path) -> None:
    tenants = Tenants(tmp_path, {"a": {"tpm": 1000}})
    tenants.engine.script = lambda job: Script(["x" * 10] * 10, finish="length")  # all 100 of them

    answers = await asyncio.gather(
        *(tenants.post("a", "/generate", {**PROMPT, "stream": True}) for _ in range(50))
    )

    passed = [answer for answer in answers if answer.status_code == 200]
    assert 5 <= len(passed) <= 9
    assert await used(tenants) == 105 * len(passed) <= 1000


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_is_settled_to_what_it_told(tmp_path: Path, stream: bool) -> None:
    tenants = Tenants(tmp_path, {"a": {"tpm": 10_000}})
    tenants.engine.script = lambda job: Script(["one ", "two"])

    await tenants.post("a", "/generate", {**PROMPT, "stream": stream})

    assert await used(tenants) == 5 + 7


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/messages"])
async def test_vllms_routes_are_settled_to_what_the_engine_drew(tmp_path: Path, path: str) -> None:
    tenants = Tenants(tmp_path, {"a": {"tpm": 10_000}})

    answer = await tenants.post("a", path, {**CHAT, "prompt": "x"})

    assert answer.status_code == 200
    assert await used(tenants) == OPENAI_COST[0] + OPENAI_COST[2]


async def test_a_hang_up_is_settled_to_what_was_drawn_by_then(tmp_path: Path) -> None:
    tenants = Tenants(tmp_path, {"a": {"tpm": 10_000}})
    gate = asyncio.Event()
    tenants.engine.script = lambda job: Script(["abc", "defg", "never"], gate=gate, gate_at=2)
    call = wire("/generate", {**PROMPT, "stream": True}, headers=[JSON, header(tenants.keys["a"])])
    running = asyncio.create_task(call.through(tenants.gateway.app))
    await call.arrived.wait()

    call.gone.set()
    await running

    assert tenants.engine.aborted
    assert await used(tenants) == 5 + 7


async def test_a_plain_request_that_hangs_up_is_charged_too(tmp_path: Path) -> None:
    tenants = Tenants(tmp_path, {"a": {"tpm": 10_000}})
    gate = asyncio.Event()
    tenants.engine.script = lambda job: Script(["abc", "never"], gate=gate, gate_at=1)
    call = wire("/generate", PROMPT, headers=[JSON, header(tenants.keys["a"])])
    running = asyncio.create_task(call.through(tenants.gateway.app))
    await tenants.engine.crowded.wait()

    call.gone.set()
    await running

    assert await used(tenants) == 5 + 3


async def test_an_error_in_the_middle_is_settled(tmp_path: Path) -> None:
    tenants = Tenants(tmp_path, {"a": {"tpm": 10_000}})
    failure = EngineUnavailable("gone")
    tenants.engine.script = lambda job: Script(["abc", "d"], failure=failure, fail_at=1)

    answers = [
        await tenants.post("a", "/generate", {**PROMPT, "stream": stream})
        for stream in (True, False)
    ]

    assert "generate.failed" in answers[0].text and answers[1].status_code == 503
    assert await used(tenants) == 2 * (5 + 3)


async def test_what_never_reached_the_engine_costs_no_tokens(tmp_path: Path) -> None:
    tenants = Tenants(tmp_path, {"a": {"tpm": 10_000}})

    statuses = [
        (await tenants.post("a", path, body)).status_code
        for path, body in (
            ("/generate", {"max_tokens": 5}),
            ("/generate", {**PROMPT, "n": 10**9}),
            ("/no", {}),
        )
    ]

    assert statuses == [400, 400, 404]
    assert await used(tenants) == 0


async def test_thinking_is_settled_with_its_phases_and_its_prompt_once(tmp_path: Path) -> None:
    tenants = Tenants(tmp_path, {"a": {"tpm": 100_000}})
    tenants.engine.script = lambda job: Script(["<think>", "so", "</think>", "4."], tail=(0,))

    answer = await tenants.post(
        "a", "/thinking", {"question": "2+2?", "max_tokens": 500, "samples": 2}
    )

    assert answer.status_code == 200, answer.text
    assert await used(tenants) == answer.json()["usage"]["total_tokens"]


async def test_a_batch_counts_as_its_items_and_is_settled_as_a_whole(tmp_path: Path) -> None:
    tenants = Tenants(tmp_path, {"a": {"rpm": 5, "tpm": 10_000}})
    body = {"prompts": ["abc", "de", "f"], "max_tokens": 10}

    first = await tenants.post("a", "/batch_generate", body)
    second = await tenants.post("a", "/batch_generate", body)

    assert (first.status_code, second.status_code) == (200, 429)
    assert await used(tenants) == first.json()["usage"]["total_tokens"] == 6 + 3 * 2


@pytest.mark.parametrize(
    "hidden",
    [
        {"prompts": ["a"] * 4, "max_tokens": 1, "max_length": 900},
        {"requests": [{"prompt": "a", "max_new_tokens": 900}] * 4, "max_tokens": 1},
        {
            "requests": [{"prompt": "a", "sampling_params": {"max_tokens": 900}}] * 4,
            "max_tokens": 1,
        },
        {"prompts": ["a"] * 4, "max_tokens": 225, "n": 4},
    ],
    ids=["an alias", "in items", "in sampling_params", "in copies"],
)
async def test_no_spelling_hides_how_much_may_be_drawn(
    tmp_path: Path, hidden: dict[str, Any]
) -> None:
    tenants = Tenants(tmp_path, {"a": {"tpm": 2000}})

    assert (await tenants.post("a", "/batch_generate", hidden)).status_code == 429


async def test_no_more_run_at_once_than_the_tenant_may(tmp_path: Path) -> None:
    tenants = Tenants(tmp_path, {"a": {"max_concurrent": 2}})
    engine, gate = tenants.engine, asyncio.Event()
    engine.script = lambda job: Script(gate=gate)
    engine.crowd = 2
    running = [asyncio.create_task(tenants.post("a", "/generate", PROMPT)) for _ in range(2)]
    async with asyncio.timeout(PATIENCE_S):
        await engine.crowded.wait()

    third = await tenants.post("a", "/generate", PROMPT)
    gate.set()
    answers = await asyncio.gather(*running)

    assert (third.status_code, third.headers["retry-after"]) == (429, "1")
    assert [answer.status_code for answer in answers] == [200, 200]
    assert (await tenants.post("a", "/generate", PROMPT)).status_code == 200


async def test_the_days_quota_is_told_apart_and_not_tried_again_at_once(tmp_path: Path) -> None:
    tenants = Tenants(tmp_path, {"a": {"daily_tokens": 500}})
    tenants.engine.script = lambda job: Script(["x" * 90])
    statuses = [(await tenants.post("a", "/generate", PROMPT)).status_code for _ in range(8)]

    refused = await tenants.post("a", "/v1/chat/completions", CHAT)

    assert statuses[:3] == [200] * 3 and statuses[-1] == 429
    error = refused.json()["error"]
    assert (error["code"], error["type"]) == ("insufficient_quota", "insufficient_quota")
    assert refused.headers["x-should-retry"] == "false"
    assert int(refused.headers["retry-after"]) <= 86_400


@pytest.mark.parametrize(
    ("path", "where", "kind"),
    [
        ("/v1/chat/completions", ("error", "code"), "rate_limit_exceeded"),
        ("/v1/messages", ("error", "type"), "rate_limit_error"),
        ("/generate", ("code",), "rate_limit_exceeded"),
    ],
)
async def test_a_refusal_has_the_shape_and_the_headers_of_its_clients(
    tmp_path: Path, path: str, where: tuple[str, ...], kind: str
) -> None:
    tenants = Tenants(tmp_path, {"a": {"rpm": 1, "tpm": 5000}})
    body = {**CHAT, **({} if path != "/generate" else {"prompt": None})}
    allowed = await tenants.post("a", path, body)

    refused = await tenants.post("a", path, body)

    assert (allowed.status_code, refused.status_code) == (200, 429)
    told: Any = refused.json()
    for name in where:
        told = told[name]
    assert told == kind
    assert allowed.headers["x-ratelimit-limit-requests"] == "1"
    assert allowed.headers["x-ratelimit-remaining-requests"] == "0"
    assert int(allowed.headers["x-ratelimit-remaining-tokens"]) < 5000
    for headers in (allowed.headers, refused.headers):
        assert headers["x-ratelimit-limit-tokens"] == "5000"
        assert 0 < int(headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 61
    assert 0 < int(refused.headers["retry-after"]) <= 61


async def test_what_would_never_fit_is_refused_for_good(tmp_path: Path) -> None:
    tenants = Tenants(tmp_path, {"a": {"tpm": 50, "rpm": 2}})

    large = await tenants.post("a", "/generate", PROMPT)
    many = await tenants.post("a", "/batch_generate", {"prompts": ["a"] * 3, "max_tokens": 1})

    for answer in (large, many):
        assert answer.status_code == 429
        assert answer.headers["x-should-retry"] == "false"
        assert "retry-after" not in answer.headers
    assert "max_tokens" in large.json()["detail"]


async def test_a_tenant_without_limits_gets_no_headers_and_no_refusal(tmp_path: Path) -> None:
    tenants = Tenants(tmp_path, {"a": {}})

    answers = [await tenants.post("a", "/generate", PROMPT) for _ in range(100)]

    assert {answer.status_code for answer in answers} == {200}
    assert not any(name.startswith("x-ratelimit") for name in answers[0].headers)


async def test_reading_and_ending_a_thought_need_no_room_in_a_limit(tmp_path: Path) -> None:
    tenants = Tenants(tmp_path, {"a": {"rpm": 1}})
    await tenants.post("a", "/generate", PROMPT)
    auth = bearer(tenants.keys["a"])

    statuses = [
        (await tenants.client.get(path, headers=auth)).status_code
        for path in ("/stats", "/v1/models")
    ]
    ended = await tenants.post("a", "/thinking/nothing/answer_now", {})

    assert (statuses, ended.status_code) == ([200, 200], 404)


@pytest.mark.parametrize(("ceiling", "cap"), [(None, 7), (20, 7), (3, 3)])
async def test_the_tenants_thinking_ceiling_clamps(
    tmp_path: Path, ceiling: int | None, cap: int
) -> None:
    tenants = Tenants(tmp_path, {"a": {"max_thinking": 7}}, thinking_ceiling=ceiling)
    tenants.engine.script = lambda job: Script(["x"] * 30)

    answer = await tenants.post(
        "a", "/thinking", {"question": "?", "thinking_budget": 1000, "max_tokens": 2000}
    )

    assert answer.json()["budget"]["applied"] == cap
    assert answer.json()["reasoning"]["tokens"] == cap


async def test_dense_texts_are_reserved_for_once_they_were_seen(tmp_path: Path) -> None:
    tenants = Tenants(tmp_path, {"a": {"tpm": 100_000}})
    body = {"prompt": "1" * 3000, "max_tokens": 1}  # a token per byte

    first = await tenants.post("a", "/generate", body)
    second = await tenants.post("a", "/generate", body)

    left = [int(answer.headers["x-ratelimit-remaining-tokens"]) for answer in (first, second)]
    assert 100_000 - left[0] < 1500
    assert left[0] - left[1] > 2900
    assert await used(tenants) == 2 * 3002


async def test_a_count_that_fails_keeps_the_reservation_and_frees_the_place(tmp_path: Path) -> None:
    tenants = Tenants(tmp_path, {"a": {"max_concurrent": 1, "tpm": 10_000}})

    def script(job: Job) -> Script:
        meter = METER.get()
        assert meter is not None
        meter.drawn.append(object())  # type: ignore[arg-type]
        return Script()

    tenants.engine.script = script
    await tenants.post("a", "/generate", PROMPT)
    tenants.engine.script = lambda job: Script()

    assert await used(tenants) > 100
    assert (await tenants.post("a", "/generate", PROMPT)).status_code == 200
