"""`POST /thinking`: think for a bounded time, then answer.

A first version: reasoning and answer apart, budget by depth or exact. Steps, checks, confidence, samples
and early exit are not here yet; asking for them is a 400, not silence.
"""

import time
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from pydantic import AliasChoices, Field, field_validator, model_validator
from starlette.responses import Response

from gateway.asgi import Exchange
from gateway.engines.fleet import Fleet
from gateway.policy import bounds
from gateway.routes.generate import Messages, Sampling, room, usage
from gateway.routes.streams import Clock, Event, Events, answer
from gateway.settings import Settings
from gateway.thinking.budget import DEPTHS, NAMES
from gateway.thinking.run import Outcome, ThinkingRun
from gateway.thinking.run import Request as ThinkingRequest

router = APIRouter(tags=["native"])

MEDIUM = 3


class ThinkRequest(Sampling):
    """Exactly one of `question` and `messages`. Unknown fields are refused."""

    model: str | None = Field(default=None, description="Default: the first served model.")
    question: str | None = Field(default=None, min_length=1)
    messages: Messages | None = None
    thinking_depth: int = Field(
        default=MEDIUM,
        ge=0,
        lt=len(DEPTHS),
        validation_alias=AliasChoices("thinking_depth", "reasoning_effort"),
        description="0-5, or none, minimal, low, medium, high, xhigh, max.",
    )
    thinking_budget: int | None = Field(
        default=None,
        ge=0,
        validation_alias=AliasChoices("thinking_budget", "thinking_token_budget"),
        description="Most thinking tokens, exactly; beats the depth.",
    )
    max_tokens: int | None = Field(
        default=None, ge=1, description="Thinking and answer together; default: the profile's."
    )
    include_reasoning: bool = Field(default=True, description="false only hides it.")
    response_format: dict[str, Any] | None = Field(default=None, description="Of the answer.")
    stream: bool = False

    @field_validator("thinking_depth", mode="before")
    @classmethod
    def depth_by_name(cls, depth: Any) -> Any:
        if isinstance(depth, str) and depth not in NAMES:
            raise ValueError(f"one of 0-5 or {', '.join(NAMES)}")
        return NAMES[depth] if isinstance(depth, str) else depth

    @model_validator(mode="after")
    def one_input(self) -> "ThinkRequest":
        if (self.question is None) == (self.messages is None):
            raise ValueError("give exactly one of 'question' and 'messages'")
        return self

    def conversation(self) -> list[dict[str, Any]]:
        return self.messages or [{"role": "user", "content": self.question}]


@router.post("/thinking")
async def thinking(body: ThinkRequest, request: Request) -> Response:
    """Think, then answer. `stream: true` sends `thinking.*` events, the last with this body."""
    state = request.app.state
    exchange: Exchange = request.scope["gateway.exchange"]
    events = thinking_events(state.fleet, state.settings, body, exchange.request_id)
    return await answer(request, events, body.stream)


async def thinking_events(
    fleet: Fleet, settings: Settings, body: ThinkRequest, request_id: str
) -> Events:
    """`thinking.created`, reasoning, answer, then `thinking.completed` with the whole body."""
    bounds.check(body.model_dump(), settings)
    clock = Clock()
    head: dict[str, Any] = {
        "id": f"think-{request_id}",
        "object": "thinking.response",
        "created": int(time.time()),
        "model": fleet.find(body.model).name,
    }
    with fleet.slot(body.model).use() as engine:
        prompt = await engine.render_chat(body.conversation())
        wanted = body.max_tokens or fleet.find(body.model).profile.thinking_max_tokens
        run = ThinkingRun(
            engine,
            ThinkingRequest(
                request_id=head["id"],
                prompt=prompt,
                level=body.thinking_depth,
                budget=body.thinking_budget,
                max_tokens=room(engine, len(prompt), wanted, body.max_tokens is not None),
                sampling=body.sampling(),
                stop=tuple(body.stop),
                response_format=body.response_format,
                priority=body.priority,
            ),
        )
        created: Event | None = Event("thinking.created", dict(head))
        async with aclosing(_pieces(run, body.include_reasoning)) as pieces:
            async for event in pieces:
                if created is not None:  # not before the engine has taken it: a refusal is no 200
                    yield created
                    created = None
                yield event
    whole = head | _body(run.outcome, body.include_reasoning, clock.seconds())
    yield Event("thinking.completed", {"response": whole})


async def _pieces(run: ThinkingRun, show: bool) -> Events:
    async with aclosing(run.pieces()) as pieces:
        async for piece in pieces:
            if piece.phase == "answer":
                yield Event("thinking.answer.delta", {"delta": piece.text})
            elif piece.phase == "reasoning_done":
                yield Event("thinking.reasoning.done", _reasoning(run.outcome))
            elif show:
                yield Event("thinking.reasoning.delta", {"delta": piece.text})
    yield Event("thinking.answer.done", {"answer_source": run.outcome.answer_source})


def _reasoning(out: Outcome) -> dict[str, Any]:
    return {
        "end_reason": out.end_reason,
        "forced": out.forced,
        "tokens": len(out.reasoning_ids),
    }


def _body(out: Outcome, show: bool, seconds: float) -> dict[str, Any]:
    completion = len(out.reasoning_ids) + out.forced_tokens + out.answer_tokens
    counted = usage(out.prompt_tokens, completion, out.cached_tokens)
    counted["completion_tokens_details"] = {
        "reasoning_tokens": len(out.reasoning_ids),
        "answer_tokens": out.answer_tokens,
        "forced_tokens": out.forced_tokens,
    }
    return {
        "status": "incomplete" if out.finish_reason == "length" else "completed",
        "answer": out.answer,
        "answer_source": out.answer_source,
        "reasoning": ({"text": out.reasoning} if show else {}) | _reasoning(out),
        "budget": {
            "requested": out.budget.requested,
            "applied": out.budget.applied,
            "clamped": out.budget.clamped,
            "answer_reserve": out.budget.answer_reserve,
        },
        "finish_reason": out.finish_reason,
        "usage": counted,
        "generation_time_s": round(seconds, 4),
        "tokens_per_second": round(completion / seconds, 2),
    }
