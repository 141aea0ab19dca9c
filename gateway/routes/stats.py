"""`GET /stats`: counts, rates and latencies since the start, as JSON. The names are a contract."""

from fastapi import APIRouter, Request

from gateway.observability.stats import Stats, stats_of

router = APIRouter(tags=["health"])


@router.get("/stats")
async def stats(request: Request) -> Stats:
    """Requests by route and outcome, latency quantiles, tokens, what runs and waits."""
    state = request.app.state
    return stats_of(state.figures, state.fleet, state.live)
