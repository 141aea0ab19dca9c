"""Where a request's trace is told what happens; everything here does nothing while tracing is off.

The layers write `trace_of(notes).child("auth")` and the like. With tracing off that is `OFF`, which makes no
object and looks at no clock; `traces.py` has the real ones and is imported only when tracing is on.

Spans are handed on by hand and never made current: between two chunks a generator's current span would
be the one of whoever reads it.
"""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from starlette.types import Scope

    from gateway.asgi import Exchange

Attributes = Mapping[str, Any]


class Branch:
    """A span under which others are made. This one does nothing."""

    trace_id = ""

    def child(self, name: str, attributes: Attributes | None = None) -> "Branch":
        """A span under this one, from now until its `with` block or its `end()`."""
        return self

    def inference(self, operation: str, model: str, request: Any) -> "Branch":
        """The span of one generation, by OpenTelemetry's GenAI conventions; `request` is the body."""
        return self

    def note(self, attributes: Attributes) -> None:
        """More of what is known; None values are left out."""

    def answered(self, usage: Mapping[str, int], reasons: Sequence[str | None]) -> None:
        """Of an inference: tokens (`prompt`, `cached`, `thinking`, `output`) and finish reasons."""

    def said(self, texts: Sequence[str]) -> None:
        """Of an inference: the answers, kept only where the operator asked for prompts in traces."""

    def failed(self, kind: str) -> None:
        """It ended in an error of this kind."""

    def headers(self) -> Mapping[str, str] | None:
        """W3C trace context for whatever works below this span; None: there is no trace."""
        return None

    def end(self) -> None:
        """Safe to call twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None


OFF = Branch()


def trace_of(notes: Mapping[str, Any]) -> Branch:
    """The span of the whole request, from its exchange's notes."""
    branch: Branch = notes.get("trace", OFF)
    return branch


class Phases:
    """Spans under a branch, one after the other."""

    def __init__(self, branch: Branch, attributes: Attributes) -> None:
        self.branch = branch
        self.attributes = attributes  # of each
        self.name = ""
        self.now: Branch = OFF

    def begin(self, name: str) -> None:
        """Ends the one before; a phase that is on already goes on."""
        if name != self.name:
            self.now.end()
            self.name, self.now = name, self.branch.child(name, self.attributes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: Any) -> None:
        self.now.__exit__(*failure)


class Tracer:
    """Begins and ends the span of each request. This one does nothing."""

    def begin(self, exchange: "Exchange", scope: "Scope") -> None:
        """Puts the request's branch into the exchange's notes."""

    def observe(self, exchange: "Exchange") -> None:
        """The exchange is over."""

    async def aclose(self) -> None:
        """Sends what waits."""


UNTRACED = Tracer()
