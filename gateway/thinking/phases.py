"""A run's phases as spans of the request's trace: think, close (when the thought was cut), answer."""

from typing import TYPE_CHECKING

from gateway.observability.spans import Phases

if TYPE_CHECKING:
    from gateway.thinking.run import Outcome, Request


class RunPhases(Phases):
    """Those of one run; they tell what came of it."""

    def __init__(self, request: "Request") -> None:
        super().__init__(request.trace, {"gateway.engine_request": request.request_id})

    def thought(self, out: "Outcome") -> None:
        """The thought is over."""
        told = {
            "gateway.thinking.tokens": out.reasoning_tokens,
            "gateway.thinking.budget": out.budget.applied,
            "gateway.thinking.end_reason": out.end_reason,
            "gateway.thinking.forced": out.forced,
        }
        self.now.note(told)
        self.begin("close" if out.forced else "answer")

    def closed(self, out: "Outcome") -> None:
        """What stands between thought and answer is put there; the answer is asked for."""
        if self.name == "close":
            self.now.note({"gateway.closing_tokens": out.forced_tokens})
        self.begin("answer")

    def answered(self, out: "Outcome") -> None:
        told = {
            "gateway.answer.tokens": out.answer_tokens,
            "gateway.answer.source": out.answer_source,
            "gateway.answer.finish_reason": out.finish_reason,
        }
        self.now.note(told)
