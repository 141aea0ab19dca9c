"""The allowlist in front of the engines' own apps, and which engine a request goes to."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from gateway.engines.slot import State
from gateway.routes.openai import FORWARDED, PING
from tests.scripted import Gateway, ScriptedEngine, make_gateway
from tests.unit.test_fleet import until
from tests.wire import Wire, wire

BODY = {"model": "first", "messages": [{"role": "user", "content": "hi"}]}
POSTED = sorted(path for path, methods in FORWARDED.items() if "POST" in methods and path != PING)


@pytest.fixture
def gateway() -> Gateway:
    return make_gateway(ScriptedEngine("first"), ScriptedEngine("second"), max_n=4)


def received(gateway: Gateway) -> list[int]:
    return [len(engine.bodies) for engine in gateway.engines]


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize("path", POSTED)
@pytest.mark.parametrize(("model", "expected"), [("first", [1, 0]), ("second", [0, 1])])
async def test_the_model_of_the_body_decides_which_engine_answers(
    gateway: Gateway, path: str, model: str, expected: list[int]
) -> None:
    response = await gateway.client.post(path, json=BODY | {"model": model})

    assert response.json() == {"engine": model, "path": path}
    assert received(gateway) == expected


@pytest.mark.parametrize("body", [{}, {"model": None}], ids=str)
async def test_without_a_model_the_first_one_answers(
    gateway: Gateway, body: dict[str, Any]
) -> None:
    await gateway.client.post("/v1/completions", json=body | {"prompt": "x"})

    assert received(gateway) == [1, 0]


@pytest.mark.parametrize("model", ["third", "", "First", 5, ["first"], {}], ids=str)
async def test_an_unknown_model_is_a_404_that_lists_the_served_ones(
    gateway: Gateway, model: object
) -> None:
    response = await gateway.client.post("/v1/chat/completions", json=BODY | {"model": model})

    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (
        404,
        "model_not_found",
        "model",
    )
    assert "first, second" in error["message"]
    assert received(gateway) == [0, 0]


async def test_the_body_reaches_the_engine_byte_for_byte(gateway: Gateway) -> None:
    body = '{ "model":"second",\n "prompt": "\\u4f60好", "x": 1.0, "x": 2 }'.encode()

    await gateway.client.post("/v1/completions", content=body, headers=JSON)

    assert gateway.engines[1].bodies == [body]


async def test_what_exceeds_a_limit_reaches_no_engine(gateway: Gateway) -> None:
    response = await gateway.client.post("/v1/chat/completions", json=BODY | {"n": 5})

    assert (response.status_code, response.json()["error"]["param"]) == (400, "n")
    assert received(gateway) == [0, 0]


@pytest.mark.parametrize("path", POSTED)
async def test_a_broken_body_reaches_no_engine(gateway: Gateway, path: str) -> None:
    statuses = [
        (await gateway.client.post(path, content=body, headers=JSON)).status_code
        for body in (b"", b"{", b"[]")
    ]

    assert statuses == [400, 400, 400]
    assert received(gateway) == [0, 0]


@pytest.mark.parametrize(
    "path",
    [
        "/v1",
        "/v1/",
        "/metrics",
        "/invocations",
        "/pause",
        "/inference/v1/generate",
        "/scale_elastic_ep",
        "/collective_rpc",
        "/v1/load_lora_adapter",
        "/v1/chat/completions/render",
        "/v1/chat/completions/",
        "/V1/chat/completions",
        "//v1/chat/completions",
        "/v1/embeddings",
        "/generate/",
        "/server_info",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_what_is_not_on_the_list_does_not_exist(
    gateway: Gateway, path: str, method: str
) -> None:
    response = await gateway.client.request(method, f"http://localhost{path}", json=BODY)

    assert response.status_code == 404
    assert response.headers["x-request-id"] in response.text
    assert received(gateway) == [0, 0]


@pytest.mark.parametrize(
    ("path", "method", "allowed"),
    [
        ("/v1/chat/completions", "GET", "POST"),
        ("/v1/messages", "PUT", "POST"),
        ("/version", "POST", "GET"),
        ("/v1/models", "POST", "GET"),
        ("/v1/models/first", "DELETE", "GET"),
        ("/generate", "GET", "POST"),
        ("/health/live", "POST", "GET"),
        ("/stats", "DELETE", "GET"),
    ],
)
async def test_a_wrong_method_is_a_405_that_names_the_right_one(
    gateway: Gateway, path: str, method: str, allowed: str
) -> None:
    response = await gateway.client.request(method, path)

    assert (response.status_code, response.headers["allow"]) == (405, allowed)
    assert received(gateway) == [0, 0]


async def test_all_models_are_listed_and_each_can_be_asked_for(gateway: Gateway) -> None:
    listed = (await gateway.client.get("/v1/models")).json()
    second = (await gateway.client.get("/v1/models/second")).json()
    third = await gateway.client.get("/v1/models/third")

    assert [card["id"] for card in listed["data"]] == ["first", "second"]
    assert second["id"] == "second"
    assert (third.status_code, third.json()["error"]["code"]) == (404, "model_not_found")


def shape(response: httpx.Response) -> list[str]:
    return sorted(response.json())


async def test_the_messages_route_speaks_anthropics_error_language(gateway: Gateway) -> None:
    ours = await gateway.client.post("/v1/messages", json=BODY | {"model": "third"})
    theirs = await gateway.client.post("/v1/messages", json=BODY, headers={"x-scripted": "error"})

    assert shape(ours) == shape(theirs) == ["error", "request_id", "type"]
    assert ours.json()["error"]["type"] == "not_found_error"
    assert theirs.json()["request_id"] == theirs.headers["x-request-id"]


async def test_an_engines_error_keeps_its_status_and_gets_the_request_id(
    gateway: Gateway,
) -> None:
    response = await gateway.client.post(
        "/v1/completions", json=BODY, headers={"x-scripted": "error", "x-request-id": "mine"}
    )

    assert response.status_code == 422
    assert response.json()["error"]["request_id"] == "mine"


async def test_a_stream_of_the_engine_comes_out_as_it_is(gateway: Gateway) -> None:
    response = await gateway.client.post(
        "/v1/completions", json=BODY, headers={"x-scripted": "stream"}
    )

    assert response.text == "data: 0\n\ndata: 1\n\ndata: 2\n\n"


async def test_a_crash_of_the_engines_app_is_a_500_and_frees_the_slot(gateway: Gateway) -> None:
    response = await gateway.client.post(
        "/v1/completions", json=BODY, headers={"x-scripted": "boom"}
    )

    assert response.status_code == 500
    assert "secret" not in response.text
    assert gateway.fleet.in_flight() == 0


CLOSED = [State.LOADING, State.DEAD, State.HUNG, "draining", "just died"]


def close(gateway: Gateway, how: State | str) -> None:
    if isinstance(how, State):
        gateway.model.state = how
        gateway.model.slot = None if how is State.LOADING else gateway.model.slot
    elif how == "draining":
        gateway.fleet.draining = True
    else:
        gateway.engines[0].is_dead = True


@pytest.mark.parametrize("how", CLOSED, ids=str)
@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/messages", "/tokenize", "/generate", "/thinking"]
)
async def test_a_model_that_cannot_answer_now_is_a_503_with_retry_after(
    gateway: Gateway, how: State | str, path: str
) -> None:
    close(gateway, how)
    native = {"/generate": {"prompt": "x"}, "/thinking": {"question": "x"}}

    response = await gateway.client.post(path, json=native.get(path, BODY))

    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    assert json.dumps("engine_unavailable") in response.text or path == "/v1/messages"


@pytest.mark.parametrize("how", CLOSED, ids=str)
async def test_a_model_stays_listed_while_its_engine_is_away(
    gateway: Gateway, how: State | str
) -> None:
    close(gateway, how)

    listed = (await gateway.client.get("/v1/models")).json()
    first = (await gateway.client.get("/v1/models/first")).json()

    assert [card["id"] for card in listed["data"]] == ["first", "second"]
    assert first == listed["data"][0]


@pytest.mark.parametrize("how", [State.LOADING, State.DEAD, State.HUNG, "just died"], ids=str)
async def test_one_model_that_cannot_answer_does_not_close_the_others(
    gateway: Gateway, how: State | str
) -> None:
    close(gateway, how)

    response = await gateway.client.post("/v1/completions", json=BODY | {"model": "second"})

    assert response.status_code == 200


@pytest.mark.parametrize("how", [State.LOADING, State.DEAD, State.HUNG, "draining"], ids=str)
async def test_ready_fails_with_the_reason_and_live_does_not(
    gateway: Gateway, how: State | str
) -> None:
    close(gateway, how)

    ready = await gateway.client.get("/health/ready")
    whole = await gateway.client.get("/health")
    live = await gateway.client.get("/health/live")

    assert [ready.status_code, whole.status_code, live.status_code] == [503, 503, 200]
    assert ready.json()["status"] == whole.json()["status"] == str(how)


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("how", [None, *CLOSED], ids=str)
async def test_ping_tells_the_state_without_an_engine(
    gateway: Gateway, how: State | str | None, method: str
) -> None:
    if how is not None:
        close(gateway, how)

    pinged = await gateway.client.request(method, PING)
    ready = await gateway.client.get("/health/ready")

    assert pinged.status_code == ready.status_code
    assert (pinged.content == b"") is (pinged.status_code == 200)
    assert received(gateway) == [0, 0]


async def test_ping_does_not_wait_for_an_engine_that_is_replaced(gateway: Gateway) -> None:
    gateway.model.state = State.SWITCHING
    gateway.model.close_gate()

    assert (await gateway.client.get(PING)).status_code == 200
    assert gateway.model.waiting == 0


async def waits(gateway: Gateway, path: str) -> tuple[Wire, "asyncio.Task[None]"]:
    """A call at the closed gate."""
    gateway.model.close_gate()
    call = wire(path, BODY)
    task = asyncio.create_task(call.through(gateway.app))
    await until(lambda: gateway.model.waiting == 1)
    return call, task


WAITING = ["/tokenize", "/v1/messages/count_tokens", "/v1/completions"]


@pytest.mark.parametrize("path", WAITING)
async def test_a_caller_who_leaves_waits_no_longer_for_an_engine(
    gateway: Gateway, path: str
) -> None:
    call, waiting = await waits(gateway, path)

    call.gone.set()
    await waiting

    assert (gateway.model.waiting, call.sent) == (0, [])


@pytest.mark.parametrize("path", WAITING)
async def test_a_body_that_waited_for_an_engine_reaches_it_whole(
    gateway: Gateway, path: str
) -> None:
    call, waiting = await waits(gateway, path)

    gateway.model.gate.set()
    await waiting

    assert (call.status, gateway.engines[0].bodies) == (200, [call.body])
