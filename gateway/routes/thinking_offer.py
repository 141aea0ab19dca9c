"""`GET /thinking`: what may be asked of `POST /thinking` here: models, depths, ceiling, limits.

Pages and clients need not guess what the operator allows, nor be told by hand.
"""

from collections.abc import Iterator
from typing import Any, get_args

from fastapi import APIRouter, Request

from gateway.engines.fleet import Fleet
from gateway.policy.tenant import Tenant, tenant_of
from gateway.routes.thinking import ThinkRequest
from gateway.settings import Settings
from gateway.thinking.budget import DEPTHS
from gateway.thinking.effort import MEDIUM

router = APIRouter(tags=["native"])


@router.get("/thinking")
async def thinking_offer(request: Request) -> dict[str, Any]:
    """The caller's models, the depths and their caps, the ceiling for the caller, and the limits."""
    settings: Settings = request.app.state.settings
    tenant = tenant_of(request.scope["gateway.exchange"].notes)
    frame = settings.thinking_frame(MEDIUM, tenant.limits.max_thinking)
    depths = [
        {"depth": level, "name": depth.name, "max_tokens": depth.cap, "share": depth.share}
        for level, depth in enumerate(DEPTHS)
    ]
    return {
        "object": "thinking.offer",
        "models": list(_models(request.app.state.fleet, tenant)),
        "depths": depths,
        "default_depth": frame.default,
        "ceiling": frame.ceiling,
        "max_samples": settings.max_n,
        "max_output_tokens": settings.max_output_tokens,
        "confidence": list(get_args(ThinkRequest.model_fields["confidence"].annotation)),
        "early_exit": list(get_args(ThinkRequest.model_fields["early_exit"].annotation)),
    }


def _models(fleet: Fleet, tenant: Tenant) -> Iterator[dict[str, Any]]:
    """The default model first; `max_model_len` is null before its first engine is up."""
    for card in fleet.cards(tenant):
        profile = fleet.find(card["id"], tenant).profile
        yield {
            "id": card["id"],
            "max_tokens": profile.thinking_max_tokens,
            "max_model_len": card.get("max_model_len"),
        }
