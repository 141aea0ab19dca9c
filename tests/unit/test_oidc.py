"""Tokens of an issuer: what it signed for us, for a tenant we know, opens the API until it expires."""

import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm
from pydantic import ValidationError

from tests.scripted import ScriptedEngine, client_of, make_admin, make_gateway, make_settings
from tests.tenants import bearer, write_keys

ISSUER, AUDIENCE = "https://issuer.test", "gateway"


class Issuer:
    """An issuer's key, and the server that publishes it."""

    def __init__(self) -> None:
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.asked = 0
        self.says: bytes | None = None  # in the place of its keys
        issuer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked += 1
                self.send_response(200)
                self.end_headers()
                keys = json.dumps({"keys": [issuer.public()]}).encode()
                self.wfile.write(keys if issuer.says is None else issuer.says)

            def log_message(self, format: str, *args: Any) -> None:
                """Silent."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/jwks.json"

    def public(self) -> dict[str, Any]:
        published: dict[str, Any] = RSAAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
        return {**published, "kid": "one", "use": "sig"}

    def close(self) -> None:
        if self.thread.is_alive():
            self.server.shutdown()
            self.server.server_close()
            self.thread.join()

    def token(self, kid: str = "one", **changes: Any) -> str:
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "exp": int(time.time()) + 600,
            "sub": "somebody",
            "tenant": "a",
            **changes,
        }
        given = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(given, self.key, "RS256", headers={"kid": kid})


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    found = Issuer()
    yield found
    found.close()


class World:
    """A gateway that trusts the issuer."""

    def __init__(self, folder: Path, issuer: Issuer) -> None:
        self.file = folder / "keys.yaml"
        write_keys(self.file, a={"rpm": 100}, b={})
        self.gateway = make_gateway(
            ScriptedEngine(),
            keys_file=self.file,
            jwt_issuer=ISSUER,
            jwt_audience=AUDIENCE,
            jwt_jwks_url=issuer.url,
        )

    async def status(self, token: str) -> int:
        answer = await self.gateway.client.get("/v1/models", headers=bearer(token))
        assert token not in answer.text
        return answer.status_code


@pytest.fixture
def world(tmp_path: Path, issuer: Issuer) -> World:
    return World(tmp_path, issuer)


async def test_a_good_token_has_its_tenants_limits(world: World, issuer: Issuer) -> None:
    answer = await world.gateway.client.post(
        "/generate", json={"prompt": "x"}, headers=bearer(issuer.token())
    )

    assert answer.status_code == 200
    assert answer.headers["x-ratelimit-limit-requests"] == "100"


async def test_a_token_never_opens_the_admin_listener(world: World, issuer: Issuer) -> None:
    admin = client_of(make_admin(world.gateway))

    answer = await admin.get("/metrics", headers=bearer(issuer.token(admin=True, role="admin")))

    assert answer.status_code == 403


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://other.test"},
        {"aud": "other"},
        {"aud": None},
        {"iss": None},
        {"exp": None},
        {"exp": 1},
        {"nbf": 2**33},
        {"tenant": "nobody"},
        {"tenant": None},
        {"tenant": ["a"]},
        {"kid": "two"},
    ],
    ids=str,
)
async def test_a_token_that_is_not_for_us_is_refused(
    world: World, issuer: Issuer, changes: dict[str, Any]
) -> None:
    assert await world.status(issuer.token(**changes)) == 401


async def test_a_forged_token_is_refused(world: World, issuer: Issuer) -> None:
    head, body, signature = issuer.token().split(".")
    other = Issuer()
    other.close()
    claims = jwt.decode(issuer.token(), options={"verify_signature": False})
    hmac = jwt.encode(claims, b"0" * 64, "HS256", headers={"kid": "one"})
    unsigned = jwt.encode(claims, "", "none", headers={"kid": "one"})

    for token in (
        other.token(),
        f"{head}.{body}.{signature[:-8]}AAAAAAAA",
        f"{head}.{body}.",
        f"{head}.{head}.{signature}",
        hmac,
        unsigned,
        f"eyJ{'a' * 20_000}.b.c",
    ):
        assert await world.status(token) == 401


async def test_two_tokens_that_begin_alike_are_two_tokens(world: World, issuer: Issuer) -> None:
    """CVE-2026-35030: a cache by a token's beginning gave one caller another's account."""
    first, second = issuer.token(tenant="a"), issuer.token(tenant="b")
    assert first[:40] == second[:40]

    seen = []
    for token in (first, second, first):
        answer = await world.gateway.client.post(
            "/generate", json={"prompt": "x"}, headers=bearer(token)
        )
        seen.append("x-ratelimit-limit-requests" in answer.headers)

    assert seen == [True, False, True]


async def test_the_issuer_is_not_asked_for_every_token(world: World, issuer: Issuer) -> None:
    before = issuer.asked

    for number in range(20):
        assert await world.status(issuer.token(sub=f"s{number}")) == 200
        assert await world.status(issuer.token(kid=f"made-up-{number}")) == 401

    assert issuer.asked - before <= 2


async def test_a_tenant_taken_out_of_the_file_has_no_tokens_any_more(
    world: World, issuer: Issuer
) -> None:
    token = issuer.token()
    assert await world.status(token) == 200

    write_keys(world.file, b={})
    await world.gateway.tenancy.keyring.poll()

    assert await world.status(token) == 401


async def test_an_issuer_that_is_away_is_our_fault_and_known_tokens_work_on(
    tmp_path: Path,
) -> None:
    issuer = Issuer()
    world = World(tmp_path, issuer)
    known = issuer.token()
    assert await world.status(known) == 200
    issuer.close()
    fresh = World(tmp_path, issuer)

    assert await fresh.status(issuer.token()) == 503
    assert await fresh.status(issuer.token()) == 503
    assert await world.status(known) == 200


@pytest.mark.parametrize(
    "says",
    [
        *(b"<html>Moved.</html>", b"", b"\xff\xfe", b"[]", b"null", b"{}"),
        *(b'{"keys": []}', b'{"keys": 5}', b'{"keys": [{"kty": "none"}]}'),
        b'{"keys": [{"kty": "oct", "k": "AAAA", "kid": "one", "use": "enc"}]}',
    ],
    ids=repr,
)
async def test_an_issuer_that_says_no_keys_is_our_fault(tmp_path: Path, says: bytes) -> None:
    issuer = Issuer()
    issuer.says = says
    world = World(tmp_path, issuer)

    assert await world.status(issuer.token()) == 503
    assert await world.status("eyJub25lfQ.e30.") == 401  # whatever the issuer says
    issuer.close()


@pytest.mark.parametrize(
    "values",
    [
        {"jwt_jwks_url": "http://issuer.test/jwks"},
        {"jwt_jwks_url": "file:///etc/passwd"},
        {"jwt_jwks_url": None},
        {"jwt_audience": None},
        {"jwt_algorithms": "HS256"},
        {"jwt_algorithms": "RS256,none"},
    ],
    ids=str,
)
def test_a_setting_that_would_trust_too_much_is_refused(values: dict[str, Any]) -> None:
    good = {
        "jwt_issuer": ISSUER,
        "jwt_audience": AUDIENCE,
        "jwt_jwks_url": "https://issuer.test/jwks",
    }
    make_settings(**good)

    with pytest.raises(ValidationError):
        make_settings(**{**good, **values})
