"""A row of usage for each request, however it ended; and no request notices a database that is away."""

import asyncio
import json
import logging
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gateway.accounting import usage as accounting
from gateway.accounting.store import UsageError, url_of
from gateway.cli import app
from gateway.errors import EngineUnavailable
from gateway.observability.exposition import exposition
from tests.scripted import OPENAI_COST, Script, client_of, make_admin, make_settings
from tests.tenants import ADMIN, Tenants, bearer, header
from tests.wire import wire

JSON = (b"content-type", b"application/json")
PROMPT = {"prompt": "abcde", "max_tokens": 100}


@pytest.fixture
def tenants(tmp_path: Path) -> Tenants:
    url = f"sqlite:///{tmp_path}/state/usage.db"
    return Tenants(tmp_path, {"a": {"rpm": 100}, "b": {}}, usage_url=url)


async def rows(tenants: Tenants) -> list[dict[str, Any]]:
    """All there are, in order, read as anybody else would."""
    await tenants.gateway.tenancy.usage.flush()
    with sqlite3.connect(tenants.file.parent / "state" / "usage.db") as connection:
        connection.row_factory = sqlite3.Row
        found = connection.execute("select * from gateway_usage order by id").fetchall()
    connection.close()
    return [dict(row) for row in found]


async def row(tenants: Tenants) -> dict[str, Any]:
    (only,) = await rows(tenants)
    return only


def told(row: dict[str, Any], *names: str) -> tuple[Any, ...]:
    return tuple(row[name] for name in names)


async def test_a_row_tells_who_what_how_much_and_how_long(tenants: Tenants) -> None:
    tenants.engine.script = lambda job: Script(["one ", "two"], cached=4)
    before = datetime.now(UTC)

    answer = await tenants.post("a", "/generate", PROMPT)

    only = await row(tenants)
    assert told(only, "tenant", "route", "model", "profile", "format") == (
        *("a", "/generate", "first", "first", "bfloat16"),
    )
    assert told(only, "prompt_tokens", "cached_tokens", "thinking_tokens", "answer_tokens") == (
        *(5, 4, 0, 7),
    )
    assert told(only, "outcome", "status", "request_id") == (
        *("ok", 200, answer.headers["x-request-id"]),
    )
    assert only["key_id"] in tenants.keys["a"]
    assert only["total_s"] >= only["ttft_s"] >= 0
    came = datetime.fromisoformat(only["time"]).replace(tzinfo=UTC)
    assert timedelta(0) <= came - before < timedelta(minutes=1) and only["day"] in only["time"]


async def test_thinking_is_told_apart_from_the_answer(tenants: Tenants) -> None:
    tenants.engine.script = lambda job: Script(["<think>", "so so", "</think>", "4."], tail=(0,))

    answer = await tenants.post("a", "/thinking", {"question": "2+2?", "max_tokens": 500})

    body, only = answer.json(), await row(tenants)
    assert only["thinking_tokens"] == body["reasoning"]["tokens"] > 0
    assert only["prompt_tokens"] == body["usage"]["prompt_tokens"]
    assert only["thinking_tokens"] + only["answer_tokens"] == body["usage"]["completion_tokens"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
@pytest.mark.parametrize("scripted", ["", "stream"])
async def test_vllms_routes_have_their_rows(tenants: Tenants, path: str, scripted: str) -> None:
    headers = {**bearer(tenants.keys["b"]), "x-scripted": scripted}
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9}

    await tenants.client.post(path, json=body, headers=headers)

    only = await row(tenants)
    assert told(only, "tenant", "route", "outcome") == ("b", path, "ok")
    assert told(only, "prompt_tokens", "cached_tokens", "answer_tokens") == OPENAI_COST


async def test_errors_and_refusals_have_rows_too(tenants: Tenants) -> None:
    failure = EngineUnavailable("gone")
    tenants.engine.script = lambda job: Script(["abc", "d"], failure=failure, fail_at=1)

    await tenants.post("a", "/generate", {**PROMPT, "stream": True})
    await tenants.post("a", "/generate", PROMPT)
    await tenants.post("a", "/generate", {"max_tokens": 1})
    for _ in range(98):
        await tenants.post("a", "/generate", {})

    seen = await rows(tenants)
    told_by = [told(each, "outcome", "status", "prompt_tokens", "answer_tokens") for each in seen]
    assert told_by[:3] == [
        ("server_error", 200, 5, 3),
        ("server_error", 503, 5, 3),
        ("client_error", 400, 0, 0),
    ]
    assert told_by[-1] == ("rejected", 429, 0, 0)


async def test_a_hang_up_has_its_row_with_what_was_drawn_by_then(tenants: Tenants) -> None:
    gate = asyncio.Event()
    tenants.engine.script = lambda job: Script(["abc", "defg", "never"], gate=gate, gate_at=2)
    call = wire("/generate", {**PROMPT, "stream": True}, headers=[JSON, header(tenants.keys["a"])])
    running = asyncio.create_task(call.through(tenants.gateway.app))
    await call.arrived.wait()

    call.gone.set()
    await running

    only = await row(tenants)
    assert told(only, "outcome", "prompt_tokens", "answer_tokens") == ("disconnected", 5, 7)


async def test_probes_and_strangers_have_no_rows(tenants: Tenants) -> None:
    await tenants.client.get("/health")
    await tenants.client.post("/generate", json=PROMPT)
    await tenants.client.get("/v1/models", headers=bearer(tenants.keys["a"]))

    assert not tenants.gateway.tenancy.usage.waiting


async def test_rows_are_written_in_the_background_and_at_the_end(tenants: Tenants) -> None:
    tenants.gateway.tenancy.start()
    for _ in range(5):
        await tenants.post("b", "/generate", PROMPT)

    await tenants.gateway.tenancy.aclose()

    assert len(await rows(tenants)) == 5
    assert 'gateway_usage_rows_total{outcome="written"} 5.0' in metrics(tenants)


def metrics(tenants: Tenants) -> str:
    return exposition(tenants.gateway.fleet, tenants.gateway.figures).decode()


async def test_a_database_that_is_away_is_told_once_and_catches_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(accounting, "MAX_WAITING", 3)
    (tmp_path / "state").write_text("a file where a folder should be")
    url = f"sqlite:///{tmp_path}/state/usage.db"
    tenants = Tenants(tmp_path, {"a": {}}, usage_url=url)

    statuses = []
    for _ in range(5):
        statuses.append((await tenants.post("a", "/generate", PROMPT)).status_code)
        await tenants.gateway.tenancy.usage.flush()
    assert statuses == [200] * 5
    assert len([each for each in caplog.records if "cannot be written" in each.message]) == 1
    assert 'gateway_usage_rows_total{outcome="dropped"} 2.0' in metrics(tenants)

    (tmp_path / "state").unlink()
    assert len(await rows(tenants)) == 3
    assert "written again" in caplog.text


async def test_a_full_disk_loses_nothing_that_fits_in_memory(tenants: Tenants) -> None:
    await tenants.post("a", "/generate", PROMPT)
    await rows(tenants)
    with sqlite3.connect(tenants.file.parent / "state" / "usage.db") as connection:
        pages = connection.execute("pragma page_count").fetchone()[0]
    connection.close()
    store = tenants.gateway.tenancy.usage.store
    assert store is not None
    raw = store._opened().raw_connection()
    raw.cursor().execute(f"pragma max_page_count={pages}")  # as SQLite sees a full disk
    raw.close()

    for _ in range(2000):
        await tenants.post("b", "/generate", {})
    await tenants.gateway.tenancy.usage.flush()
    assert tenants.gateway.tenancy.usage.failing

    raw = store._opened().raw_connection()
    raw.cursor().execute("pragma max_page_count=1000000")
    raw.close()
    assert len(await rows(tenants)) == 2001


async def test_sums_by_tenant_model_format_and_day(tenants: Tenants) -> None:
    for tenant, times in (("a", 3), ("b", 1)):
        for _ in range(times):
            await tenants.post(tenant, "/generate", PROMPT)
    await tenants.post("b", "/generate", {})
    admin = client_of(make_admin(tenants.gateway))
    auth = bearer(tenants.keys[ADMIN])

    async def summed(query: str) -> Any:
        return (await admin.get(f"/admin/usage{query}", headers=auth)).json()

    by_tenant = (await summed("?by=tenant&since=1h"))["data"]
    assert [
        told(each, "tenant", "requests", "failed", "prompt_tokens", "answer_tokens")
        for each in by_tenant
    ] == [
        ("a", 3, 0, 15, 6),
        ("b", 2, 1, 5, 2),
    ]
    assert (await summed("?by=model"))["data"][0]["model"] == "first"
    assert {each["format"] for each in (await summed("?by=format"))["data"]} == {"bfloat16", ""}
    assert sum(each["requests"] for each in (await summed("?by=day"))["data"]) == 5
    assert len((await summed("?by=key_id"))["data"]) == 2
    assert (await summed("?since=2099-01-01"))["data"] == []
    for query in ("?by=password", "?since=yesterday", "?since=99999999999999d", "?by=tenant%27--"):
        assert (await admin.get(f"/admin/usage{query}", headers=auth)).status_code == 400


async def test_without_a_database_there_is_no_usage_to_show(tmp_path: Path) -> None:
    tenants = Tenants(tmp_path, {"a": {}})
    admin = client_of(make_admin(tenants.gateway))
    await tenants.post("a", "/generate", PROMPT)

    answer = await admin.get("/admin/usage", headers=bearer(tenants.keys[ADMIN]))

    assert answer.status_code == 404 and "GATEWAY_USAGE_URL" in answer.text


async def test_the_command_shows_the_same(
    tenants: Tenants, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    await tenants.post("a", "/generate", PROMPT)
    await tenants.gateway.tenancy.usage.flush()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GATEWAY_STATE_DIR", str(tmp_path / "state"))

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["usage", *arguments])
        return result.exit_code, result.stdout

    code, text = run("--by", "model", "--since", "2h", "--json")
    assert code == 0
    assert json.loads(text)[0]["requests"] == 1
    assert "first" in run("--by", "model")[1]
    assert run("--by", "colour")[0] == run("--since", "soon")[0] == 2


def test_the_url_decides_where_rows_go(tmp_path: Path) -> None:
    def url(value: str | None) -> str:
        found = url_of(make_settings(usage_url=value, state_dir=tmp_path))
        return "nowhere" if found is None else found.render_as_string(hide_password=False)

    assert url(None) == f"sqlite:///{tmp_path}/usage.db"
    assert url("off") == "nowhere"
    assert url("postgresql://u:p@db/x") == "postgresql+psycopg://u:p@db/x"
    with pytest.raises(UsageError) as caught:
        url("secret nonsense")
    assert "secret" not in str(caught.value)
