"""Web pages of other origins, and names that are not ours: closed unless they are set."""

from pathlib import Path

import pytest

from tests.scripted import ScriptedEngine, make_app, make_settings
from tests.tenants import Tenants

PAGE = "https://chat.example.com"
ASKS = {"origin": PAGE, "access-control-request-method": "POST"}
BODY = {"prompt": "Hi"}


async def test_without_the_setting_no_page_may_call() -> None:
    async with make_app(ScriptedEngine()) as client:
        asked = await client.options("/generate", headers=ASKS)
        answered = await client.post("/generate", json=BODY, headers={"origin": PAGE})

    assert asked.status_code == 405
    assert "access-control-allow-origin" not in {**asked.headers, **answered.headers}


async def test_a_page_of_the_list_may_call_and_read_errors() -> None:
    async with make_app(ScriptedEngine(), cors_origins=(PAGE,)) as client:
        asked = await client.options("/generate", headers=ASKS)
        good = await client.post("/generate", json=BODY, headers={"origin": PAGE})
        bad = await client.post("/generate", json={}, headers={"origin": PAGE})

    assert asked.status_code == 200
    for response in (asked, good, bad):
        assert response.headers["access-control-allow-origin"] == PAGE
        assert "access-control-allow-credentials" not in response.headers
    assert "x-request-id" in bad.headers["access-control-expose-headers"]


async def test_another_page_may_not() -> None:
    async with make_app(ScriptedEngine(), cors_origins=(PAGE,)) as client:
        asked = await client.options(
            "/generate", headers={**ASKS, "origin": "https://evil.example"}
        )

    assert asked.status_code == 400
    assert "access-control-allow-origin" not in asked.headers


@pytest.mark.parametrize("origin", ["*", "chat.example.com", "https://chat.example.com/", "null"])
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(ValueError, match="is no origin"):
        make_settings(cors_origins=(origin,))


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8000", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example:8000", 403),
    ],
)
async def test_without_a_key_a_name_that_can_be_pointed_here_is_refused(
    host: str, status: int
) -> None:
    async with make_app(ScriptedEngine()) as client:
        response = await client.post("/generate", json=BODY, headers={"host": host})

    assert response.status_code == status


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("api.example.com", 200),
        ("API.example.com:443", 200),
        ("eu.llm.example.com", 200),
        ("llm.example.com", 403),
        ("evilllm.example.com", 403),
        ("localhost", 403),
        ("", 403),
    ],
)
async def test_with_trusted_hosts_only_they_are_answered(host: str, status: int) -> None:
    trusted = ("api.example.com", "*.llm.example.com")
    async with make_app(ScriptedEngine(), trusted_hosts=trusted) as client:
        response = await client.post("/generate", json=BODY, headers={"host": host})
        probe = await client.get("/health/live", headers={"host": host})

    assert response.status_code == status
    assert probe.status_code == 200


async def test_with_keys_and_no_trusted_hosts_any_name_will_do(tmp_path: Path) -> None:
    tenants = Tenants(tmp_path, {"a": {}})
    headers = {"host": "api.example.com", "authorization": f"Bearer {tenants.keys['a']}"}

    response = await tenants.client.post("/generate", json=BODY, headers=headers)

    assert response.status_code == 200
