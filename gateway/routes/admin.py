"""The admin listener's routes. It binds to loopback unless told otherwise."""

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from gateway.observability.figures import exposition

router = APIRouter(tags=["admin"])


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """The gateway's and each engine's metrics, in Prometheus' text format."""
    state = request.app.state
    return Response(exposition(state.fleet, state.figures), media_type=CONTENT_TYPE_LATEST)
