"""One bounded thought and its answer, in at most two engine requests.

A. think. When nothing has to differ between thought and answer, the same request goes on into the
   answer ("watched"), so a natural end costs nothing extra;
B. answer, behind the closed thought, when the budget was spent, the thought looped, or the answer has
   stop strings or a grammar that must not touch the thought.

Not the engine's `thinking_token_budget`: it knows nothing of max_tokens, and a budget above that leaves
no answer (vLLM #55382); docs/adr/0007-two-phase-thinking.md has the rest.
"""

import re
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from gateway.engines.types import Delta, Job, Source, TokenIds
from gateway.errors import NoAnswer
from gateway.observability.spans import OFF, Branch
from gateway.thinking.budget import Budget, Wish, plan
from gateway.thinking.dialect import CLOSE, TOOL_CALL
from gateway.thinking.phases import RunPhases
from gateway.thinking.probe import Probe
from gateway.thinking.thought import Cut, Thought

FORBID = -100.0  # as a logit bias: never
CLOSED_BY_MODEL = ("natural", "tool_call")
MARKS = re.compile(r"</?think>")
FRONT = re.compile(r"\A(?:\s|</?think>)+")  # of an answer


@dataclass(frozen=True, slots=True)
class Request:
    """A question, rendered."""

    request_id: str
    prompt: TokenIds  # ends where the assistant's turn begins
    thinks: (
        bool  # the template opened a thought, or we shall; the parser behind us waits for its end
    )
    level: int  # thinking depth, 0 to 5
    budget: int | None  # explicit cap, tokens
    ceiling: int | None  # the operator's cap, tokens
    max_tokens: int  # thought, phrase and answer together
    sampling: Any  # of a Job; stop strings and grammar included
    context: int  # prompt and output together, tokens
    apart: bool = False  # stop strings or a grammar: they bind the answer only
    min_tokens: int = 0
    priority: int = 0
    stream: bool = True
    early_exit: str = "off"  # off | logprob | probe
    changes: Mapping[str, Any] = field(default_factory=dict)  # to each engine request
    trace: Branch = OFF  # where its phases are told
    strip: bool = True  # white space before the answer is the template's, not the answer's


@dataclass
class Outcome:
    """What came of it so far; complete after the last piece."""

    budget: Budget
    prompt_tokens: int
    cached_tokens: int = 0
    reasoning: str = ""
    reasoning_tokens: int = 0
    end_reason: str = "skipped"
    forced: bool = False
    forced_tokens: int = 0  # between thought and answer: the mark, and the phrase when forced
    answer: str = ""
    answer_tokens: int = 0
    answer_cached_tokens: int | None = None  # of the second engine request; None: there was none
    answer_source: str = "model"
    finish_reason: str = "stop"
    engine_requests: int = 0
    probe_tokens: int = 0
    probe_trials: int = 0
    marks: list[tuple[int, int]] = field(default_factory=list)  # of the thought: characters, tokens


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of what the model said. `phase`: "reasoning", "close" (the mark) or "answer"."""

    phase: str
    text: str = ""
    token_ids: Sequence[int] = ()
    logprobs: Sequence[Mapping[int, Any] | None] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


Pieces = AsyncGenerator[Piece, None]


class ThinkingRun:
    """Run with `pieces()`; `outcome` fills while they come."""

    def __init__(self, source: Source, request: Request) -> None:
        self.source = source
        self.dialect = source.dialect
        self.request = request
        self.phase = "waiting"  # waiting | thinking | answering | done
        self.prompt = self._open()
        self.total = min(request.max_tokens, request.context - len(self.prompt))
        wish = Wish(request.level, request.budget, request.ceiling)
        budget = plan(wish, self.total, len(self.dialect.phrase))
        self.outcome = Outcome(budget, len(self.prompt))
        self.thought = Thought(
            self.dialect, budget.applied, source.looping, request.early_exit == "logprob"
        )
        self.answer_at: float | None = None  # of what can be seen; seconds on `time.perf_counter`
        self._probe: Probe | None = None
        self._before: TokenIds = ()  # what stands in front of the answer
        self._answered: list[int] = []  # the answer's tokens
        self._shown = False  # something of the answer could be seen
        self._over = False  # the thinking request has nothing more to give
        self._waiting: list[Piece] = []  # of the answer, nothing to be seen yet
        self._phases = RunPhases(request)

    def answer_now(self, why: str = "answer_now") -> str:
        """End the thought at its next token; in the answer it changes nothing. Returns the phase."""
        self.thought.interrupt = why
        return self.phase

    def transcript(self) -> TokenIds:
        """Prompt, thought and answer as the model has seen them."""
        return (*self._before, *self._answered)

    async def pieces(self) -> Pieces:
        """The thought's pieces, one "close", the answer's pieces; the last has a finish reason.

        Raises:
            NoAnswer: nothing that can be seen came, and there is no thought to take it from.
        """
        out = self.outcome
        with self._phases:
            if out.budget.applied > 0 and self.thought.interrupt is None:
                self.phase = "thinking"
                self._phases.begin("think")
                async with aclosing(self._think()) as pieces:
                    async for piece in pieces:
                        yield piece
                behind = self._behind_thought()
            else:
                behind = self._without_thought()
            self._before = behind
            self.phase = "answering"
            self._phases.closed(out)
            if not self._shown:
                if self.request.thinks and out.end_reason not in CLOSED_BY_MODEL:
                    yield Piece("close", CLOSE, self.dialect.close)
                async with aclosing(self._answer(behind)) as pieces:
                    async for piece in pieces:
                        yield piece
            self._phases.answered(out)
        self.phase = "done"

    def _open(self) -> TokenIds:
        """Some templates open the thought, some leave it to the model, some know of none."""
        prompt = self.request.prompt
        fits = len(prompt) + len(self.dialect.open) < self.request.context
        if not self.request.thinks or self.dialect.opened(prompt) or not fits:
            return prompt
        return prompt + self.dialect.open

    async def _think(self) -> Pieces:
        self.outcome.engine_requests += 1
        job = self._thinking_job()
        if self.request.early_exit == "probe":
            self._probe = Probe(self.source, job)
        async with aclosing(self.source.generate(job)) as deltas:
            async for delta in deltas:
                if self.phase == "answering":
                    pieces = self._show(delta)
                else:
                    pieces = await self._in_thought(delta)
                for piece in pieces:
                    yield piece
                if self._over:
                    return

    async def _in_thought(self, delta: Delta) -> list[Piece]:
        """A delta that began inside the thought; it may end there, or reach into the answer."""
        out, rows = self.outcome, delta.logprobs
        out.cached_tokens = delta.cached_tokens
        cut = self.thought.take(delta)
        pieces = []
        if cut.text or cut.kept:
            shown = rows and rows[: cut.kept]
            pieces.append(Piece("reasoning", cut.text, delta.token_ids[: cut.kept], shown))
        reason = cut.reason or await self._ready()
        if reason is None:
            return pieces
        self._end_thought(reason)
        if out.forced:
            return pieces
        rest = cut.kept + cut.mark
        pieces.append(_mark(reason, delta, cut))
        if not self._over:
            self.phase = "answering"
            behind = replace(
                delta,
                text=cut.behind,
                token_ids=delta.token_ids[rest:],
                logprobs=rows and rows[rest:],
            )
            pieces.extend(self._show(behind))
        return pieces

    async def _ready(self) -> str | None:
        """The trial answer is as good as a later one."""
        sure = self._probe is not None and await self._probe.sure(self.thought)
        return "early_exit" if sure else None

    def _end_thought(self, reason: str) -> None:
        out = self.outcome
        out.end_reason = reason
        out.forced = reason not in CLOSED_BY_MODEL
        out.reasoning, out.marks = self.thought.text, self.thought.marks
        out.reasoning_tokens = len(self.thought.ids)
        out.forced_tokens = len(self.thought.closing)
        if self._probe is not None:
            out.probe_tokens, out.probe_trials = self._probe.tokens, self._probe.trials
        self._over = out.forced or self.request.apart
        self._phases.thought(out)

    def _behind_thought(self) -> TokenIds:
        """The prompt of the answer: what was thought, closed."""
        out, dialect, thought = self.outcome, self.dialect, self.thought
        said = (*self.prompt, *thought.ids, *thought.closing)
        if self._shown:
            return said
        if out.forced:
            bridge = dialect.phrase
        elif out.end_reason == "natural":
            bridge = dialect.follows
        else:
            bridge = dialect.empty
        out.forced_tokens += len(bridge)
        return (*said, *bridge)

    def _without_thought(self) -> TokenIds:
        """A thought that the template opened is closed at once."""
        out = self.outcome
        if self.thought.interrupt is not None and out.budget.applied > 0:
            out.end_reason, out.forced = self.thought.interrupt, True
        fits = len(self.prompt) + len(self.dialect.empty) < self.request.context
        if not self.dialect.opened(self.prompt) or not fits:
            return self.prompt
        closed = self.prompt + self.dialect.empty
        if self.request.thinks:  # the mark is shown, so it counts
            out.forced_tokens = len(self.dialect.empty)
        else:  # as a template would have put it there
            out.prompt_tokens = len(closed)
            self.total = min(self.total, self.request.context - len(closed))
        return closed

    async def _answer(self, prompt: TokenIds) -> Pieces:
        """The answer's request. When nothing can be seen of it, once more with visible tokens only."""
        for last_resort in (False, True):
            self._waiting.clear()
            job = self._answering_job(prompt, last_resort)
            self.outcome.engine_requests += 1
            async with aclosing(self.source.generate(job)) as deltas:
                async for delta in deltas:
                    self._note_cached(delta)
                    for piece in self._show(delta):
                        yield piece
            if self._shown:
                return
        yield self._extracted()

    def _note_cached(self, delta: Delta) -> None:
        out = self.outcome
        if out.engine_requests == 1:
            out.cached_tokens = delta.cached_tokens
        else:
            out.answer_cached_tokens = delta.cached_tokens

    def _show(self, delta: Delta) -> list[Piece]:
        """The answer's pieces. White space is held back until something can be seen."""
        out = self.outcome
        ended = (delta.finish_reason, delta.stop_reason)
        piece = Piece("answer", delta.text, delta.token_ids, delta.logprobs, *ended)
        if not self._shown:
            self._waiting.append(piece)
            if not _visible("".join(waiting.text for waiting in self._waiting)):
                return []
            self._shown, self.answer_at = True, time.perf_counter()
            piece = _merged(self._waiting, self.dialect.marks if self.request.strip else None)
        self._answered.extend(piece.token_ids)
        out.answer += piece.text
        out.answer_tokens += len(piece.token_ids)
        out.finish_reason = piece.finish_reason or out.finish_reason
        return [piece]

    def _extracted(self) -> Piece:
        """The last resort: the end of the thought, flagged."""
        out = self.outcome
        ids = self.dialect.encode(_last_line(out.reasoning))[: self._room()]
        text = self.dialect.decode(ids).rstrip("\ufffd")
        if not text.strip():
            raise NoAnswer(
                "the model gave nothing that can be shown as an answer; loosen 'stop' or "
                "'response_format', or give more 'max_tokens'"
            )
        out.answer, out.answer_tokens = text, len(ids)
        out.answer_source, out.finish_reason = "extracted_from_reasoning", "stop"
        return Piece("answer", text, ids, [None] * len(ids), "stop")

    def _room(self) -> int:
        """Tokens left for the answer."""
        out = self.outcome
        return max(1, self.total - out.reasoning_tokens - out.forced_tokens)

    def _thinking_job(self) -> Job:
        request = self.request
        changes: dict[str, Any] = {"skip_special_tokens": False, "n": 1}
        room = self.total
        if request.apart:
            room = self.outcome.budget.applied
            changes |= {"structured_outputs": None, "min_tokens": 0, **self._stop_at_close()}
        return self._job("think", self.prompt, room, changes)

    def _stop_at_close(self) -> dict[str, Any]:
        dialect = self.dialect
        if dialect.knows_marks:
            return {"stop": [], "stop_token_ids": [*dialect.close, *dialect.tool_call]}
        marks = {"stop": [CLOSE, TOOL_CALL], "include_stop_str_in_output": True}
        return {**marks, "stop_token_ids": []}

    def _answering_job(self, prompt: TokenIds, last_resort: bool) -> Job:
        room = self._room()
        wanted = self.request.min_tokens - self.outcome.reasoning_tokens
        # vLLM does not look for stop strings in the first `min_tokens`; there it takes an end at once first.
        least = 0 if self.request.apart and not last_resort else 1
        changes: dict[str, Any] = {"n": 1, "min_tokens": min(room, max(least, wanted))}
        if self.dialect.marks and self.request.thinks:
            changes["logit_bias"] = dict.fromkeys(self.dialect.marks, FORBID)
        if last_resort:
            changes |= {"allowed_token_ids": list(self.dialect.visible), "temperature": 0.0}
        name = "retry" if last_resort else "answer"
        return replace(self._job(name, prompt, room, changes), reasoning_ended=True)

    def _job(self, phase: str, prompt: TokenIds, room: int, changes: Mapping[str, Any]) -> Job:
        request = self.request
        return Job(
            f"{request.request_id}-{phase}",
            prompt,
            room,
            request.sampling,
            request.priority,
            stream=request.stream or phase == "think",
            changes={**request.changes, **changes},
            trace=request.trace.headers(),
        )


def _mark(reason: str, delta: Delta, cut: Cut) -> Piece:
    """The model's own `</think>`; a tool call ends the thought without one."""
    place, rows = slice(cut.kept, cut.kept + cut.mark), delta.logprobs
    text = CLOSE if reason == "natural" else ""
    return Piece("close", text, delta.token_ids[place], rows and rows[place])


def _visible(text: str) -> bool:
    """A person would see something of it; the parsers take the marks out."""
    return bool(MARKS.sub("", text).strip().strip("\ufffd"))


def _merged(pieces: Sequence[Piece], marks: Sequence[int] | None) -> Piece:
    """Those held back as one; with `marks` (token ids), without the white space and marks in front."""
    last = pieces[-1]
    text = "".join(piece.text for piece in pieces)
    ids = [token for piece in pieces for token in piece.token_ids]
    rows = [row for piece in pieces for row in piece.logprobs or ()]
    if marks is not None:
        text, front = FRONT.sub("", text, count=1), text
        spare = len(MARKS.findall(front)) - len(MARKS.findall(text))
        # A parser that met a mark's token would wait for its text.
        for place in [place for place, token in enumerate(ids) if token in marks][:spare][::-1]:
            del ids[place], rows[place : place + 1]
    shown = None if last.logprobs is None else rows
    return Piece("answer", text, ids, shown, last.finish_reason, last.stop_reason)


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if _visible(line)), "")
