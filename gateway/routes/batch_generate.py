"""`POST /batch_generate`: many `/generate` requests in one call, side by side on the engine.

Order is kept, and one bad item does not hurt the others: its place holds the problem that a call of its
own would have got.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.responses import Response

from gateway.asgi import Exchange
from gateway.engines.fleet import Fleet
from gateway.errors import (
    GatewayError,
    InternalError,
    InvalidRequest,
    from_validation,
    problem_body,
)
from gateway.policy import bounds
from gateway.policy.tenant import tenant_of
from gateway.routes.generate import Caller, GenerateRequest, canonical, generate_events
from gateway.routes.streams import Clock, Event, Events, answer, last
from gateway.settings import Settings

router = APIRouter(tags=["native"])

log = logging.getLogger(__name__)

INPUTS = ("prompt", "messages")


class BatchRequest(BaseModel):
    """`prompts`, or `requests` with a `/generate` body each; fields beside them hold for all items."""

    model_config = ConfigDict(extra="allow", strict=True)

    prompts: Annotated[list[str], Field(min_length=1)] | None = None
    requests: Annotated[list[Any], Field(min_length=1)] | None = None
    stream: bool = Field(default=False, description="Send each result as it is ready.")

    @model_validator(mode="after")
    def one_list(self) -> "BatchRequest":
        if (self.prompts is None) == (self.requests is None):
            raise ValueError("give exactly one of 'prompts' and 'requests'")
        return self

    def items(self) -> list[Any]:
        if self.prompts is not None:
            return [{"prompt": prompt} for prompt in self.prompts]
        return self.requests or []


@router.post("/batch_generate")
async def batch_generate(body: BatchRequest, request: Request) -> Response:
    """Generate for each item. `stream: true` sends `batch_generate.result` events as they finish."""
    state = request.app.state
    exchange: Exchange = request.scope["gateway.exchange"]
    batch = Batch(state.fleet, state.settings, body, exchange)
    return await answer(request, batch.events(), body.stream)


class Batch:
    """One call's items, and what became of them."""

    def __init__(
        self, fleet: Fleet, settings: Settings, body: BatchRequest, exchange: Exchange
    ) -> None:
        self.fleet = fleet
        self.settings = settings
        self.exchange = exchange
        self.items = body.items()
        self.shared = canonical(body.model_extra or {})
        self.check()

    def check(self) -> None:
        """What is wrong with the call as a whole.

        Raises:
            InvalidRequest: too many items, or a shared field that no item could use.
            ModelNotFound: the shared model is not served.
        """
        limit = self.settings.max_batch_requests
        if len(self.items) > limit:
            raise InvalidRequest(
                f"the batch has {len(self.items)} requests; the limit is {limit} "
                "(setting GATEWAY_MAX_BATCH_REQUESTS)",
                "requests",
            )
        if given := [name for name in INPUTS if name in self.shared]:
            raise InvalidRequest(
                f"'{given[0]}' belongs into an item, not beside the list", given[0]
            )
        shared = _validated({"prompt": "-", **self.shared})
        bounds.check(shared.model_dump(), self.settings)
        self.fleet.find(shared.model, tenant_of(self.exchange.notes))

    async def events(self) -> Events:
        """`batch_generate.result` per item, as they finish; then `batch_generate.completed`."""
        clock = Clock()
        results: list[dict[str, Any]] = [{}] * len(self.items)
        async with aclosing(self._finished()) as finished:
            async for index, result in finished:
                results[index] = result
                yield Event("batch_generate.result", {"index": index, "result": result})
        yield Event("batch_generate.completed", {"response": _summary(results, clock.seconds())})

    async def _finished(self) -> AsyncGenerator[tuple[int, dict[str, Any]], None]:
        """Index and result of each item when it is ready. Leaving early cancels what still runs."""
        tasks = [asyncio.create_task(self._one(index)) for index in range(len(self.items))]
        try:
            for ready in asyncio.as_completed(tasks):
                yield await ready
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, index: int) -> tuple[int, dict[str, Any]]:
        request_id = f"{self.exchange.request_id}-{index}"
        problem: GatewayError
        try:
            body = self._item(index)
            who = Caller(request_id, self.exchange.notes, 1 / len(self.items))
            return index, await last(generate_events(self.fleet, self.settings, body, who))
        except GatewayError as error:
            problem = error
        except Exception:  # never all-or-nothing: a defect in one item does not hurt the others
            log.exception("request %s failed", request_id)
            problem = InternalError("internal error; the log has it")
        return index, problem_body(problem, f"{self.exchange.path}#{index}", request_id)

    def _item(self, index: int) -> GenerateRequest:
        item = self.items[index]
        if not isinstance(item, dict):
            raise InvalidRequest("an item is an object with a 'prompt' or 'messages'", "requests")
        if item.get("stream"):
            raise InvalidRequest("set 'stream' on the batch, not on an item", "stream")
        return _validated({**self.shared, **canonical(item)})


def _validated(fields: dict[str, Any]) -> GenerateRequest:
    try:
        return GenerateRequest.model_validate(fields)
    except ValidationError as error:
        raise from_validation(list(error.errors())) from error


def _summary(results: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    good = [result for result in results if "usage" in result]
    totals = {
        name: sum(result["usage"][name] for result in good)
        for name in ("prompt_tokens", "completion_tokens", "total_tokens")
    }
    return {
        "object": "batch_generate.response",
        "results": results,
        "usage": totals,
        "stats": {
            "total": len(results),
            "succeeded": len(good),
            "failed": len(results) - len(good),
            "total_time_s": round(seconds, 4),
            "tokens_per_second": round(totals["completion_tokens"] / seconds, 2),
        },
    }
