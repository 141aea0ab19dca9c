"""A web page whose name was pointed at this machine cannot use a listener that asks for no key."""

import pytest

from tests.scripted import ScriptedEngine, client_of, make_admin, make_gateway


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8001", 200),
        ("[::1]:8001", 200),
        ("[::1]", 200),
        ("localhost", 200),
        ("localhost:8001", 200),
        ("10.0.0.7:8001", 200),
        ("evil.example", 403),
        ("evil.example:8001", 403),
        ("localhost.evil.example:8001", 403),
        ("127.0.0.1.evil.example", 403),
    ],
)
async def test_a_name_that_could_be_pointed_here_is_refused_without_a_key(
    host: str, status: int
) -> None:
    admin = client_of(make_admin(make_gateway(ScriptedEngine("first"))))

    assert (await admin.get("/admin/models", headers={"host": host})).status_code == status


async def test_with_a_key_the_name_does_not_matter() -> None:
    gateway = make_gateway(ScriptedEngine("first"), api_key="k" * 16)
    admin = client_of(make_admin(gateway))
    headers = {"host": "gateway.internal", "authorization": f"Bearer {'k' * 16}"}

    assert (await admin.get("/admin/models", headers=headers)).status_code == 200
