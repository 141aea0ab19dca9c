"""Where a thought ends, token by token, however the tokens come."""

import itertools
import random
from collections.abc import Iterable, Sequence

import pytest

from gateway.engines.types import Delta
from gateway.thinking.dialect import Dialect
from gateway.thinking.thought import EXIT_MARGIN, LOOP_EVERY, Cut, Thought
from tests.scripted import DIALECTS, KNOWS_MARKS, OCTETS, PLAIN_TEXT, Entry, said, tokens

CLOSE, TOOL_CALL = "</think>", "<tool_call>"
EOS = 0
each_dialect = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=list(DIALECTS))


def never(ids: Sequence[int]) -> bool:
    return False


def thought_of(dialect: Dialect, budget: int = 1000) -> Thought:
    return Thought(dialect, budget, never)


def deltas(dialect: Dialect, text: str, sizes: Iterable[int] = itertools.repeat(1)) -> list[Delta]:
    script = said(dialect, dialect.encode(text), sizes)
    assert script.ids is not None
    return [Delta(0, text, ids, None) for text, ids in zip(script.texts, script.ids, strict=True)]


def feed(thought: Thought, given: Iterable[Delta]) -> Cut:
    """Until the thought is over; the last cut."""
    for delta in given:
        cut = thought.take(delta)
        if cut.reason is not None:
            break
    return cut


def fed(text: str, dialect: Dialect = KNOWS_MARKS, budget: int = 1000) -> tuple[str, str | None]:
    thought = thought_of(dialect, budget)
    cut = feed(thought, deltas(dialect, text))
    return thought.text, cut.reason


def random_text(dice: random.Random) -> str:
    words = ("ab", "c. ", "é", "€", "好。", "\n", " ", "</", "<thin", "?", "d")
    body = "".join(dice.choices(words, k=dice.randrange(1, 30)))
    return body + dice.choice(["", CLOSE, TOOL_CALL, f"{CLOSE}\n\nso{CLOSE}", f"{TOOL_CALL}{{}}"])


def outcome(thought: Thought, given: Iterable[Delta]) -> tuple[object, ...]:
    """Everything that came of it, and what was left for an answer that goes on behind it."""
    kept, reason, behind, rest = 0, None, "", 0
    for delta in given:
        if reason is None:
            cut = thought.take(delta)
            kept, reason, behind = kept + cut.kept, cut.reason, cut.behind
            rest = len(delta.token_ids) - cut.kept - cut.mark
        else:
            behind, rest = behind + delta.text, rest + len(delta.token_ids)
    assert kept == len(thought.ids) <= thought.budget
    assert "\ufffd" not in thought.text
    goes_on = reason in ("natural", "tool_call")
    return thought.text, tuple(thought.ids), reason, goes_on and (behind, rest)


@each_dialect
@pytest.mark.parametrize("seed", range(40))
def test_how_tokens_are_grouped_changes_nothing(dialect: Dialect, seed: int) -> None:
    dice = random.Random(seed)
    text, budget, loop_at = random_text(dice), dice.randrange(1, 60), dice.randrange(16, 100)
    groupings: list[list[int]] = [[], [len(dialect.encode(text))]]
    groupings += [[dice.randrange(1, 9) for _ in text] for _ in range(6)]

    found = set()
    for sizes in groupings:
        thought = Thought(dialect, budget, lambda ids: len(ids) >= loop_at)
        given = deltas(dialect, text, itertools.chain(sizes, itertools.repeat(1)))
        found.add(outcome(thought, [*given, Delta(0, "", (), "stop")]))

    assert len(found) == 1, found


@each_dialect
@pytest.mark.parametrize("budget", [1, 2, 5, 7, 8])
@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_budget_is_kept_to_the_token_also_inside_a_word(
    dialect: Dialect, budget: int, size: int
) -> None:
    thought = thought_of(dialect, budget)

    cut = feed(thought, deltas(dialect, "Considerations", itertools.repeat(size)))

    assert (thought.text, cut.reason) == ("Considerations"[:budget], "budget")
    assert len(thought.ids) == budget


@pytest.mark.parametrize("budget", [2, 3, 4])
@pytest.mark.parametrize("size", [1, 2, 100])
def test_half_a_character_is_drawn_and_not_shown(budget: int, size: int) -> None:
    thought = thought_of(OCTETS, budget)

    feed(thought, deltas(OCTETS, "a€€", itertools.repeat(size)))

    assert thought.text == ("a€" if budget == 4 else "a")
    assert thought.ids == list(OCTETS.encode("a€€")[:budget])


@each_dialect
@pytest.mark.parametrize(
    ("before", "cut_at"), [(88, None), (89, 90), (93, 94)], ids=["early", "at 90 %", "later"]
)
def test_from_nine_tenths_on_the_end_of_a_sentence_is_enough(
    dialect: Dialect, before: int, cut_at: int | None
) -> None:
    text = "x" * before + "." + "y" * 100

    thought, reason = fed(text, dialect, 100)

    assert (thought, reason) == (text[: cut_at or 100], "budget")


@each_dialect
def test_the_models_own_end_at_the_last_token_of_the_budget_is_natural(dialect: Dialect) -> None:
    text = "x" * 10
    whole = len(dialect.encode(text + CLOSE))
    budget = 11 if dialect.knows_marks else whole

    assert fed(text + CLOSE, dialect, budget) == (text, "natural")


@each_dialect
@pytest.mark.parametrize("text", ["a < b", "a </thi", "<tool", "</thinking>", "a <"])
def test_what_only_looks_like_a_mark_stays_in_the_thought(dialect: Dialect, text: str) -> None:
    assert fed(f"{text} so{CLOSE}", dialect) == (f"{text} so", "natural")


@pytest.mark.parametrize("budget", range(1, 9))
def test_a_mark_cut_in_two_by_the_budget_is_text(budget: int) -> None:
    assert fed(f"a{CLOSE}", PLAIN_TEXT, budget) == (f"a{CLOSE}"[:budget], "budget")


def test_the_beginning_of_a_mark_is_not_shown_before_it_is_known() -> None:
    thought = thought_of(PLAIN_TEXT)

    shown = [thought.take(delta).text for delta in deltas(PLAIN_TEXT, "a</thx")]

    assert shown == ["a", "", "", "", "", "</thx"]


@each_dialect
@pytest.mark.parametrize("text", ["x" * LOOP_EVERY, "x" * (LOOP_EVERY * 3 + 5)])
def test_a_loop_ends_the_thought_at_the_next_look(dialect: Dialect, text: str) -> None:
    thought = Thought(dialect, 1000, lambda ids: True)

    cut = feed(thought, deltas(dialect, text, itertools.repeat(7)))

    assert (thought.text, cut.reason) == ("x" * LOOP_EVERY, "loop")


@each_dialect
@pytest.mark.parametrize("stop_reason", [None, EOS], ids=["the eos", "another end of text"])
@pytest.mark.parametrize("budget", [1000, 3], ids=["in time", "at the budget"])
def test_an_end_of_text_is_no_part_of_the_thought(
    dialect: Dialect, stop_reason: int | None, budget: int
) -> None:
    thought = thought_of(dialect, budget)

    cut = thought.take(Delta(0, "ab", (*dialect.encode("ab"), EOS), "stop", stop_reason))

    assert (thought.ids, thought.text) == (list(dialect.encode("ab")), "ab")
    assert (cut.kept, cut.reason) == (2, "eos")


@each_dialect
def test_an_end_of_text_without_a_token_lets_go_of_what_was_held(dialect: Dialect) -> None:
    thought = thought_of(dialect)
    feed(thought, deltas(dialect, "a <"))

    cut = thought.take(Delta(0, "", (), "stop"))

    assert (thought.text, cut.reason) == ("a <", "eos")


@pytest.mark.parametrize(("finish", "reason"), [("length", "budget"), ("repetition", "loop")])
def test_the_engines_own_end_has_a_name(finish: str, reason: str) -> None:
    thought = thought_of(KNOWS_MARKS)

    assert thought.take(Delta(0, "ab", tokens("ab"), finish)).reason == reason


@each_dialect
def test_told_from_outside_it_ends_at_the_next_token(dialect: Dialect) -> None:
    thought = thought_of(dialect)
    thought.take(Delta(0, "ab", dialect.encode("ab"), None))
    thought.interrupt = "answer_now"

    cut = thought.take(Delta(0, "cd", dialect.encode("cd"), None))

    assert (thought.text, cut.reason) == ("abc", "answer_now")


def exiting(text: str, margins: Sequence[float | None], group: int = 1) -> tuple[str, str | None]:
    """Each token has a row; `</think>` is `margin` nats behind it, or not among the candidates."""
    (close,) = tokens(CLOSE)
    thought = Thought(KNOWS_MARKS, 1000, never, early_exit=True)
    ids = tokens(text)
    rows = [
        {token: Entry(-1.0)} | ({} if margin is None else {close: Entry(-1.0 - margin)})
        for token, margin in zip(ids, margins, strict=True)
    ]
    cut = Cut("", 0)
    for at in range(0, len(ids), group):
        part = slice(at, at + group)
        cut = thought.take(Delta(0, text[part], ids[part], None, logprobs=rows[part]))
        if cut.reason:
            break
    return thought.text, cut.reason


FAR, NEAR = EXIT_MARGIN + 0.01, EXIT_MARGIN - 0.01


@pytest.mark.parametrize("group", [1, 2, 5])
@pytest.mark.parametrize(
    ("margins", "ended"),
    [
        ([FAR, FAR, FAR, NEAR, FAR], "ab."),
        ([NEAR, NEAR, NEAR, FAR, NEAR], None),  # never inside a sentence, nor before the first
        ([None] * 5, None),
        ([FAR, FAR, FAR, -3.0, FAR], "ab."),  # likelier than what was drawn
    ],
    ids=["behind a sentence", "elsewhere", "not a candidate", "likelier"],
)
def test_early_exit_fires_right_behind_a_sentence_when_the_end_is_near(
    margins: list[float | None], ended: str | None, group: int
) -> None:
    expected = (ended, "early_exit") if ended else ("ab.cd", None)

    assert exiting("ab.cd", margins, group) == expected


def test_early_exit_without_log_probabilities_never_fires() -> None:
    thought = Thought(KNOWS_MARKS, 1000, never, early_exit=True)

    assert feed(thought, deltas(KNOWS_MARKS, "One. Two. Three.")).reason is None
