"""What one request cost, in tokens; read once, when it is over, however it ended.

Nothing is counted per chunk: whatever draws tokens leaves an object here that knows how many it drew.
"""

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from gateway.thinking.run import CLOSED_BY_MODEL, ThinkingRun


class Drawn(Protocol):
    """One generation inside an engine, read while it lives and after it."""

    @property
    def prompt(self) -> int: ...  # tokens; 0 for a sibling that shares another's prompt
    @property
    def cached(self) -> int: ...  # of them in the prefix cache
    @property
    def output(self) -> int: ...  # drawn so far
    @property
    def name(self) -> str: ...  # the request id that it was asked for under
    @property
    def first_at(
        self,
    ) -> float | None: ...  # its first token, on `time.perf_counter`; None: not known
    @property
    def last_at(self) -> float | None: ...  # its last one so far


@dataclass(frozen=True, slots=True)
class Cost:
    """Tokens. `prompt` includes `cached`; the mark between thought and answer is answer."""

    prompt: int = 0
    cached: int = 0
    thinking: int = 0
    answer: int = 0

    @property
    def total(self) -> int:
        return self.prompt + self.thinking + self.answer

    def told(self) -> dict[str, int]:
        """For a trace, where the output includes the thought."""
        output = self.thinking + self.answer
        return {
            "prompt": self.prompt,
            "cached": self.cached,
            "thinking": self.thinking,
            "output": output,
        }


class Meter:
    """Of one request. `notes` are its exchange's: the usage that its caller was told, its thinking runs."""

    def __init__(self, notes: Mapping[str, Any]) -> None:
        self.notes = notes
        self.drawn: list[Drawn] = []

    def cost(self) -> Cost:
        """The usage that the caller was told; for a request that did not end well, what the engine drew.

        The engine also draws what nobody is told of: a few tokens behind the end of a thought, an answer
        that shows nothing. That is not the caller's.
        """
        told: Mapping[str, Any] = self.notes.get("usage") or {}
        if not self.drawn and not told:
            return Cost()
        plan = self.notes.get("plan")
        runs: list[ThinkingRun] = plan.runs if plan else []
        prompt, cached = self._input(told, runs)
        output = max(told.get("completion_tokens", 0), sum(_output_of(run) for run in runs))
        if not runs or not (told or all(run.phase == "done" for run in runs)):
            output = max(output, sum(each.output for each in self.drawn))
        thinking = min(output, sum(len(run.thought.ids) for run in runs))
        return Cost(prompt, cached, thinking, output - thinking)

    def _input(self, told: Mapping[str, Any], runs: list[ThinkingRun]) -> tuple[int, int]:
        """Prompt tokens and those of them that were cached; siblings and phases share one prompt."""
        if runs:
            return runs[0].outcome.prompt_tokens, runs[0].outcome.cached_tokens
        prompt = sum(each.prompt for each in self.drawn)
        if told.get("prompt_tokens", 0) >= prompt:
            details = told.get("prompt_tokens_details") or {}
            return told["prompt_tokens"], details.get("cached_tokens", 0)
        return prompt, sum(each.cached for each in self.drawn)


def _output_of(run: ThinkingRun) -> int:
    """As vLLM's handlers count it in `usage`: thought, mark and answer. The phrase between them is ours."""
    out = run.outcome
    if out.end_reason in CLOSED_BY_MODEL:
        closed = len(run.thought.closing)
    else:
        closed = len(run.dialect.close) if run.request.thinks and out.answer_tokens else 0
    return len(run.thought.ids) + closed + out.answer_tokens


# Of the request being served, from the limits down to the engine. None: nobody asks.
METER: ContextVar[Meter | None] = ContextVar("meter", default=None)
