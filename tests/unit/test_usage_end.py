"""The end of the gateway: what waits is written, whoever else fails, and nobody hangs on a database."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import RedisError
from sqlalchemy.engine import make_url

from gateway.accounting import usage as accounting
from gateway.accounting.store import POSTGRES, _connect_args, reason
from gateway.policy.redis_ledger import RedisLedger
from tests.scripted import PATIENCE_S
from tests.tenants import Tenants

PROMPT = {"prompt": "abcde", "max_tokens": 100}


def make_tenants(folder: Path, **settings: Any) -> Tenants:
    url = f"sqlite:///{folder}/state/usage.db"
    return Tenants(folder, {"a": {}}, usage_url=url, **settings)


def rows_that_were(tenants: Tenants, outcome: str) -> float | None:
    return tenants.gateway.figures.registry.get_sample_value(
        "gateway_usage_rows_total", {"outcome": outcome}
    )


async def test_rows_are_written_although_redis_does_not_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenants = make_tenants(tmp_path, redis_url="redis://127.0.0.1:1/0")
    tenancy = tenants.gateway.tenancy
    await tenants.post("a", "/generate", PROMPT)
    assert isinstance(tenancy.ledger, RedisLedger)

    async def fails() -> None:
        raise RedisError("no")

    monkeypatch.setattr(tenancy.ledger._client, "aclose", fails)
    with pytest.raises(RedisError):
        await tenancy.aclose()

    assert rows_that_were(tenants, "written") == 1


@pytest.mark.parametrize("begun", [False, True], ids=["at the end", "before"])
async def test_a_database_that_does_not_answer_does_not_keep_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    tenants, answers = make_tenants(tmp_path), threading.Event()
    usage = tenants.gateway.tenancy.usage
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()

    def hangs(rows: object) -> None:
        loop.call_soon_threadsafe(asked.set)
        answers.wait(PATIENCE_S)

    monkeypatch.setattr(usage.store, "add", hangs)
    monkeypatch.setattr(accounting, "EVERY_S", 0.01)
    monkeypatch.setattr(accounting, "CLOSE_S", 0.1)
    await tenants.post("a", "/generate", PROMPT)
    if begun:
        usage.start()
        await asked.wait()

    try:
        async with asyncio.timeout(PATIENCE_S / 2):
            await usage.aclose()
    finally:
        answers.set()

    assert rows_that_were(tenants, "dropped") == 1


def test_an_error_without_a_word_is_told_by_its_name() -> None:
    assert [reason(OSError()), reason(OSError("full\nand more"))] == ["OSError", "full"]


async def test_an_error_without_a_word_does_not_end_the_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tenants = make_tenants(tmp_path)
    usage = tenants.gateway.tenancy.usage
    await tenants.post("a", "/generate", PROMPT)

    def fails(rows: object) -> None:
        raise OSError

    with monkeypatch.context() as patch:
        patch.setattr(usage.store, "add", fails)
        await usage.flush()
    await usage.aclose()

    assert "OSError; they wait in memory" in caplog.text
    assert rows_that_were(tenants, "written") == 1


def test_what_the_url_says_of_its_connections_counts() -> None:
    own = _connect_args(make_url("postgresql+psycopg://u:p@db/x?keepalives_idle=99"))

    assert own == {name: value for name, value in POSTGRES.items() if name != "keepalives_idle"}
    assert _connect_args(make_url("postgresql+psycopg://u:p@db/x")) == POSTGRES
    assert "tcp_user_timeout" not in _connect_args(make_url("sqlite:////x.db"))
