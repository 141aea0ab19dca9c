"""A thought while it comes: what belongs to it, and where it ends."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.engines.types import Delta
from gateway.thinking.dialect import CLOSE, CONTEXT, TOOL_CALL, Dialect

# From this share of the budget on, the end of a sentence is good enough (NVIDIA NIM's grace, before the
# limit instead of behind it, so the budget is never exceeded and a stream need not take text back).
GRACE_FROM = 0.9
LOOP_EVERY = 16  # tokens between two looks
# ThinkBrake (arXiv 2510.00546): at a sentence's end, `</think>` is nearly as likely as what follows.
EXIT_MARGIN = 0.5  # nats

Rows = Sequence[Mapping[int, Any] | None]


@dataclass(slots=True)
class Cut:
    """What of a delta belongs to the thought, and what came behind its end."""

    text: str
    kept: int  # tokens of the delta that belong to the thought
    reason: str | None = None  # why it ended; None: it goes on
    mark: int = 0  # tokens of the mark behind them
    behind: str = ""  # text behind the mark


@dataclass
class Thought:
    """Fed with deltas. Deterministic in the tokens: how they are grouped into deltas changes nothing."""

    dialect: Dialect
    budget: int
    looping: Callable[[Sequence[int]], bool]
    early_exit: bool = False  # by log-probability
    interrupt: str | None = None  # set from outside: why to end at the next token
    ids: list[int] = field(default_factory=list)
    closing: Sequence[int] = ()  # the model's own mark at the end
    marks: list[tuple[int, int]] = field(default_factory=list)  # (characters, tokens) so far
    _parts: list[str] = field(default_factory=list)
    _length: int = 0
    _held: str = ""  # may be the beginning of a mark

    @property
    def text(self) -> str:
        return "".join(self._parts)

    def take(self, delta: Delta) -> Cut:
        """Add what belongs to the thought; the cut has a reason when the thought is over."""
        before = self.ids[-CONTEXT:]
        cut = self._by_token(delta) if self.dialect.knows_marks else self._by_text(delta)
        if cut.reason and not cut.mark and cut.kept < len(delta.token_ids):
            cut.text = self.dialect.text_behind(before, delta.token_ids[: cut.kept])
        if cut.reason is None and _ended_by_eos(delta):
            cut.kept, cut.reason = cut.kept - 1, "eos"
            self.ids.pop()
        cut.text = self._held_back(cut)
        self.closing = delta.token_ids[cut.kept : cut.kept + cut.mark]
        self._parts.append(cut.text)
        self._length += len(cut.text)
        self.marks.append((self._length, len(self.ids)))
        return cut

    def _by_token(self, delta: Delta) -> Cut:
        (close,), (tool_call,) = self.dialect.close, self.dialect.tool_call
        rows = delta.logprobs
        for place, token in enumerate(delta.token_ids):
            if token == close:
                before, _, behind = delta.text.partition(CLOSE)
                return Cut(before, place, "natural", 1, behind)
            if token == tool_call:
                before, found, behind = delta.text.partition(TOOL_CALL)
                return Cut(before, place, "tool_call", 0, found + behind)
            if self.early_exit and rows is not None and self._sure(rows[place]):
                return Cut(delta.text, place, "early_exit")
            if reason := self._add(token):
                return Cut(delta.text, place + 1, reason)
        return Cut(delta.text, len(delta.token_ids))

    def _by_text(self, delta: Delta) -> Cut:
        pending = self._held + delta.text
        for mark, reason in ((CLOSE, "natural"), (TOOL_CALL, "tool_call")):
            before, found, behind = pending.partition(mark)
            if found:
                kept = min(len(delta.token_ids), self.budget - len(self.ids))
                self.ids.extend(delta.token_ids[:kept])
                self._held = ""
                whole = behind if reason == "natural" else found + behind
                return Cut(before, kept, reason, len(delta.token_ids) - kept, whole)
        for place, token in enumerate(delta.token_ids):
            if (cause := self._add(token)) is not None:
                return Cut(delta.text, place + 1, cause)
        return Cut(delta.text, len(delta.token_ids))

    def _held_back(self, cut: Cut) -> str:
        """Text that might be the beginning of a mark waits until it is known; at the end it is let go."""
        if self.dialect.knows_marks or cut.reason in ("natural", "tool_call"):
            return cut.text
        whole, self._held = self._held + cut.text, ""
        if cut.reason is not None:
            return whole
        size = max(_overlap(whole, CLOSE), _overlap(whole, TOOL_CALL))
        if size:
            whole, self._held = whole[:-size], whole[-size:]
        return whole

    def _add(self, token: int) -> str | None:
        self.ids.append(token)
        count = len(self.ids)
        if self.interrupt is not None:
            return self.interrupt
        if count >= self.budget:
            return "budget"
        if count >= GRACE_FROM * self.budget and token in self.dialect.sentence_ends:
            return "budget"
        return "loop" if count % LOOP_EVERY == 0 and self.looping(self.ids) else None

    def _sure(self, row: Mapping[int, Any] | None) -> bool:
        """Behind a sentence, the model would nearly as soon stop thinking as go on."""
        if not row or not self.ids or self.ids[-1] not in self.dialect.sentence_ends:
            return False
        end = row.get(self.dialect.close[0])
        top: float = max(entry.logprob for entry in row.values())
        return end is not None and top - end.logprob < EXIT_MARGIN


def _ended_by_eos(delta: Delta) -> bool:
    return delta.finish_reason == "stop" and delta.stop_reason is None and bool(delta.token_ids)


def _overlap(text: str, mark: str) -> int:
    """How many characters at the end of the text begin the mark."""
    sizes = range(min(len(text), len(mark) - 1), 0, -1)
    return next((size for size in sizes if mark.startswith(text[-size:])), 0)
