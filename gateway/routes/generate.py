"""`POST /generate`: text from a prompt, or an answer to a conversation.

`prompt` goes to the model as it is (no chat template), as in SGLang and TGI; `messages` go through the
template. SGLang's `{text, sampling_params: {...}}` is accepted, so the route survives behind its routers.
"""

from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator, model_validator
from starlette.responses import Response

from gateway.asgi import Exchange
from gateway.engines.fleet import Fleet
from gateway.engines.slot import Seat
from gateway.engines.types import Delta, Engine, Job, TokenIds
from gateway.errors import InvalidRequest
from gateway.observability.spans import Branch, trace_of
from gateway.policy import bounds
from gateway.policy.asking import MAX_TIMEOUT_MS, asked_of
from gateway.policy.deadline import within
from gateway.routes.streams import Clock, Event, Events, answer
from gateway.settings import Settings

router = APIRouter(tags=["native"])

ALIASES = {"text": "prompt", "max_length": "max_tokens", "max_new_tokens": "max_tokens"}
Messages = Annotated[list[dict[str, Any]], Field(min_length=1)]


class Sampling(BaseModel):
    """How tokens are drawn. What is not given falls to the model's own generation config."""

    model_config = ConfigDict(extra="forbid", strict=True)

    temperature: float | None = Field(default=None, ge=0, le=2, description="0 is greedy.")
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, description="0 or -1: all tokens.")
    min_p: float | None = Field(default=None, ge=0, le=1)
    do_sample: bool | None = Field(default=None, description="false: greedy.")
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    stop: str | list[str] = Field(default_factory=list)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    priority: int = Field(
        default=0,
        ge=-1000,
        le=1000,
        description="Above 0: behind all others, as class `batch`. What the key allows is the limit.",
    )
    deadline_s: float | None = Field(
        default=None,
        gt=0,
        le=MAX_TIMEOUT_MS // 1000,
        description="Give up after so many seconds: 504, the work is aborted.",
    )

    @field_validator("stop")
    @classmethod
    def no_empty_stop(cls, stop: str | list[str]) -> list[str]:
        stops = [stop] if isinstance(stop, str) else stop
        if not all(stops):
            raise ValueError("an empty stop string would stop everything")
        return stops

    def sampling(self) -> dict[str, Any]:
        """vLLM's names and values; only what was given."""
        names = set(Sampling.model_fields) - {"do_sample", "priority", "deadline_s", "stop"}
        given = self.model_dump(include=names, exclude_none=True)
        if self.do_sample is False:
            given["temperature"] = 0.0
        return given


class GenerateRequest(Sampling):
    """Exactly one of `prompt` (or `text`) and `messages`. Unknown fields are refused."""

    model: str | None = Field(default=None, description="Default: the first served model.")
    prompt: str | None = Field(default=None, validation_alias=AliasChoices("prompt", "text"))
    messages: Messages | None = None
    max_tokens: int = Field(
        default=256,
        ge=1,
        validation_alias=AliasChoices("max_tokens", "max_length", "max_new_tokens"),
    )
    n: int = Field(default=1, ge=1)
    logprobs: int | None = Field(default=None, ge=0)
    stream: bool = False

    @model_validator(mode="before")
    @classmethod
    def unfold_sampling_params(cls, body: Any) -> Any:
        """SGLang puts sampling into an object of its own."""
        if isinstance(body, dict) and isinstance(nested := body.get("sampling_params"), dict):
            outer = {key: value for key, value in body.items() if key != "sampling_params"}
            return canonical(nested) | canonical(outer)
        return body

    @model_validator(mode="after")
    def one_input(self) -> "GenerateRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give exactly one of 'prompt' (or 'text') and 'messages'")
        if self.prompt == "":
            raise ValueError("'prompt' is empty")
        return self


def canonical(fields: dict[str, Any]) -> dict[str, Any]:
    """Aliases replaced by the names they stand for, so that two layers of fields can be merged."""
    named = dict(fields)
    for alias, name in ALIASES.items():
        if alias in named and name not in named:
            named[name] = named.pop(alias)
    return named


@router.post("/generate")
async def generate(body: GenerateRequest, request: Request) -> Response:
    """Generate text. `stream: true` sends `generate.delta` events, then `generate.completed`."""
    state = request.app.state
    exchange: Exchange = request.scope["gateway.exchange"]
    who = Caller(exchange.request_id, exchange.notes)
    events = generate_events(state.fleet, state.settings, body, who)
    return await answer(request, events, body.stream)


@dataclass(frozen=True)
class Caller:
    """Whose request it is. `notes` are the exchange's."""

    request_id: str
    notes: dict[str, Any]
    part: float = 1.0  # of the call's body: one of how many requests in it


def generate_events(fleet: Fleet, settings: Settings, body: GenerateRequest, who: Caller) -> Events:
    """`generate.delta` per piece, then `generate.completed` with the whole body."""
    deadline = asked_of(who.notes).deadline(body.deadline_s)
    return within(deadline, _events(fleet, settings, body, who))


async def _events(fleet: Fleet, settings: Settings, body: GenerateRequest, who: Caller) -> Events:
    bounds.check(body.model_dump(), settings)
    clock = Clock()
    ticket = asked_of(who.notes).ticket(body.priority, body.n, who.part)
    async with fleet.seat(body.model, who.notes, ticket) as seat:
        operation = "chat" if body.messages else "text_completion"
        with trace_of(who.notes).inference(operation, seat.name, body) as call:
            job = await _job(seat, body, who.request_id, call)
            tally = Tally(body.n)
            async with aclosing(seat.engine.generate(job)) as deltas:
                async for delta in deltas:
                    tally.add(delta)
                    if body.stream and delta.text:
                        yield Event("generate.delta", {"index": delta.index, "delta": delta.text})
            tally.tell(call, len(job.prompt))
    head = {"id": job.request_id, "object": "generate.response", "model": seat.name}
    whole = head | tally.body(len(job.prompt), clock.seconds())
    yield Event("generate.completed", {"response": whole})


async def _job(seat: Seat, body: GenerateRequest, request_id: str, call: Branch) -> Job:
    engine = seat.engine
    with call.child("render"):
        prompt = await rendered(engine, body.prompt, body.messages)
    explicit = "max_tokens" in body.model_fields_set
    job = Job(
        request_id=f"gen-{request_id}",
        prompt=prompt,
        max_tokens=room(engine, len(prompt), body.max_tokens, explicit),
        sampling={**_sampling(body), "stop": body.stop},
        priority=seat.priority,
        stream=body.stream,
        trace=call.headers(),
    )
    call.note({"gateway.engine_request": job.request_id})
    return job


def _sampling(body: GenerateRequest) -> dict[str, Any]:
    extra = {"n": body.n, "logprobs": body.logprobs}
    return body.sampling() | {key: value for key, value in extra.items() if value is not None}


async def rendered(
    engine: Engine, prompt: str | None, messages: list[dict[str, Any]] | None
) -> TokenIds:
    """Token ids of whichever of the two was given.

    Raises:
        InvalidRequest: not renderable, or longer than the context.
    """
    if messages is not None:
        return await engine.render_chat(messages)
    return await engine.render_text(prompt or "")


def room(engine: Engine, n_prompt: int, wanted: int, explicit: bool) -> int:
    """Output tokens that fit behind the prompt; a default is cut, an explicit wish is refused.

    Raises:
        InvalidRequest: the prompt fills the context, or `max_tokens` does not fit.
    """
    limit = engine.limits.max_model_len
    left = limit - n_prompt
    if left < 1:
        raise InvalidRequest(
            f"the prompt has {n_prompt} tokens; the model's context is {limit}", "prompt"
        )
    if explicit and wanted > left:
        raise InvalidRequest(
            f"'max_tokens' is {wanted}; {left} fit behind a prompt of {n_prompt} tokens "
            f"in a context of {limit}",
            "max_tokens",
        )
    return min(wanted, left)


def logprob_rows(delta: Delta) -> list[dict[str, Any]]:
    """Per token the sampled one and the top candidates, as OpenAI's chat `logprobs.content` has them."""
    rows = []
    for token_id, candidates in zip(delta.token_ids, delta.logprobs or (), strict=False):
        named = [
            {"token": entry.decoded_token, "token_id": other, "logprob": entry.logprob}
            for other, entry in (candidates or {}).items()
        ]
        sampled = next(row for row in named if row["token_id"] == token_id)
        rows.append({**sampled, "top_logprobs": named})
    return rows


class Tally:
    """Folds deltas into the plain answer."""

    def __init__(self, n: int) -> None:
        self.texts = [""] * n
        self.tokens = [0] * n
        self.reasons: list[str | None] = [None] * n
        self.logprobs: list[list[dict[str, Any]]] = [[] for _ in range(n)]
        self.cached = 0

    def add(self, delta: Delta) -> None:
        self.texts[delta.index] += delta.text
        self.tokens[delta.index] += len(delta.token_ids)
        self.reasons[delta.index] = delta.finish_reason
        self.logprobs[delta.index].extend(logprob_rows(delta))
        self.cached = delta.cached_tokens

    def tell(self, call: Branch, n_prompt: int) -> None:
        """The trace's span of the generation."""
        used = {"prompt": n_prompt, "cached": self.cached, "output": sum(self.tokens)}
        call.answered(used, self.reasons)
        call.said(self.texts)

    def body(self, n_prompt: int, seconds: float) -> dict[str, Any]:
        """`text` and `finish_reason` of the first; all of them in `choices`."""
        choices: list[Mapping[str, Any]] = [
            {"index": index, "text": text, "finish_reason": reason, "logprobs": logprobs or None}
            for index, (text, reason, logprobs) in enumerate(
                zip(self.texts, self.reasons, self.logprobs, strict=True)
            )
        ]
        return {
            "text": self.texts[0],
            "finish_reason": self.reasons[0],
            "choices": choices,
            "usage": usage(n_prompt, sum(self.tokens), self.cached),
            "generation_time_s": round(seconds, 4),
            "tokens_per_second": round(sum(self.tokens) / seconds, 2),
        }


def usage(prompt: int, completion: int, cached: int) -> dict[str, Any]:
    """OpenAI's usage object; tokens."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
