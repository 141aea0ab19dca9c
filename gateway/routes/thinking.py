"""`POST /thinking`: think for a bounded time, then answer; and `answer_now` for one that runs.

docs/thinking.md tells callers about depth, budget, checks, confidence and samples.
"""

import time
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import AliasChoices, Field, model_validator
from starlette.responses import Response

from gateway.asgi import Exchange
from gateway.engines.fleet import Fleet
from gateway.engines.slot import Seat, Slot
from gateway.observability.spans import trace_of
from gateway.policy import bounds
from gateway.policy.asking import asked_of
from gateway.policy.deadline import Deadline, thinking_within, within
from gateway.policy.tenant import tenant_of
from gateway.routes.binding import Binding
from gateway.routes.generate import Messages, Sampling, room
from gateway.routes.streams import Clock, Event, Events, answer
from gateway.routes.thinking_body import sample_row, shown_reasoning, whole
from gateway.settings import Settings
from gateway.thinking import effort
from gateway.thinking.parallel import Parallel
from gateway.thinking.ptrue import p_true
from gateway.thinking.run import Request as ThinkingRequest
from gateway.thinking.run import ThinkingRun
from gateway.thinking.running import Running
from gateway.thinking.sample import TOP_K, TOP_K_EXIT, Sample

router = APIRouter(tags=["native"])

PROGRESS_EVERY = 64  # thinking tokens


class ThinkRequest(Sampling):
    """Exactly one of `question` and `messages`. Unknown fields are refused."""

    model: str | None = Field(default=None, description="Default: the first served model.")
    question: str | None = Field(default=None, min_length=1)
    messages: Messages | None = None
    thinking_depth: int | str | None = Field(
        default=None,
        validation_alias=AliasChoices("thinking_depth", "reasoning_effort"),
        description="0-5, or none, minimal, low, medium (default), high, xhigh, max.",
    )
    reasoning: dict[str, Any] | None = Field(
        default=None, description="OpenAI's and OpenRouter's form: `effort`, `max_tokens`."
    )
    thinking: dict[str, Any] | None = Field(
        default=None, description="Anthropic's form: `type`, `budget_tokens`."
    )
    enable_thinking: bool | None = Field(default=None, description="false: answer at once.")
    thinking_budget: int | None = Field(
        default=None,
        ge=0,
        validation_alias=AliasChoices("thinking_budget", "thinking_token_budget"),
        description="Most thinking tokens, exactly; beats the depth.",
    )
    max_tokens: int | None = Field(
        default=None, ge=1, description="Thinking and answer together; default: the profile's."
    )
    include_reasoning: bool | Literal["steps", "text"] = Field(
        default=True, description="Only hides: false, or just the `steps`, or just the `text`."
    )
    validate_: bool = Field(
        default=True, alias="validate", description="Run the checks of docs/thinking.md."
    )
    confidence: Literal["off", "logprobs", "auto", "full"] = Field(
        default="auto",
        description="auto and logprobs: from log-probabilities. full: the model is asked, too. off: none.",
    )
    samples: int = Field(default=1, ge=1, description="Thoughts in parallel; they vote.")
    early_exit: Literal["off", "logprob", "probe"] = Field(
        default="off", description="End the thought when the model is ready to answer."
    )
    response_format: dict[str, Any] | None = Field(default=None, description="Of the answer.")
    stream: bool = False

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
    call = Call(body, state.fleet, state.settings, state.running, exchange)
    return await answer(request, call.events(), body.stream)


@router.post("/thinking/{request_id}/answer_now")
async def answer_now(request_id: str, request: Request) -> dict[str, str]:
    """End the thinking of a running request of any route; it answers from what it has."""
    running: Running = request.app.state.running
    exchange: Exchange = request.scope["gateway.exchange"]
    return {
        "id": request_id,
        "object": "thinking.answer_now",
        "phase": running.answer_now(request_id, tenant_of(exchange.notes).name),
    }


@dataclass
class Call:
    """One `/thinking` request being served."""

    body: ThinkRequest
    fleet: Fleet
    settings: Settings
    running: Running
    exchange: Exchange
    begun: set[int] = field(default_factory=set)  # samples whose thought has begun

    @property
    def request_id(self) -> str:
        return self.exchange.request_id

    def events(self) -> Events:
        """`thinking.created`, reasoning, answer, ... then `thinking.completed` with the whole body."""
        deadline = asked_of(self.exchange.notes).deadline(self.body.deadline_s)
        return within(deadline, self._events(deadline))

    async def _events(self, deadline: Deadline | None) -> Events:
        body, settings = self.body, self.settings
        asked = body.model_dump(by_alias=True)
        bounds.check(asked, settings)
        binding = Binding(asked, settings)
        clock = Clock()
        tenant = tenant_of(self.exchange.notes)
        model = self.fleet.find(body.model, tenant)
        wanted = body.max_tokens or model.profile.thinking_max_tokens
        plan = effort.read(
            {**body.model_dump(exclude_none=True), "max_tokens": wanted},
            settings.thinking_frame(effort.MEDIUM, tenant.limits.max_thinking),
        )
        head: dict[str, Any] = {
            "id": f"think-{self.request_id}",
            "object": "thinking.response",
            "created": int(time.time()),
            "model": body.model or model.name,
        }
        ticket = asked_of(self.exchange.notes).ticket(body.priority, body.samples)
        self.exchange.notes["model"] = (
            model.name
        )  # also of a request that is refused for its grammar
        await binding.before(model)
        async with self.fleet.seat(body.model, self.exchange.notes, ticket) as seat:
            await binding.tried_by(seat.slot)
            forced = len(seat.engine.dialect.phrase)
            with (
                trace_of(self.exchange.notes).inference("chat", seat.name, body) as plan.trace,
                thinking_within(deadline, plan, model.admission.speed, forced),
                self.running.registered(self.request_id, plan, tenant.name),
            ):
                samples = await self._samples(seat, plan, wanted)
                plan.begin(sample.run for sample in samples)
                self.exchange.notes["plan"] = plan
                created: Event | None = Event("thinking.created", dict(head))
                async with aclosing(self._run(samples, seat.slot)) as events:
                    async for event in events:
                        if created is not None:  # not before the engine has taken it
                            yield created
                            created = None
                        if "response" in event.data:
                            _tell(plan, event.data["response"])
                            timed = _timed(event.data["response"], clock.seconds())
                            event = Event(event.type, {"response": head | timed})
                        yield event

    async def _samples(self, seat: Seat, plan: effort.Plan, wanted: int) -> list[Sample]:
        body, engine = self.body, seat.engine
        with plan.trace.child("render"):
            prompt = await engine.render_chat(body.conversation(), thinking=plan.thinks)
        sampling = body.sampling() | {"stop": body.stop}
        top_k = TOP_K_EXIT if body.early_exit == "logprob" else TOP_K
        measured = body.confidence != "off" or body.early_exit == "logprob"
        if measured:
            sampling["logprobs"] = top_k
        if body.response_format is not None:
            sampling["response_format"] = body.response_format
        request = ThinkingRequest(
            request_id=f"think-{self.request_id}",
            prompt=prompt,
            thinks=plan.thinks,
            level=plan.level,
            budget=plan.budget,
            ceiling=plan.ceiling,
            max_tokens=room(engine, len(prompt), wanted, body.max_tokens is not None),
            sampling=sampling,
            context=engine.limits.max_model_len,
            apart=bool(body.stop) or body.response_format is not None,
            priority=seat.priority,
            stream=body.stream,
            early_exit=body.early_exit,
            changes={"flat_logprobs": True} if measured else {},
            trace=plan.trace,
        )
        requests = [_sibling(request, index, body.samples) for index in range(body.samples)]
        runs = [ThinkingRun(engine, sibling) for sibling in requests]
        return [Sample(i, run, top_k if measured else None) for i, run in enumerate(runs)]

    async def _run(self, samples: list[Sample], slot: Slot) -> Events:
        if len(samples) == 1:
            chosen, agreement = samples[0], None
            async with aclosing(self._single(chosen)) as events:
                async for event in events:
                    yield event
        else:
            parallel = Parallel(samples)
            async with aclosing(self._together(parallel)) as events:
                async for event in events:
                    yield event
            verdict = parallel.verdict()
            chosen, agreement = samples[verdict.winner], verdict.agreement
            yield Event("thinking.answer.delta", {"delta": chosen.run.outcome.answer})
        out = chosen.run.outcome
        if self.body.confidence == "full":
            chosen.p_true = await p_true(chosen.run)
        yield Event("thinking.answer.done", {"answer_source": out.answer_source})
        body = whole(self.body, samples, chosen, (slot.facts.calibration, agreement))
        for name in ("validation", "confidence"):
            if name in body:
                yield Event(f"thinking.{name}", {name: body[name]})
        yield Event("thinking.completed", {"response": body})

    async def _single(self, sample: Sample) -> Events:
        """The thought and the answer as they come."""
        thought_over = False
        async with aclosing(sample.pieces()) as pieces:
            async for piece in pieces:
                if piece.phase == "reasoning":
                    for event in self._thought_events(sample, piece.text):
                        yield event
                    continue
                if not thought_over:
                    thought_over = True
                    for event in self._thought_done(sample):
                        yield event
                if piece.phase == "answer" and piece.text:
                    yield Event("thinking.answer.delta", {"delta": piece.text})

    async def _together(self, parallel: Parallel) -> Events:
        """The thoughts as they come; the answer waits for the vote."""
        async with aclosing(parallel.pieces()) as pieces:
            async for sample, piece in pieces:
                if piece is None:
                    for event in self._thought_done(sample):
                        yield event
                    yield Event("thinking.sample", sample_row(sample))
                elif piece.phase == "reasoning":
                    for event in self._thought_events(sample, piece.text):
                        yield event

    def _thought_events(self, sample: Sample, text: str) -> list[Event]:
        events = []
        if text and self.body.include_reasoning in (True, "text"):
            data = {"sample_index": sample.index, "delta": text}
            events.append(Event("thinking.reasoning.delta", data))
        thought = sample.run.thought
        first = sample.index not in self.begun  # its budget, before the first 64 tokens are through
        self.begun.add(sample.index)
        if first or len(thought.ids) % PROGRESS_EVERY == 0:
            data = {
                "sample_index": sample.index,
                "tokens": len(thought.ids),
                "budget": thought.budget,
            }
            events.append(Event("thinking.progress", data))
        return events

    def _thought_done(self, sample: Sample) -> list[Event]:
        told = shown_reasoning(sample, False)
        done = Event("thinking.reasoning.done", {"sample_index": sample.index, **told})
        if self.body.include_reasoning not in (True, "steps"):
            return [done]
        rows = shown_reasoning(sample, "steps")["steps"]
        steps = [Event("thinking.step", {"sample_index": sample.index, **row}) for row in rows]
        return [*steps, done]


def _sibling(request: ThinkingRequest, index: int, n: int) -> ThinkingRequest:
    """Each sample draws from a seed of its own."""
    if n == 1:
        return request
    sampling = dict(request.sampling)
    if "seed" in sampling:
        sampling["seed"] += index
    name = f"{request.request_id}-s{index}"
    return replace(request, request_id=name, sampling=sampling)


def _tell(plan: effort.Plan, body: dict[str, Any]) -> None:
    """The trace's span of the generation."""
    used = body["usage"]
    told = {
        "prompt": used["prompt_tokens"],
        "cached": used["prompt_tokens_details"]["cached_tokens"],
        "thinking": used["completion_tokens_details"]["reasoning_tokens"],
        "output": used["completion_tokens"],
    }
    plan.trace.answered(told, [run.outcome.finish_reason for run in plan.runs])
    plan.trace.said([body["answer"]])


def _timed(body: dict[str, Any], seconds: float) -> dict[str, Any]:
    tokens = body["usage"]["completion_tokens"]
    rate = round(tokens / seconds, 2)
    return body | {"generation_time_s": round(seconds, 4), "tokens_per_second": rate}
