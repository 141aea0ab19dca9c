"""The salt of the prefix cache: one for each tenant, whatever a caller puts into `cache_salt`."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gateway.engines.types import Job
from gateway.engines.vllm_salt import salt
from gateway.policy.salt import SALTED_FOR, salted
from tests.scripted import Script
from tests.tenants import Tenants

NAMES = ("a", "b", 'a", "x', "")
OWN = (None, "x", "", '", null]', "null")


def of(tenant: str | None, own: str | None) -> str | None:
    token = SALTED_FOR.set(tenant)
    try:
        return salted(own)
    finally:
        SALTED_FOR.reset(token)


def test_no_two_tenants_have_a_salt_in_common_whatever_they_add() -> None:
    salts = [of(name, own) for name, own in itertools.product(NAMES, OWN)]

    assert len(set(salts)) == len(NAMES) * len(OWN)


def test_a_salt_is_the_same_at_each_request_and_tells_nothing() -> None:
    assert of("search-team", "x") == of("search-team", "x")
    assert "search" not in str(of("search-team", None))


def test_without_keys_a_callers_own_salt_is_all_there_is() -> None:
    assert of(None, None) is None
    assert of(None, "x") == "x"


class Processor:
    """Where vLLM gives each request its id inside."""

    @staticmethod
    def assign_request_id(request: SimpleNamespace) -> None:
        request.request_id = "inside"


def test_every_request_of_an_engine_gets_its_tenants_salt() -> None:
    client: Any = SimpleNamespace(input_processor=Processor())
    salt(client)
    token = SALTED_FOR.set("a")

    request = SimpleNamespace(request_id="outside", cache_salt="own")
    client.input_processor.assign_request_id(request)

    SALTED_FOR.reset(token)
    assert (request.request_id, request.cache_salt) == ("inside", of("a", "own"))


async def test_the_salt_is_that_of_the_key(tmp_path: Path) -> None:
    tenants = Tenants(tmp_path, {"a": {}, "b": {}})
    seen: list[str | None] = []

    def script(_: Job) -> Script:
        seen.append(SALTED_FOR.get())
        return Script()

    tenants.engine.script = script

    for name in ("a", "b", "a"):
        assert (await tenants.post(name, "/generate", {"prompt": "Hi"})).status_code == 200

    assert seen == ["a", "b", "a"]
