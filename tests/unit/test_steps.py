"""A thought cut into steps: nothing lost, nothing torn, every token in exactly one."""

import itertools
import random

import pytest

from gateway.thinking.steps import MAX_STEP, Step, failed_step_fraction, kind_of, split_steps

WORDS = [
    "Wait,",
    "so",
    "2 + 2 = 4.",
    "Therefore",
    "```",
    "$$",
    "- item",
    "\n",
    "\n\n",
    "word " * 20,
]


def marks_of(text: str, dice: random.Random) -> list[tuple[int, int]]:
    """As deltas would leave them: characters and tokens so far."""
    marks, place, tokens = [], 0, 0
    while place < len(text):
        place = min(len(text), place + dice.randint(1, 9))
        tokens += dice.randint(1, 3)
        marks.append((place, tokens))
    return marks


@pytest.mark.parametrize("seed", range(40))
def test_every_token_is_in_exactly_one_step_and_no_text_is_lost(seed: int) -> None:
    dice = random.Random(seed)
    text = " ".join(dice.choices(WORDS, k=dice.randint(1, 60)))
    marks = marks_of(text, dice)

    steps = split_steps(text, marks)

    spans = [step.tokens for step in steps]
    assert "".join("".join(step.text for step in steps).split()) == "".join(text.split())
    if steps:
        assert spans[0][0] == 0 and spans[-1][1] == marks[-1][1]
        assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))
        assert all(start <= end for start, end in spans)
    assert [step.index for step in steps] == list(range(len(steps)))


def test_no_text_is_no_steps() -> None:
    assert split_steps("", []) == [] == split_steps(" \n\n ", [(4, 2)])


PARAGRAPH = "This is long enough to be a step of its own, is it not?"


def texts(thought: str) -> list[str]:
    return [step.text for step in split_steps(thought, [(len(thought), 9)])]


def test_blank_lines_part_steps_and_short_ones_join_their_neighbour() -> None:
    assert texts(f"{PARAGRAPH}\n\n{PARAGRAPH}") == [PARAGRAPH, PARAGRAPH]
    assert texts(f"{PARAGRAPH}\n\nShort.") == [f"{PARAGRAPH}\n\nShort."]
    assert texts(f"Short.\n\n{PARAGRAPH}") == [f"Short.\n\n{PARAGRAPH}"]


@pytest.mark.parametrize(
    "whole",
    [
        f"```\n{PARAGRAPH}\n\n{PARAGRAPH}\n```",
        f"$$\n{PARAGRAPH}\n\n{PARAGRAPH}\n$$",
        f"- {PARAGRAPH}\n\n- {PARAGRAPH}\n\n- {PARAGRAPH}",
    ],
    ids=["code", "formula", "list"],
)
def test_code_formulas_and_lists_stay_whole(whole: str) -> None:
    assert texts(whole) == [whole]


def test_a_long_paragraph_is_cut_behind_sentences() -> None:
    steps = texts("One sentence of some words. " * 200)

    assert len(steps) > 3 and all(step.endswith("words.") for step in steps)
    assert all(len(step) <= MAX_STEP for step in steps)


def test_hostile_text_is_cut_in_linear_time() -> None:
    for text in ("\n" * 100_000, "x" * 100_000, "```\n" * 30_000, "$" * 100_000, "- " * 50_000):
        assert sum(len(step.text) for step in split_steps(text, [(len(text), 5)])) <= len(text)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Wait, that is not so.", "backtrack"),
        ("Hmm. No.", "backtrack"),
        ("Let me check this.", "verify"),
        ("Alternatively, we could", "alternative"),
        ("Therefore it is 4.", "conclude"),
        ("It is \\boxed{4}", "conclude"),
        ("Okay, the user wants", "plan"),
        ("Then 3 * 4 is", "compute"),
        ("Birds sing.", "other"),
    ],
)
def test_kinds_are_told_by_the_beginning(text: str, kind: str) -> None:
    assert kind_of(text) == kind


def test_confidence_is_the_mean_of_a_steps_tokens() -> None:
    text = f"{PARAGRAPH}\n\n{PARAGRAPH}"
    marks = [(len(PARAGRAPH) + 2, 2), (len(text), 4)]

    known = split_steps(text, marks, [0.2, 0.4, 1.0, 0.0])
    short = split_steps(text, marks, [0.2])

    assert [step.confidence for step in known] == [0.3, 0.5]
    assert [step.confidence for step in short] == [0.2, None]


def test_the_failed_step_fraction_counts_what_is_taken_back() -> None:
    steps = [Step(i, kind, "", (0, 0), None) for i, kind in enumerate(["plan", "backtrack"])]

    assert failed_step_fraction(steps) == 0.5
    assert failed_step_fraction(steps[:1]) == failed_step_fraction([]) == 0.0
