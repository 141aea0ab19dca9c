"""Usage rows in a real PostgreSQL: as in SQLite, and no request notices that it is away."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text, update

from gateway.accounting import store as tables
from tests.postgres_server import PostgresServer, postgres_server
from tests.scripted import client_of, make_admin
from tests.tenants import ADMIN, Tenants, bearer

PROMPT = {"prompt": "abcde", "max_tokens": 100}


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture
def tenants(tmp_path: Path, postgres: PostgresServer) -> Tenants:
    return Tenants(tmp_path, {"a": {}, "b": {}}, usage_url=postgres.url)


async def asked(tenants: Tenants) -> httpx.Response:
    admin = client_of(make_admin(tenants.gateway))
    return await admin.get("/admin/usage?since=1h", headers=bearer(tenants.keys[ADMIN]))


async def requests_of(tenants: Tenants) -> dict[str, int]:
    rows: list[dict[str, Any]] = (await asked(tenants)).json()["data"]
    return {row["tenant"]: row["requests"] for row in rows}


async def test_rows_are_kept_over_a_crash_and_those_made_meanwhile_follow(
    tenants: Tenants, postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    await tenants.post("a", "/generate", PROMPT)
    assert await requests_of(tenants) == {"a": 1}

    postgres.kill()
    statuses = [(await tenants.post("b", "/generate", PROMPT)).status_code for _ in range(3)]
    away = await asked(tenants)
    postgres.start()

    assert statuses == [200] * 3
    assert away.status_code == 503 and "cannot be read" in away.json()["detail"]
    assert "secret-word" not in away.text + caplog.text
    assert await requests_of(tenants) == {"a": 1, "b": 3}
    assert not tenants.gateway.tenancy.usage.failing
    await tenants.gateway.tenancy.usage.aclose()


async def test_no_statement_and_no_dead_connection_holds_a_thread_for_ever(
    tenants: Tenants,
) -> None:
    store = tenants.gateway.tenancy.usage.store
    assert store is not None

    with store._opened().begin() as connection:
        limit = connection.execute(text("show statement_timeout")).scalar()
        raw: Any = connection.connection.driver_connection

    assert limit == "1min"
    assert raw.info.get_parameters()["tcp_user_timeout"] == "15000"
    store.close()


async def test_rows_that_are_too_old_are_deleted(
    tmp_path: Path, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "PIECE", 1)
    tenants = Tenants(tmp_path, {"c": {}}, usage_url=postgres.url, usage_keep_days=30)
    usage = tenants.gateway.tenancy.usage
    for _ in range(2):
        await tenants.post("c", "/generate", PROMPT)
    await usage.flush()
    assert usage.store is not None
    with usage.store._opened().begin() as connection:
        ages = datetime.now(UTC) - timedelta(days=31)
        connection.execute(update(tables.usage).values(time=ages))
    await tenants.post("c", "/generate", PROMPT)

    deleted = await usage.forget()

    assert deleted >= 2
    assert await requests_of(tenants) == {"c": 1}
    await usage.aclose()
