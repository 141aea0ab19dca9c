"""Without the key nothing answers but the probes, however the path is written."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.routing import Route

from gateway.policy.keys import PUBLIC
from gateway.routes.openai import FORWARDED
from tests.scripted import Gateway, ScriptedEngine, make_admin, make_gateway
from tests.tenants import write_keys
from tests.wire import Wire

KEY = "the-key-of-our-house"
TRICKS = [
    "//health",
    "/health/",
    "/health//live",
    "/health/../generate",
    "/health/./",
    "/./health",
    "/HEALTH",
    "/health%2flive",
    "/health;x",
    "/health?",
    "/health#",
    " /health",
    "/health\x00",
    "health",
    "",
    "*",
    "http://gateway/health",
    "/unknown",
    "/v1/models/../../health",
    "/health%00",
    "/health/%2e%2e/generate",
    "/health\\..\\generate",
    "/HEALTH/live",
    "/Health/Ready",
    "/health/live/",
    "//health/live",
    "/ping/",
    "/ping/../v1/models",
    "/metrics/",
    "//metrics",
    "/METRICS",
    "/admin/../health",
    "/admin//models",
]
METHODS = ["GET", "POST", "HEAD", "OPTIONS", "DELETE", "PUT", "PATCH", "TRACE", "get", "PROPFIND"]


@pytest.fixture(params=["static key", "keys file", "empty keys file", "both"])
def gateway(request: pytest.FixtureRequest, tmp_path: Path) -> Gateway:
    """Closed in each way there is (tokens: test_oidc.py)."""
    settings: dict[str, Any] = {}
    if request.param in ("static key", "both"):
        settings["api_key"] = KEY
    if request.param != "static key":
        settings["keys_file"] = tmp_path / "keys.yaml"
        tenants: dict[str, Any] = {} if request.param.startswith("empty") else {"a": {"rpm": 9999}}
        write_keys(settings["keys_file"], **tenants)
    return make_gateway(ScriptedEngine("first"), **settings)


@pytest.fixture
def static() -> Gateway:
    return make_gateway(ScriptedEngine("first"), api_key=KEY)


def apps(gateway: Gateway) -> Iterator[FastAPI]:
    yield gateway.app
    yield make_admin(gateway)


def routes_of(app: FastAPI) -> set[str]:
    """Every route there is, documents included, and what the engine's app answers."""
    return {route.path for route in app.routes if isinstance(route, Route)} | {
        *FORWARDED,
        "/v1/models",
        "/v1/models/first",
    }


async def statuses(app: FastAPI, path: str, headers: list[tuple[bytes, bytes]]) -> set[int]:
    seen = set()
    for method in METHODS:
        wire = Wire(path, b"{}", method, headers=[(b"content-type", b"application/json"), *headers])
        await wire.through(app)
        seen.add(wire.status)
    return seen


async def test_every_route_of_every_app_asks_for_the_key(gateway: Gateway) -> None:
    open_paths = {
        path
        for app in apps(gateway)
        for path in routes_of(app)
        if await statuses(app, path, []) != {401}
    }

    assert open_paths == PUBLIC


@pytest.mark.parametrize("path", TRICKS)
async def test_no_spelling_of_a_path_gets_around_the_key(gateway: Gateway, path: str) -> None:
    refusal = 404 if "\x00" in path else 401  # with a control character before any key is looked at
    for app in apps(gateway):
        assert await statuses(app, path, []) == {refusal}

    assert gateway.engines[0].jobs == []


@pytest.mark.parametrize("character", ["\n", "\r", "\t", "\x00", "\x1f", "\x7f"], ids=repr)
async def test_no_route_is_reached_with_a_control_character(
    static: Gateway, character: str
) -> None:
    for app in apps(static):
        for path in routes_of(app):
            for spelled in (path + character, character + path):
                found = await statuses(app, spelled, [(b"x-api-key", KEY.encode())])
                assert found == {404}, spelled

    assert static.engines[0].jobs == []


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/thinking", "/admin/reload", "/docs"])
async def test_no_spelling_of_a_closed_path_gets_around_the_key(
    gateway: Gateway, path: str
) -> None:
    spellings = [
        path.replace("/", "//"),
        f"{path}/",
        f"{path}/.",
        f"/health/..{path}",
        f"/health/%2e%2e{path}",
        path[0] + path[1:].replace("/", "%2f"),
        path.upper(),
        f"{path};/health",
        f"{path}%3f/health",
        f"{path}#/health",
    ]
    for app in apps(gateway):
        for spelling in spellings:
            assert await statuses(app, spelling, []) == {401}, spelling

    assert gateway.engines[0].jobs == [] and gateway.engines[0].bodies == []


@pytest.mark.parametrize("host", [b"", b"gateway/health", b"x/health?", b"health", b"a b", b"[::"])
async def test_the_host_header_opens_nothing(gateway: Gateway, host: bytes) -> None:
    assert await statuses(gateway.app, "/generate", [(b"host", host)]) == {401}


@pytest.mark.parametrize(
    "header",
    [
        (b"authorization", b"Bearer wrong"),
        (b"authorization", b"Bearer the-key-of-our-house2"),
        (b"authorization", b"Bearer the-key-of-our-hous"),
        (b"authorization", b"Bearer THE-KEY-OF-OUR-HOUSE"),
        (b"authorization", b"Bearer "),
        (b"authorization", b"Bearer"),
        (b"authorization", b"Basic the-key-of-our-house"),
        (b"authorization", b"the-key-of-our-house"),
        (b"authorization", b"Bearer \xff\xfe"),
        (b"x-api-key", b"wrong"),
        (b"x-api-key", b""),
        (b"cookie", b"key=the-key-of-our-house"),
    ],
)
async def test_a_wrong_key_is_refused_and_not_repeated(
    gateway: Gateway, header: tuple[bytes, bytes]
) -> None:
    wire = Wire("/generate", b"{}", headers=[header])

    await wire.through(gateway.app)

    assert wire.status == 401
    assert KEY not in wire.answer.decode()
    assert dict(wire.sent[0]["headers"])[b"www-authenticate"] == b"Bearer"


@pytest.mark.parametrize(
    "header",
    [
        (b"authorization", b"Bearer the-key-of-our-house"),
        (b"authorization", b"bearer  the-key-of-our-house "),
        (b"x-api-key", b"the-key-of-our-house"),
    ],
)
async def test_the_right_key_opens_every_app(static: Gateway, header: tuple[bytes, bytes]) -> None:
    public, admin = apps(static)

    assert await statuses(public, "/stats", [header]) == {200, 405}
    assert await statuses(admin, "/metrics", [header]) == {200, 405}


@pytest.mark.parametrize(
    ("path", "member"),
    [("/v1/chat/completions", "error"), ("/v1/messages", "error"), ("/generate", "detail")],
)
async def test_the_refusal_has_the_shape_of_its_path(
    gateway: Gateway, path: str, member: str
) -> None:
    response = await gateway.client.post(path, json={})

    assert response.status_code == 401
    assert member in response.json()
    assert response.headers["x-request-id"] in response.text


async def test_an_oversized_body_is_not_read_from_somebody_without_a_key(
    gateway: Gateway,
) -> None:
    wire = Wire("/generate", b"x" * (gateway.settings.max_body_bytes + 1))

    await wire.through(gateway.app)

    assert wire.status == 401


async def test_a_websocket_is_closed_whatever_its_path(gateway: Gateway) -> None:
    wire = Wire("/generate")
    scope = {**wire.scope(), "type": "websocket", "scheme": "ws", "subprotocols": []}
    del scope["method"]

    await gateway.app(scope, wire.receive, wire.send)

    assert [message["type"] for message in wire.sent] == ["websocket.close"]


async def test_without_a_key_set_loopback_callers_need_none() -> None:
    gateway = make_gateway(ScriptedEngine())

    assert (await gateway.client.get("/stats")).status_code == 200
