"""One of a request's thoughts with its answer, and how sure the model was of it."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from gateway.thinking.calibration import Calibration
from gateway.thinking.checks import Check, Evidence, run_checks
from gateway.thinking.confidence import Confidence, Trace, components, score
from gateway.thinking.run import Piece, ThinkingRun
from gateway.thinking.steps import Step, failed_step_fraction, split_steps
from gateway.thinking.values import final_value

# DeepConf's 20 would cost four times the memory, and the tail of the ranks carries next to nothing.
TOP_K = 5
# ThinkBrake looks for `</think>` among the candidates.
TOP_K_EXIT = 20


class Sample:
    """`pieces()` runs it; the rest is there when they are through."""

    def __init__(self, index: int, run: ThinkingRun, top_k: int | None) -> None:
        self.index = index
        self.run = run
        self.status = (
            "running"  # completed | incomplete | consensus_cancelled | stopped_low_confidence
        )
        self.p_true: float | None = None  # the model's own verdict, where it was asked for
        size = run.dialect.vocabulary
        self.thought = None if top_k is None else Trace(size, top_k)
        self.answer = None if top_k is None else Trace(size, top_k)

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        async with aclosing(self.run.pieces()) as pieces:
            async for piece in pieces:
                self._measure(piece)
                yield piece
        truncated = self.run.outcome.finish_reason == "length"
        self.status = "incomplete" if truncated else "completed"

    def _measure(self, piece: Piece) -> None:
        """What was put there (the mark, the phrase, an extracted answer) is not the model's own."""
        trace = {"reasoning": self.thought, "answer": self.answer}.get(piece.phase)
        if trace is None or piece.logprobs is None:
            return
        drawn = [
            (token, row) for token, row in zip(piece.token_ids, piece.logprobs, strict=False) if row
        ]
        trace.add([token for token, _ in drawn], [row for _, row in drawn])

    @property
    def value(self) -> str | None:
        """The answer's value, where it has one that can be compared."""
        return final_value(self.run.outcome.answer)

    def steps(self) -> list[Step]:
        out = self.run.outcome
        certainty = None if self.thought is None else self.thought.certainty
        return split_steps(out.reasoning, out.marks, certainty)

    def checks(self, steps: list[Step], response_format: Any) -> list[Check]:
        out = self.run.outcome
        evidence = Evidence(
            reasoning=out.reasoning,
            answer=out.answer,
            answer_source=out.answer_source,
            end_reason=out.end_reason,
            finish_reason=out.finish_reason,
            steps=steps,
            response_format=response_format,
        )
        return run_checks(evidence)

    def confidence(
        self, calibration: Calibration | None, agreement: float | None = None
    ) -> Confidence | None:
        """None: no log-probabilities were asked for."""
        if self.thought is None or self.answer is None:
            return None
        out = self.run.outcome
        measured = components(
            self.thought,
            self.answer,
            forced=out.forced,
            looped=out.end_reason == "loop",
            truncated=out.finish_reason == "length",
            failed_step_fraction=failed_step_fraction(self.steps()),
            agreement=agreement,
            p_true=self.p_true,
        )
        return score(measured, calibration)

    @property
    def tokens(self) -> int:
        """Everything that was drawn or put there for this sample."""
        out = self.run.outcome
        thought = out.reasoning_tokens or len(
            self.run.thought.ids
        )  # the latter when it was stopped
        return thought + out.forced_tokens + out.answer_tokens + out.probe_tokens
