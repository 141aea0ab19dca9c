"""`GET /stats`: counts, rates and latencies since the start, as JSON."""

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

router = APIRouter(tags=["health"])


@router.get("/stats")
async def stats(request: Request) -> JSONResponse:
    """Requests by route and outcome, latency quantiles, tokens, what runs and waits."""
    state = request.app.state
    return JSONResponse(state.figures.stats(state.fleet))
