"""A thought cut into steps. Kinds by the first words, as ReasonOps (arXiv 2605.29192) found them."""

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

MIN_STEP, MAX_STEP = 40, 1500  # characters
FENCES = ("```", "$$")
SENTENCE_END = re.compile(r"[.!?。！？][\s\"')\]]")
LIST_ITEM = re.compile(r"\s{0,8}(?:[-*+]|\d{1,3}[.)])\s")
COMPUTES = re.compile(r"\d\s*[-+*/×÷=^]\s*\d|=")
# Beginning -> kind; the first that fits, so longer ones come first.
PIVOTS = (
    (
        "backtrack",
        ("wait", "hmm", "no,", "no ", "actually", "oops", "that's wrong", "scratch that"),
    ),
    ("verify", ("let me check", "let me verify", "let's check", "let's verify", "check", "verify")),
    ("verify", ("double-check", "to check", "to verify", "checking", "let me double")),
    ("alternative", ("alternatively", "maybe", "perhaps", "another way", "another approach")),
    ("alternative", ("or maybe", "what if", "suppose")),
    (
        "conclude",
        ("so the answer", "so, the answer", "therefore", "thus", "hence", "in conclusion"),
    ),
    ("conclude", ("the answer is", "the final answer", "final answer", "in summary")),
    (
        "plan",
        ("first", "we need", "i need", "okay", "ok,", "let's", "let me", "to solve", "the goal"),
    ),
    ("plan", ("the question", "the problem", "the user", "step 1", "next,")),
)


@dataclass(frozen=True, slots=True)
class Step:
    """`tokens` is [start, end) in the thought; `confidence` the mean certainty of them, 0 to 1."""

    index: int
    kind: str  # plan | compute | alternative | verify | backtrack | conclude | other
    text: str
    tokens: tuple[int, int]
    confidence: float | None


def split_steps(
    text: str, marks: Sequence[tuple[int, int]], certainty: Sequence[float] | None = None
) -> list[Step]:
    """The steps of a thought.

    `marks` are (characters, tokens) after each delta, both rising; `certainty` has a value per token.
    """
    spans = [span for block in _merged(text) for span in _pieces(text, *block)]
    characters = [mark[0] for mark in marks]
    steps, start = [], 0
    for index, (begin, end) in enumerate(spans):
        place = bisect_left(characters, end)
        stop = marks[min(place, len(marks) - 1)][1] if marks else 0
        stop = marks[-1][1] if marks and index == len(spans) - 1 else max(start, stop)
        part = text[begin:end].strip()
        steps.append(Step(index, kind_of(part), part, (start, stop), _mean(certainty, start, stop)))
        start = stop
    return steps


def failed_step_fraction(steps: Sequence[Step]) -> float:
    """Share of steps that the next one takes back (after arXiv 2509.19284)."""
    taken_back = sum(step.kind == "backtrack" for step in steps[1:])
    return taken_back / len(steps) if steps else 0.0


def kind_of(text: str) -> str:
    """By how the step begins."""
    start = text[:80].casefold().lstrip("*#-> \t\n")
    for kind, beginnings in PIVOTS:
        if start.startswith(beginnings):
            return kind
    if "\\boxed" in text:
        return "conclude"
    return "compute" if COMPUTES.search(text) else "other"


def _mean(certainty: Sequence[float] | None, start: int, stop: int) -> float | None:
    values = [] if certainty is None else certainty[start:stop]
    return round(sum(values) / len(values), 4) if len(values) else None


def _blocks(text: str) -> Iterator[tuple[int, int]]:
    """Spans between blank lines; a fence, a formula and a list stay in one."""
    begin = end = 0
    fence: str | None = None
    blank = in_list = False
    for line in text.splitlines(keepends=True):
        stripped = line.strip()
        item = bool(LIST_ITEM.match(line))
        if blank and stripped and fence is None and not (in_list and item) and end > begin:
            yield begin, end
            begin = end
        if stripped:
            in_list, blank = item, False
        else:
            blank = True
        fence = _fence(fence, stripped)
        end += len(line)
    if end > begin:
        yield begin, end


def _fence(fence: str | None, line: str) -> str | None:
    """Which fence is open behind this line."""
    for mark in FENCES:
        if line.count(mark) % 2 and fence in (None, mark):
            return mark if fence is None else None
    return fence


def _merged(text: str) -> list[tuple[int, int]]:
    """Blocks, the short ones joined to what follows, the last one to what came before."""
    spans: list[tuple[int, int]] = []
    for begin, end in _blocks(text):
        if spans and spans[-1][1] - spans[-1][0] < MIN_STEP:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((begin, end))
    if len(spans) > 1 and spans[-1][1] - spans[-1][0] < MIN_STEP:
        last = spans.pop()
        spans[-1] = (spans[-1][0], last[1])
    return [span for span in spans if text[span[0] : span[1]].strip()]


def _pieces(text: str, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Too long a block, cut behind sentences, or else at white space."""
    while end - begin > MAX_STEP:
        window = text[begin : begin + MAX_STEP]
        ends = [found.end() for found in SENTENCE_END.finditer(window, MAX_STEP // 3)]
        cut = ends[-1] if ends else window.rfind(" ") + 1
        cut = cut if cut > MIN_STEP else MAX_STEP
        yield begin, begin + cut
        begin += cut
    if text[begin:end].strip():
        yield begin, end
