"""The audit log: every change by an admin, and every attempt of somebody who is none."""

import json
import logging
import stat
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from gateway.accounting.audit import Audit
from gateway.cli import app
from gateway.policy.keyfile import digest
from tests.scripted import client_of, make_admin, make_profile, make_settings
from tests.tenants import ADMIN, Tenants, bearer, write_keys


@pytest.fixture
def tenants(tmp_path: Path) -> Tenants:
    return Tenants(tmp_path, {"a": {}}, audit_log=tmp_path / "log" / "audit.jsonl")


@pytest.fixture
def admin(tenants: Tenants) -> httpx.AsyncClient:
    return client_of(make_admin(tenants.gateway, make_profile("first")))


def lines(tenants: Tenants) -> list[dict[str, Any]]:
    path = tenants.gateway.tenancy.audit.path
    assert path is not None
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


async def test_a_change_is_logged_with_who_what_and_how_it_ended(
    tenants: Tenants, admin: httpx.AsyncClient
) -> None:
    auth = bearer(tenants.keys[ADMIN])

    await admin.post("/admin/models/first/switch", json={"profile": "none"}, headers=auth)
    await admin.request("DELETE", "/admin/models/first/adapters/x", headers=auth, json={})

    switched, unloaded = lines(tenants)
    assert switched["who"] in tenants.keys[ADMIN]
    assert switched["action"] == "POST /admin/models/first/switch"
    assert json.loads(switched["asked"]) == {"profile": "none"}
    assert switched["outcome"] == "refused" and switched["status"] >= 400
    assert switched["request_id"] and switched["time"].endswith("+00:00")
    assert unloaded["action"] == "DELETE /admin/models/first/adapters/x"


async def test_looking_is_not_logged_but_trying_without_the_right_key_is(
    tenants: Tenants, admin: httpx.AsyncClient
) -> None:
    await admin.get("/admin/models", headers=bearer(tenants.keys[ADMIN]))
    assert lines(tenants) == []

    await admin.get("/admin/models", headers=bearer(tenants.keys["a"]))
    await admin.get("/admin/models")

    assert [(line["status"], line["who"] == "none") for line in lines(tenants)] == [
        (403, False),
        (401, True),
    ]
    assert lines(tenants)[0]["who"] in tenants.keys["a"]


async def test_the_log_is_its_owners(tenants: Tenants, admin: httpx.AsyncClient) -> None:
    await admin.post("/admin/reload", json={})

    path = tenants.gateway.tenancy.audit.path
    assert path is not None and stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_a_new_keys_file_is_logged_by_key_id_and_a_broken_one_too(tenants: Tenants) -> None:
    write_keys(tenants.file, b={})
    await tenants.gateway.tenancy.keyring.poll()
    tenants.file.write_text("keys: [")
    await tenants.gateway.tenancy.keyring.poll()

    read, refused = lines(tenants)
    assert (read["who"], read["outcome"]) == ("file", "ok")
    assert any("of b is new" in change for change in read["changes"])
    assert any(f"of {ADMIN} is gone" in change for change in read["changes"])
    assert refused["action"] == "keys file refused"


def test_the_key_commands_are_logged_without_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GATEWAY_KEYS_FILE", "keys.yaml")
    monkeypatch.setenv("GATEWAY_AUDIT_LOG", "audit.jsonl")
    run = CliRunner().invoke

    key = run(app, ["keys", "create", "--tenant", "a"]).stdout.strip()
    key_id = key.split("-")[1]
    run(app, ["keys", "rotate", key_id])
    run(app, ["keys", "revoke", key_id])

    text = (tmp_path / "audit.jsonl").read_text()
    logged = [json.loads(line) for line in text.splitlines()]
    assert [line["action"].split(",")[0] for line in logged] == [
        "key created",
        "key rotated",
        "key revoked",
    ]
    assert all(line["who"].startswith("cli:") and line["tenant"] == "a" for line in logged)
    assert key not in text and digest(key) not in text


async def test_a_log_that_cannot_be_written_is_told_once_and_stops_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    (tmp_path / "log").write_text("a file where a folder should be")
    tenants = Tenants(tmp_path, {"a": {}}, audit_log=tmp_path / "log" / "audit.jsonl")
    admin = client_of(make_admin(tenants.gateway))

    for _ in range(3):
        answer = await admin.get("/admin/models", headers=bearer(tenants.keys["a"]))
        assert answer.status_code == 403

    assert len([each for each in caplog.records if "audit log" in each.getMessage()]) == 1


def test_off_writes_nothing(tmp_path: Path) -> None:
    audit = Audit.of(make_settings(audit_log="off", state_dir=tmp_path))

    audit.write("somebody", {"action": "something"})

    assert list(tmp_path.iterdir()) == []
