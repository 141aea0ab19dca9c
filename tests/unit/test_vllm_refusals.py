"""What vLLM's handlers raise or log when a caller's mistake shows itself only once a stream has begun."""

import importlib
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from gateway.asgi import Edge, Exchange
from gateway.observability.outcome import error_of, outcome_of
from tests.scripted import make_settings
from tests.wire import Wire

PATH = "/v1/responses"


def refusals() -> Any:
    return importlib.import_module("gateway.engines.vllm_refusals")


def invalid(said: str, **about: Any) -> Exception:
    made: Exception = importlib.import_module("vllm.exceptions").VLLMValidationError(said, **about)
    return made


def app_that_raises(error: Exception) -> FastAPI:
    """As vLLM's: a handler for its client errors, and a route that raises within its stream."""
    app = FastAPI()

    async def told(request: Request, error: Exception) -> Response:
        return Response(str(error), 400)

    async def events() -> AsyncIterator[bytes]:
        yield b"event: response.created\ndata: {}\n\n"
        raise error

    async def responses() -> Response:
        return StreamingResponse(events(), media_type="text/event-stream")

    client_error = importlib.import_module("vllm.exceptions").VLLMClientError
    app.add_exception_handler(client_error, told)
    app.add_api_route(PATH, responses, methods=["POST"])
    return app


async def test_a_client_error_within_a_stream_is_its_last_event(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[Exchange] = []
    error = invalid("token 5 is none of the model's", parameter="logit_bias", value=5)
    edge = Edge(
        refusals().refusing(app_that_raises(error)), seen.append, make_settings(keep_alive_s=0)
    )
    wire = Wire(PATH)

    await wire.through(edge)

    last = wire.answer.decode().partition("event: error\ndata: ")[2]
    told = json.loads(last.partition("\n\n")[0])
    assert (told["code"], told["param"]) == ("invalid_request", "logit_bias")
    assert outcome_of(seen[0]) == "client_error" and error_of(seen[0]) == "invalid_request"
    assert [each for each in caplog.records if each.name.startswith(("gateway", "vllm"))] == []


async def test_what_is_no_fault_of_the_callers_goes_on() -> None:
    wire = Wire(PATH)

    with pytest.raises(KeyError):
        await wire.through(refusals().refusing(app_that_raises(KeyError("ours"))))


def test_the_log_has_a_stack_for_the_servers_faults_only() -> None:
    refusals().quieten()
    dead = importlib.import_module("vllm.v1.engine.exceptions").EngineDeadError()

    def kept(name: str, error: Exception | None) -> bool:
        caught = (type(error), error, None) if error else None
        record = logging.LogRecord(name, logging.ERROR, "", 0, "said", (), caught)
        return bool(logging.getLogger(name).filter(record))

    for name in refusals().HANDLERS:
        assert kept(name, None) and kept(name, dead) and kept(name, KeyError("a defect"))
        assert not kept(name, invalid("the caller's"))
        assert not kept(name, ValueError("the caller's"))
