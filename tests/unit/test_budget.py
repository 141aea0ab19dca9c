"""The split of the output tokens into thought and answer."""

from itertools import product

import pytest

from gateway.thinking.budget import DEPTHS, MIN_TOTAL, NAMES, plan

LEVELS = range(len(DEPTHS))
TOTALS = (*range(1, 200), 256, 1000, 4096, 16_384, 131_072)
EXPLICIT = (None, 0, 1, 63, 4096, 10**9)
FORCED = (0, 12, 27, 120)


@pytest.mark.parametrize("level", LEVELS)
def test_thought_phrase_and_answer_fit_together(level: int) -> None:
    wrong = []
    for explicit, total, forced in product(EXPLICIT, TOTALS, FORCED):
        budget = plan(level, explicit, total, forced)
        # A thought that is skipped is not ended by the phrase either.
        spent = budget.answer_reserve + (budget.applied + forced if budget.applied else 0)
        if spent > total or budget.applied < 0 or budget.answer_reserve < 1:
            wrong.append((explicit, total, forced, budget))

    assert wrong == []


@pytest.mark.parametrize("total", range(1, MIN_TOTAL))
def test_with_too_few_tokens_nothing_is_thought(total: int) -> None:
    assert plan(5, 1000, total, 0).applied == 0


def test_no_room_at_all_is_no_negative_budget() -> None:
    assert [plan(3, 100, total, 27).applied for total in (0, -1, -5000)] == [0, 0, 0]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("explicit", [0, 1, 500])
def test_an_explicit_budget_beats_the_level(level: int, explicit: int) -> None:
    budget = plan(level, explicit, 10_000, 27)

    assert (budget.requested, budget.applied, budget.clamped) == (explicit, explicit, False)


def test_an_explicit_budget_that_does_not_fit_is_cut_and_says_so() -> None:
    budget = plan(3, 4000, 1000, 27)

    assert budget.clamped
    assert budget.applied == 1000 - 250 - 27


def test_a_level_that_does_not_fit_is_cut_without_a_word() -> None:
    budget = plan(5, None, 100, 27)

    assert (budget.applied, budget.clamped, budget.requested) == (23, False, None)


def test_a_deeper_level_never_thinks_less() -> None:
    for total in TOTALS:
        given = [plan(level, None, total, 27).applied for level in LEVELS]
        assert given == sorted(given), total


CAPS = [0, 1024, 4096, 8192, 16_384, 32_768]


@pytest.mark.parametrize(("level", "cap"), list(enumerate(CAPS)))
def test_each_level_has_its_cap(level: int, cap: int) -> None:
    assert plan(level, None, 10**6, 27).applied == cap


def test_every_level_has_a_name_and_max_is_the_deepest() -> None:
    assert NAMES == {
        "none": 0,
        "minimal": 1,
        "low": 2,
        "medium": 3,
        "high": 4,
        "xhigh": 5,
        "max": 5,
    }
