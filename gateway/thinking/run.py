"""One bounded thought and its answer, in two engine requests.

A. think, until the model closes its thought or the budget is spent;
B. answer, behind the closed thought. A thought that did not end by itself is closed with Qwen's own
   early-stop phrase (Qwen3 technical report 4.3), because a bare cut can be worse than not thinking.

Not the engine's `thinking_token_budget`: it knows nothing of max_tokens, and a budget above that leaves
no answer (vLLM #55382).
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from gateway.engines.types import Engine, Job, TokenIds
from gateway.thinking.budget import Budget, plan

OPEN = "<think>\n"
CLOSE = "</think>"
EMPTY_THOUGHT = "\n</think>\n\n"
ANSWER_FOLLOWS = "\n\n"
EARLY_STOP = (
    "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking "
    "directly now.\n</think>\n\n"
)


@dataclass(frozen=True, slots=True)
class Request:
    """A question, rendered. `sampling` is vLLM's names, without `stop`."""

    request_id: str
    prompt: TokenIds  # ends where the assistant's turn begins
    level: int  # thinking depth, 0 to 5
    budget: int | None  # explicit cap, tokens
    max_tokens: int  # thought, phrase and answer together
    sampling: Mapping[str, Any]
    stop: tuple[str, ...] = ()  # applies to the answer only
    response_format: Mapping[str, Any] | None = None  # of the answer
    priority: int = 0


@dataclass
class Outcome:
    """What came of it so far; complete after the last piece."""

    budget: Budget
    prompt_tokens: int
    cached_tokens: int = 0
    reasoning: str = ""
    reasoning_ids: list[int] = field(default_factory=list)
    end_reason: str = "natural"  # natural | budget | eos | skipped
    forced: bool = False
    forced_tokens: int = 0
    answer: str = ""
    answer_tokens: int = 0
    answer_source: str = "model"
    finish_reason: str = "stop"


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the thought or of the answer. `phase` is "reasoning", "reasoning_done" or "answer"."""

    phase: str
    text: str = ""


class ThinkingRun:
    """Run with `pieces()`; `outcome` fills while they come."""

    def __init__(self, engine: Engine, request: Request) -> None:
        self.engine = engine
        self.request = request
        self.outcome: Outcome
        self.total: int  # output tokens that fit behind the opened thought

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """The thought's pieces, one `reasoning_done`, the answer's pieces."""
        phrase = await self.engine.tokenize(EARLY_STOP)
        prompt = await self._open_thought()
        request = self.request
        self.total = min(request.max_tokens, self.engine.limits.max_model_len - len(prompt))
        budget = plan(request.level, request.budget, self.total, len(phrase))
        self.outcome = out = Outcome(budget, len(prompt))
        if budget.applied > 0:
            async with aclosing(self._think(prompt)) as thought:
                async for piece in thought:
                    yield piece
        else:
            out.end_reason = "skipped"
        yield Piece("reasoning_done")
        behind = await self._behind_thought(prompt, phrase)
        async with aclosing(self._answer(behind)) as answer:
            async for piece in answer:
                yield piece

    async def _open_thought(self) -> TokenIds:
        """Some templates open the thought, some leave it to the model, some know of none."""
        opening = await self.engine.tokenize(OPEN)
        prompt = self.request.prompt
        return prompt if prompt[-len(opening) :] == opening else prompt + opening

    async def _think(self, prompt: TokenIds) -> AsyncGenerator[Piece, None]:
        out = self.outcome
        sampling = {**self.request.sampling, "stop": [CLOSE], "skip_special_tokens": False}
        job = self._job("think", prompt, out.budget.applied, sampling)
        async with aclosing(self.engine.generate(job)) as deltas:
            async for delta in deltas:
                out.reasoning += delta.text
                out.reasoning_ids.extend(delta.token_ids)
                out.cached_tokens = delta.cached_tokens
                if delta.finish_reason is not None:
                    out.end_reason = _end_reason(delta.finish_reason, delta.stop_reason)
                if delta.text:
                    yield Piece("reasoning", delta.text)
        out.forced = out.end_reason != "natural"

    async def _behind_thought(self, prompt: TokenIds, phrase: TokenIds) -> TokenIds:
        """The prompt of the answer: what was thought, closed."""
        out = self.outcome
        if out.forced:
            bridge = phrase
        elif out.end_reason == "natural":
            bridge = await self.engine.tokenize(ANSWER_FOLLOWS)
        else:
            bridge = await self.engine.tokenize(EMPTY_THOUGHT)
        out.forced_tokens = len(bridge)
        # An end-of-text token in the middle of the turn would end it for the model.
        thought = out.reasoning_ids[:-1] if out.end_reason == "eos" else out.reasoning_ids
        return (*prompt, *thought, *bridge)

    async def _answer(self, prompt: TokenIds) -> AsyncGenerator[Piece, None]:
        out, request = self.outcome, self.request
        spent = len(out.reasoning_ids) + out.forced_tokens
        sampling = {**request.sampling, "stop": list(request.stop), "min_tokens": 1}
        if request.response_format is not None:
            sampling["response_format"] = request.response_format
        room = max(1, self.total - spent)
        job = self._job("answer", prompt, room, sampling)
        async with aclosing(self.engine.generate(replace(job, reasoning_ended=True))) as deltas:
            async for delta in deltas:
                out.answer += delta.text
                out.answer_tokens += len(delta.token_ids)
                if out.end_reason == "skipped":
                    out.cached_tokens = delta.cached_tokens
                out.finish_reason = delta.finish_reason or out.finish_reason
                if delta.text:
                    yield Piece("answer", delta.text)
        if not out.answer.strip() and (extracted := _last_sentence(out.reasoning)):
            out.answer_source = "extracted_from_reasoning"
            out.answer += extracted
            yield Piece("answer", extracted)

    def _job(self, phase: str, prompt: TokenIds, room: int, sampling: Mapping[str, Any]) -> Job:
        request = self.request
        return Job(f"{request.request_id}-{phase}", prompt, room, sampling, request.priority)


def _end_reason(finish: str, stopped_by: int | str | None) -> str:
    if finish == "length":
        return "budget"
    return "natural" if stopped_by == CLOSE else "eos"


def _last_sentence(text: str) -> str:
    """The last resort when the model gave no answer: the end of what it thought."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
