"""Each kind of key opens its own listener and nothing else; no secret gets out of either."""

import logging
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway import cli_admin
from gateway.observability.exposition import exposition
from gateway.policy import keyfile
from tests.scripted import ScriptedEngine, client_of, make_admin, make_gateway, make_settings
from tests.tenants import ADMIN, Tenants, bearer, write_keys
from tests.wire import Wire

STATIC = "the-key-of-our-house"
NEW_LIMITS = {"rpm": 1}


async def get(client: httpx.AsyncClient, path: str, key: str | None) -> int:
    headers = bearer(key) if key else {}
    return (await client.get(path, headers=headers)).status_code


@pytest.fixture
def tenants(tmp_path: Path) -> Tenants:
    return Tenants(tmp_path, {"a": {}}, api_key=STATIC)


async def test_a_tenants_key_opens_the_api_and_never_the_admin_listener(tenants: Tenants) -> None:
    admin, key = client_of(make_admin(tenants.gateway)), tenants.keys["a"]

    assert await get(tenants.client, "/v1/models", key) == 200
    for path in ("/metrics", "/admin/models", "/admin/usage", "/docs", "/unknown"):
        assert await get(admin, path, key) == 403
    switched = await admin.post("/admin/reload", json={}, headers=bearer(key))
    assert switched.json()["code"] == "permission_denied"


async def test_an_admin_key_opens_the_admin_listener_and_never_the_api(tenants: Tenants) -> None:
    admin, key = client_of(make_admin(tenants.gateway)), tenants.keys[ADMIN]

    assert await get(admin, "/metrics", key) == 200
    for path in ("/v1/models", "/stats", "/generate", "/docs", "/unknown"):
        assert await get(tenants.client, path, key) == 403


async def test_an_admin_key_called_like_the_static_keys_tenant_is_still_no_api_key(
    tmp_path: Path,
) -> None:
    path = tmp_path / "keys.yaml"
    key, entry = keyfile.new_key("default", True, None)
    keyfile.write(path, keyfile.KeysFile(keys=(entry,)))
    gateway = make_gateway(ScriptedEngine(), keys_file=path, api_key=STATIC)

    assert await get(gateway.client, "/v1/models", key) == 403


async def test_the_static_key_is_admin_only_while_there_is_no_admin_key(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    write_keys(path, a={})
    gateway = make_gateway(ScriptedEngine(), keys_file=path, api_key=STATIC)
    admin = client_of(make_admin(gateway))
    assert (await get(gateway.client, "/stats", STATIC), await get(admin, "/metrics", STATIC)) == (
        200,
        200,
    )

    write_keys(path, admin=True, a={})
    await gateway.tenancy.keyring.poll()

    assert (await get(gateway.client, "/stats", STATIC), await get(admin, "/metrics", STATIC)) == (
        200,
        403,
    )


async def test_the_static_key_has_the_limits_of_the_default_tenant(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    write_keys(path, default=NEW_LIMITS)
    client = make_gateway(ScriptedEngine(), keys_file=path, api_key=STATIC).client

    answers = [
        await client.post("/generate", json={"prompt": "x"}, headers=bearer(STATIC))
        for _ in range(2)
    ]

    assert [answer.status_code for answer in answers] == [200, 429]
    assert "tenant 'default'" in answers[1].json()["detail"]


async def test_metrics_answer_without_a_key_only_by_decision(tmp_path: Path) -> None:
    closed, opened = (
        make_gateway(ScriptedEngine(), api_key=STATIC, metrics_open=value)
        for value in (False, True)
    )

    assert await get(client_of(make_admin(closed)), "/metrics", None) == 401
    admin = client_of(make_admin(opened))
    assert await get(admin, "/metrics", None) == 200
    assert await get(admin, "/metrics", "none") == 200  # as Prometheus of deploy/compose sends it
    for path in ("/metrics/", "http://localhost//metrics", "/admin/models", "/admin/usage"):
        assert await get(admin, path, None) == 401
    assert await get(opened.client, "/metrics", None) == 401


async def test_a_key_of_either_header_is_taken(tenants: Tenants) -> None:
    key = tenants.keys["a"]

    for headers in ({"authorization": f"Bearer {key}"}, {"x-api-key": key}):
        answer = await tenants.client.get("/v1/models", headers=headers)
        assert answer.status_code == 200


async def test_the_layers_behind_learn_who_calls(tenants: Tenants) -> None:
    wire = Wire("/v1/models", method="GET", headers=[(b"x-api-key", tenants.keys["a"].encode())])
    scope = wire.scope()

    await tenants.gateway.app(scope, wire.receive, wire.send)

    tenant = scope["gateway.tenant"]
    assert (tenant.name, tenant.priority) == ("a", "normal")
    assert tenant.key_id in tenants.keys["a"] and tenant.key_id != tenants.keys["a"]


def test_a_keys_file_is_enough_to_bind_beyond_loopback(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"

    assert make_settings(host="0.0.0.0", admin_host="::", keys_file=path).keys_file == path


@pytest.mark.parametrize("kind", ["a", ADMIN, "static", "wrong", "expired token"])
async def test_no_secret_is_in_logs_errors_metrics_or_the_audit_log(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    audit, usage = tmp_path / "audit.jsonl", tmp_path / "usage.db"
    settings: dict[str, Any] = {"audit_log": audit, "usage_url": f"sqlite:///{usage}"}
    tenants = Tenants(tmp_path, {"a": {"rpm": 2}}, api_key=STATIC, **settings)
    others = {
        "static": STATIC,
        "wrong": "tg-00000000-" + "w" * 43,
        "expired token": f"eyJ{'a' * 30}.eyJ{'b' * 30}.{'c' * 30}",
    }
    secret = {**tenants.keys, **others}[kind]
    admin = client_of(make_admin(tenants.gateway))

    answers = []
    for client in (tenants.client, admin):
        for path in (
            "/generate",
            "/v1/chat/completions",
            "/v1/messages",
            "/admin/reload",
            "/nothing",
        ):
            for headers in (bearer(secret), {"x-api-key": secret}):
                answers.append(await client.post(path, json={"prompt": "x"}, headers=headers))
    await tenants.gateway.tenancy.aclose()

    written = [
        *(f"{answer.headers} {answer.text}" for answer in answers),
        *(record.getMessage() + str(record.exc_info) for record in caplog.records),
        exposition(tenants.gateway.fleet, tenants.gateway.figures).decode(),
        audit.read_text(),
        usage.read_bytes().decode("latin-1") if usage.exists() else "",
        repr(tenants.gateway.settings),
    ]
    assert [text for text in written if secret in text or secret[-16:] in text] == []
    assert audit.read_text().count("\n") >= 2


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"ADMIN_KEY": "tga-the-admins-own-key", "API_KEY": STATIC}, "tga-the-admins-own-key"),
        ({"API_KEY": STATIC}, STATIC),
        ({}, None),
    ],
    ids=["both", "the static one", "none"],
)
def test_the_commands_send_the_admin_key(
    given: dict[str, str], sent: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in given.items():
        monkeypatch.setenv(f"GATEWAY_{name}", value)

    with cli_admin._admin("http://127.0.0.1:1") as client:
        assert client.headers.get("authorization") == (sent and f"Bearer {sent}")
