"""Schemathesis through the gateway with the real engine: no answer is a 5xx, and the engine stays well."""

import httpx
import pytest
from fastapi.openapi.utils import get_openapi
from schemathesis import GenerationMode
from starlette.routing import BaseRoute

from gateway.routes.openai import FORWARDED
from tests.fuzz import MODES, STILL_ANSWERING, fuzz, operations
from tests.malformed import CHAT, GOOD
from tests.service.server import Gateway

EXAMPLES = 8
# vLLM describes them; the others of its routes do not exist for callers.
OPENAI = sorted(path for path in FORWARDED if path.startswith(("/v1/", "/token", "/detoken")))
NATIVE = ["/generate", "/thinking", "/batch_generate"]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize("path", NATIVE)
def test_no_body_makes_a_native_route_fail(
    gateway: Gateway, http: httpx.Client, path: str, mode: GenerationMode
) -> None:
    document = http.get("/openapi.json").json()
    document["paths"] = {
        path: {"post": document["paths"][path]["post"]}
    }  # a GET has nothing to spoil

    for operation in operations(document):
        told = fuzz(operation, mode, gateway.url, EXAMPLES)
        assert told.total() > told[STILL_ANSWERING]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize("path", OPENAI)
def test_no_body_makes_an_openai_route_fail(
    gateway: Gateway, vllm_routes: list[BaseRoute], path: str, mode: GenerationMode
) -> None:
    document = get_openapi(title="vLLM", version="0", routes=vllm_routes)
    document["paths"] = {path: document["paths"][path]}

    for operation in operations(document):
        told = fuzz(operation, mode, gateway.url, EXAMPLES)
        assert told.total() > told[STILL_ANSWERING]


def test_the_engine_is_well_after_all_that(http: httpx.Client) -> None:
    response = http.post(CHAT, json=GOOD[CHAT])

    assert response.status_code == 200, response.text
