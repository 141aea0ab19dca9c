"""`GET /health`, `/health/live`, `/health/ready`: what probes and people ask. The names are a contract.

Live fails only where a restart of the process helps: an engine that will not start again. Ready fails
whenever a request would: loading, dead, hung, draining.
"""

import resource
import time
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse

from engine_config import hardware
from gateway import __version__
from gateway.engines.fleet import Fleet
from gateway.engines.served import ServedModel
from gateway.engines.slot import State
from gateway.observability.figures import Figures

router = APIRouter(tags=["health"])

BAD_TO_GOOD = (State.DEAD, State.HUNG, State.LOADING, State.SWITCHING, State.READY)


class Retiring(BaseModel):
    """An engine that was replaced; its last requests still run."""

    profile: str
    format: str
    slot: str
    in_flight: int


class ModelHealth(BaseModel):
    """Fields from `format` on are null while no engine is loaded."""

    name: str
    profile: str
    state: State
    restarts: int = Field(description="Engines built in the place of dead ones.")
    model_loaded: bool
    waiting: int = Field(description="Requests that wait while the engine is replaced.")
    retiring: list[Retiring]
    adapters: list[str]
    format: str | None = None
    slot: str | None = Field(default=None, description="Number of the engine since the start.")
    fingerprint: str | None = None
    calibrated: bool | None = Field(default=None, description="Confidence is a probability.")
    device: str | None = Field(default=None, description="cpu, cuda, ...")
    gpu_available: bool | None = None
    max_model_len: int | None = Field(default=None, description="Prompt and output, tokens.")
    in_flight: int | None = None
    heartbeat_age_s: float | None = Field(
        default=None, description="Since the engine's last sign of progress; 0 when it is idle."
    )


class Memory(BaseModel):
    """Of the container where it has a limit, else of the machine."""

    total_bytes: int
    available_bytes: int
    gateway_peak_bytes: int = Field(description="Of the process that answers this.")


class GpuHealth(BaseModel):
    index: int
    memory_used_bytes: int
    memory_total_bytes: int
    temperature_celsius: float | None
    utilization_ratio: float | None


class Health(BaseModel):
    status: str = Field(
        description="ready, switching, loading, hung, dead, draining: the worst of all models. "
        "With ready and switching (requests wait) the HTTP status is 200, else 503."
    )
    version: str
    uptime_s: float
    models: list[ModelHealth]
    in_flight: int
    memory: Memory
    gpus: list[GpuHealth] = Field(description="Those that engines may use.")


class Ready(BaseModel):
    status: str


class Alive(BaseModel):
    status: str = Field(description="alive or stuck.")
    stuck: list[str] = Field(description="Models whose engine failed to start again and again.")


def told(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """Both statuses have the same body."""
    return {200: {"model": model}, 503: {"model": model}}


@router.get("/health", responses=told(Health))
async def health(request: Request) -> JSONResponse:
    """Everything about the state; 503 when not ready."""
    fleet: Fleet = request.app.state.fleet
    figures: Figures = request.app.state.figures
    gpus = (await figures.machine.look()).gpus
    body = Health(
        status=_status(fleet),
        version=__version__,
        uptime_s=round(time.monotonic() - figures.started, 3),
        models=[_model(model) for model in fleet.models.values()],
        in_flight=fleet.in_flight(),
        memory=Memory(
            total_bytes=hardware.here().memory_bytes,
            available_bytes=hardware.free_bytes("cpu") or 0,
            gateway_peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        ),
        gpus=[GpuHealth.model_validate(gpu, from_attributes=True) for gpu in gpus],
    )
    return _answer(body, fleet.ready())


@router.get("/health/ready", responses=told(Ready))
async def ready(request: Request) -> JSONResponse:
    """200 when every model takes requests."""
    fleet: Fleet = request.app.state.fleet
    return _answer(Ready(status=_status(fleet)), fleet.ready())


@router.get("/health/live", responses=told(Alive))
async def live(request: Request) -> JSONResponse:
    """503 only when an engine failed to start again so often that a new process is the remedy."""
    fleet: Fleet = request.app.state.fleet
    limit = fleet.settings.rebuild_attempts
    stuck = [model.name for model in fleet.models.values() if model.failures >= limit]
    return _answer(Alive(status="stuck" if stuck else "alive", stuck=stuck), not stuck)


def _answer(body: BaseModel, good: bool) -> JSONResponse:
    return JSONResponse(body.model_dump(mode="json"), 200 if good else 503)


def _status(fleet: Fleet) -> str:
    if fleet.draining:
        return "draining"
    states = {model.state for model in fleet.models.values()}
    return next(state.value for state in BAD_TO_GOOD if state in states)


def _model(model: ServedModel) -> ModelHealth:
    slot = model.slot
    body = ModelHealth(
        name=model.name,
        profile=model.profile.name,
        state=model.state,
        restarts=model.restarts,
        model_loaded=slot is not None,
        waiting=model.waiting,
        retiring=[Retiring(**each.labels(), in_flight=each.in_flight) for each in model.retiring],
        adapters=list(model.adapters),
    )
    if slot is None:
        return body
    engine, facts = slot.engine, slot.facts
    loaded = {
        "format": slot.format,
        "slot": str(slot.number),
        "fingerprint": facts.fingerprint,
        "calibrated": facts.calibration is not None,
        "device": engine.device,
        "gpu_available": engine.device not in ("cpu", ""),
        "max_model_len": engine.limits.max_model_len,
        "in_flight": slot.in_flight,
        "heartbeat_age_s": round(engine.silent_s(), 3),
    }
    return body.model_copy(update=loaded)
