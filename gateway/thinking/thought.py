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
# Why the engine ended it; anything else is the model's end of text.
FINISHED = {"length": "budget", "repetition": "loop"}

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
        ids = delta.token_ids[:-1] if self._ends_text(delta) else delta.token_ids
        cut = self._by_token(delta, ids) if self.dialect.knows_marks else self._by_text(delta, ids)
        if cut.reason is None and delta.finish_reason is not None:
            cut.reason = FINISHED.get(delta.finish_reason, "eos")
        cut.text = self._held_back(cut)
        self.closing = delta.token_ids[cut.kept : cut.kept + cut.mark]
        self._parts.append(cut.text)
        self._length += len(cut.text)
        self.marks.append((self._length, len(self.ids)))
        return cut

    def _ends_text(self, delta: Delta) -> bool:
        """The last token ends the whole text (there may be several such); it is no part of a thought."""
        if delta.finish_reason != "stop" or isinstance(delta.stop_reason, str):
            return False
        marks = (*self.dialect.close, *self.dialect.tool_call) if self.dialect.knows_marks else ()
        return bool(delta.token_ids) and delta.token_ids[-1] not in marks

    def _by_token(self, delta: Delta, ids: Sequence[int]) -> Cut:
        (close,), (tool_call,) = self.dialect.close, self.dialect.tool_call
        before_ids, rows = self.ids[-CONTEXT:], delta.logprobs
        for place, token in enumerate(ids):
            if token == close:
                before, _, behind = delta.text.partition(CLOSE)
                return Cut(before, place, "natural", 1, behind)
            if token == tool_call:
                before, found, behind = delta.text.partition(TOOL_CALL)
                return Cut(before, place, "tool_call", 0, found + behind)
            sure = self.early_exit and rows is not None and self._sure(rows[place])
            kept = place if sure else place + 1
            if reason := "early_exit" if sure else self._add(token):
                whole = kept == len(ids)
                text = delta.text if whole else self.dialect.text_behind(before_ids, ids[:kept])
                return Cut(text, kept, reason)
        return Cut(delta.text, len(ids))

    def _by_text(self, delta: Delta, ids: Sequence[int]) -> Cut:
        """The mark's own tokens count as thought: nobody could know while they came."""
        pending, behind = self._held, delta.text
        for place, (token, size) in enumerate(zip(ids, self._sizes(delta, ids), strict=False)):
            pending, behind = pending + behind[:size], behind[size:]
            for mark, reason in ((CLOSE, "natural"), (TOOL_CALL, "tool_call")):
                before, found, rest = pending.partition(mark)
                if found:
                    self.ids.append(token)
                    said = rest if reason == "natural" else found + rest
                    return Cut(before, place + 1, reason, 0, said + behind)
            if (cause := self._add(token)) is not None:
                return Cut(pending, place + 1, cause)
        return Cut(pending + behind, len(ids))

    def _sizes(self, delta: Delta, ids: Sequence[int]) -> list[int]:
        """How many characters of the delta's text came with each of its tokens; the last has the rest."""
        known = [*self.ids[-CONTEXT:], *ids]
        ends = range(len(known) - len(ids), len(known) - 1)
        sizes = [len(self.dialect.text_behind(known[:end], [known[end]])) for end in ends]
        return [*sizes, len(delta.text)]

    def _held_back(self, cut: Cut) -> str:
        """Text that might be the beginning of a mark waits until it is known; at the end it is let go."""
        if self.dialect.knows_marks or cut.reason is not None:
            return cut.text
        size = max(_overlap(cut.text, CLOSE), _overlap(cut.text, TOOL_CALL))
        shown = len(cut.text) - size
        self._held = cut.text[shown:]
        return cut.text[:shown]

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


def _overlap(text: str, mark: str) -> int:
    """How many characters at the end of the text begin the mark."""
    sizes = range(min(len(text), len(mark) - 1), 0, -1)
    return next((size for size in sizes if mark.startswith(text[-size:])), 0)
