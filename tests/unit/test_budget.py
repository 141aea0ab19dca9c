"""The split of the output tokens into thought and answer."""

from itertools import product

import pytest

from gateway.thinking.budget import DEPTHS, MIN_TOTAL, NAMES, Budget, Wish, plan

LEVELS = range(len(DEPTHS))
TOTALS = (*range(1, 200), 256, 1000, 4096, 16_384, 131_072)
EXPLICIT = (None, 0, 1, 63, 4096, 10**9)
CEILINGS = (None, 0, 1, 500)
FORCED = (0, 12, 27, 120)


@pytest.mark.parametrize("level", LEVELS)
def test_thought_phrase_and_answer_fit_together(level: int) -> None:
    wrong = []
    for explicit, ceiling, total, forced in product(EXPLICIT, CEILINGS, TOTALS, FORCED):
        budget = plan(Wish(level, explicit, ceiling), total, forced)
        # A thought that is skipped is not ended by the phrase either.
        spent = budget.answer_reserve + (budget.applied + forced if budget.applied else 0)
        if spent > total or budget.applied < 0 or budget.answer_reserve < 1:
            wrong.append((explicit, ceiling, total, forced, budget))

    assert wrong == []


@pytest.mark.parametrize("total", range(1, MIN_TOTAL))
def test_with_too_few_tokens_nothing_is_thought(total: int) -> None:
    assert plan(Wish(5, 1000), total, 0).applied == 0


def test_no_room_at_all_is_no_negative_budget() -> None:
    assert [plan(Wish(3, 100), total, 27).applied for total in (0, -1, -5000)] == [0, 0, 0]


@pytest.mark.parametrize("level", LEVELS[1:])
@pytest.mark.parametrize("explicit", [0, 1, 500])
def test_an_explicit_budget_beats_the_level(level: int, explicit: int) -> None:
    budget = plan(Wish(level, explicit), 10_000, 27)

    assert (budget.requested, budget.applied, budget.clamped) == (explicit, explicit, False)


def test_no_thought_beats_an_explicit_budget() -> None:
    assert plan(Wish(0, 500), 10_000, 27).applied == 0


@pytest.mark.parametrize("wish", [Wish(3, 4000), Wish(5)], ids=["explicit", "by depth"])
def test_less_than_was_asked_is_told(wish: Wish) -> None:
    budget = plan(wish, 1000, 27)

    assert (budget.applied, budget.clamped) == (1000 - 250 - 27, True)
    assert budget.requested == wish.explicit


@pytest.mark.parametrize(
    ("wish", "applied", "clamped"),
    [
        (Wish(5, None, 300), 300, True),
        (Wish(3, 400, 300), 300, True),
        (Wish(3, 200, 300), 200, False),
        (Wish(0, None, 300), 0, False),
        (Wish(3, 400, 0), 0, True),
    ],
)
def test_the_operators_ceiling_beats_everything(wish: Wish, applied: int, clamped: bool) -> None:
    budget = plan(wish, 10_000, 27)

    assert (budget.applied, budget.clamped) == (applied, clamped)


def test_a_deeper_level_never_thinks_less() -> None:
    for total in TOTALS:
        given = [plan(Wish(level), total, 27).applied for level in LEVELS]
        assert given == sorted(given), total


CAPS = [0, 1024, 4096, 8192, 16_384, 32_768]


@pytest.mark.parametrize(("level", "cap"), list(enumerate(CAPS)))
def test_each_level_has_its_cap(level: int, cap: int) -> None:
    assert plan(Wish(level), 10**6, 27) == Budget(None, cap, False, 4096)


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
