"""The admin listener's routes. It binds to loopback unless told otherwise.

A body is asked for as JSON on every call that changes something, also an empty one: a web page in the
operator's browser can post anything else to this address without asking.
"""

import asyncio
from typing import Any

from fastapi import APIRouter, Depends, Request
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict
from starlette.responses import JSONResponse, Response

from gateway.engines import adapters
from gateway.engines.fleet import Fleet
from gateway.engines.operation import Way
from gateway.engines.served import ServedModel
from gateway.engines.switcher import Switcher
from gateway.errors import UnsupportedMediaType
from gateway.observability.exposition import exposition
from gateway.reload import Reloader
from gateway.settings.observability import LogLevel


def as_json(request: Request) -> None:
    """Raises UnsupportedMediaType for a change that is not declared as JSON."""
    given = request.headers.get("content-type", "none")
    if request.method != "GET" and given.partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType(f"send 'content-type: application/json', not {given!r}")


router = APIRouter(tags=["admin"], dependencies=[Depends(as_json)])


class SwitchRequest(BaseModel):
    """`profile` is one of the model's `may_switch_to` in `GET /admin/models`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    profile: str
    way: Way = "auto"


class AdapterRequest(BaseModel):
    """`adapter` is a subfolder of `GATEWAY_ADAPTERS_DIR`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    adapter: str


class LevelRequest(BaseModel):
    """`level` is one of GATEWAY_LOG_LEVEL's."""

    model_config = ConfigDict(extra="forbid", strict=True)

    level: LogLevel


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """The gateway's and each engine's metrics, in Prometheus' text format."""
    state = request.app.state
    await state.figures.machine.look()
    return Response(exposition(state.fleet, state.figures), media_type=CONTENT_TYPE_LATEST)


@router.get("/admin/models")
async def models(request: Request) -> dict[str, Any]:
    """What serves each model now, and what it may be switched to."""
    fleet: Fleet = request.app.state.fleet
    switcher: Switcher = request.app.state.switcher
    rows = [_row(model, switcher) for model in fleet.models.values()]
    return {"object": "list", "data": rows}


def _row(model: ServedModel, switcher: Switcher) -> dict[str, Any]:
    return {
        "name": model.name,
        "state": model.state.value,
        "profile": model.profile.name,
        "serving": [
            {**slot.labels(), "in_flight": slot.in_flight, "retiring": slot is not model.slot}
            for slot in model.slots()
        ],
        "waiting": model.waiting,
        "adapters": list(model.adapters),
        "may_switch_to": switcher.catalogue.choices(model.name),
    }


@router.post("/admin/models/{name:path}/switch", status_code=202)
async def switch(name: str, body: SwitchRequest, request: Request) -> JSONResponse:
    """Begin a switch; the operation in the answer tells how it goes."""
    switcher: Switcher = request.app.state.switcher
    operation = switcher.start(name, body.profile, body.way)
    headers = {"location": f"/admin/operations/{operation.id}"}
    return JSONResponse(operation.body(), 202, headers)


@router.get("/admin/operations")
async def operations(request: Request) -> dict[str, Any]:
    """All switches that run, and the last hundred, the newest first."""
    switcher: Switcher = request.app.state.switcher
    newest = reversed(switcher.operations.values())
    return {"object": "list", "data": [operation.body() for operation in newest]}


@router.get("/admin/operations/{operation_id}")
async def operation(operation_id: str, request: Request) -> dict[str, Any]:
    """Phase, progress and outcome of a switch."""
    switcher: Switcher = request.app.state.switcher
    return switcher.get(operation_id).body()


@router.post("/admin/operations/{operation_id}/cancel")
async def cancel(operation_id: str, request: Request) -> dict[str, Any]:
    """Call a switch off; the answer comes when everything is as it was."""
    switcher: Switcher = request.app.state.switcher
    return (await switcher.cancel(operation_id)).body()


@router.post("/admin/models/{name:path}/adapters")
async def load_adapter(name: str, body: AdapterRequest, request: Request) -> dict[str, Any]:
    """Load a LoRA adapter; its name is then a model of `/v1/models`."""
    state = request.app.state
    model = state.fleet.find(name)
    await adapters.load_adapter(state.fleet, state.settings, model, body.adapter)
    return {"model": model.name, "adapters": list(model.adapters)}


@router.get("/admin/models/{name:path}/adapters")
async def list_adapters(name: str, request: Request) -> dict[str, Any]:
    """Which are loaded, and which may be."""
    state = request.app.state
    model = state.fleet.find(name)
    there = await asyncio.to_thread(adapters.available, state.settings)
    return {"model": model.name, "adapters": list(model.adapters), "available": there}


@router.delete("/admin/models/{name:path}/adapters/{adapter}")
async def unload_adapter(name: str, adapter: str, request: Request) -> dict[str, Any]:
    """Unload a LoRA adapter; requests that use it finish."""
    model = request.app.state.fleet.find(name)
    await adapters.unload_adapter(model, adapter)
    return {"model": model.name, "adapters": list(model.adapters)}


@router.post("/admin/reload")
async def reload(request: Request) -> dict[str, Any]:
    """Read settings and profiles anew, as SIGHUP does; says what changed and what was refused."""
    reloader: Reloader = request.app.state.reloader
    return await reloader.reload()


@router.put("/admin/log_level")
async def log_level(body: LevelRequest, request: Request) -> dict[str, str]:
    """Log more or less from now on. A reload puts back what the settings say."""
    reloader: Reloader = request.app.state.reloader
    reloader.log_level(body.level)
    return {"level": body.level}
