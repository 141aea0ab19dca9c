"""`GET /health`, `/health/live`, `/health/ready`: what probes and people ask.

Live fails only where a restart of the process helps: an engine that will not start again. Ready fails
whenever a request would: loading, dead, hung, draining.
"""

import resource
import time
from typing import Any

import psutil
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

from gateway import __version__
from gateway.engines.fleet import Fleet, ServedModel, State

router = APIRouter(tags=["health"])


@router.get("/health")
async def health(request: Request) -> JSONResponse:
    """Everything about the state; 503 when not ready."""
    fleet: Fleet = request.app.state.fleet
    memory = psutil.virtual_memory()
    body = {
        "status": _status(fleet),
        "version": __version__,
        "uptime_s": round(time.monotonic() - request.app.state.figures.started, 3),
        "models": [_model(model) for model in fleet.models.values()],
        "in_flight": fleet.in_flight(),
        "memory": {
            "total_bytes": memory.total,
            "available_bytes": memory.available,
            "gateway_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        },
    }
    return JSONResponse(body, 200 if fleet.ready() else 503)


@router.get("/health/ready")
async def ready(request: Request) -> JSONResponse:
    """200 when every model takes requests."""
    fleet: Fleet = request.app.state.fleet
    return JSONResponse({"status": _status(fleet)}, 200 if fleet.ready() else 503)


@router.get("/health/live")
async def live(request: Request) -> JSONResponse:
    """503 only when an engine failed to start again so often that a new process is the remedy."""
    fleet: Fleet = request.app.state.fleet
    limit = fleet.settings.rebuild_attempts
    stuck = [model.name for model in fleet.models.values() if model.failures >= limit]
    body = {"status": "stuck" if stuck else "alive", "stuck": stuck}
    return JSONResponse(body, 503 if stuck else 200)


def _status(fleet: Fleet) -> str:
    if fleet.draining:
        return "draining"
    worst = [model.state for model in fleet.models.values() if model.state is not State.READY]
    return worst[0].value if worst else "ready"


def _model(model: ServedModel) -> dict[str, Any]:
    body: dict[str, Any] = {
        "name": model.name,
        "profile": model.profile.name,
        "state": model.state.value,
        "restarts": model.restarts,
        "fingerprint": model.fingerprint,
        "calibrated": model.calibration is not None,
        "model_loaded": model.slot is not None,
    }
    if model.slot is not None:
        engine = model.slot.engine
        body |= {
            "device": engine.device,
            "gpu_available": engine.device not in ("cpu", ""),
            "max_model_len": engine.limits.max_model_len,
            "in_flight": model.slot.in_flight,
            "heartbeat_age_s": round(engine.silent_s(), 3),
        }
    return body
