"""Which answer wins, and when the vote is over."""

import math
import random

import pytest

from gateway.thinking.vote import (
    TEMPERATURE,
    Ballot,
    consensus,
    decide,
    low_confidence_threshold,
    stays,
)


def ballots(*cast: tuple[str | None, float]) -> list[Ballot]:
    return [Ballot(value, weight, index) for index, (value, weight) in enumerate(cast)]


def test_equal_values_vote_together_however_they_are_written() -> None:
    verdict = decide(ballots(("42", 0.5), ("7", 0.6), ("84/2", 0.55), ("42.0", 0.4)))

    assert (verdict.winner, verdict.value) == (2, "84/2")
    assert verdict.agreement == pytest.approx(4 / 6, abs=1e-4)


def test_the_majority_wins_over_a_slightly_surer_one() -> None:
    assert decide(ballots(("1", 0.5), ("2", 0.7), ("1", 0.4))).winner == 0


def test_a_much_surer_one_wins_over_the_majority() -> None:
    verdict = decide(ballots(("1", 0.1), ("2", 0.95), ("1", 0.1)))

    assert verdict.winner == 1
    assert verdict.agreement == pytest.approx(2 / 5)


def test_between_equals_the_surest_sample_wins_then_the_first() -> None:
    assert decide(ballots(("1", 0.5), ("2", 0.6))).winner == 1
    assert decide(ballots(("1", 0.5), ("2", 0.5))).winner == 0
    assert decide(ballots(("1", 0.2), ("1", 0.9), ("1", 0.9))).winner == 1


def test_free_texts_are_not_voted_on() -> None:
    verdict = decide(ballots((None, 0.3), (None, 0.8), (None, 0.8)))

    assert (verdict.winner, verdict.value, verdict.agreement, verdict.votes) == (1, None, None, {})


def test_a_text_without_value_counts_against_agreement_and_never_wins() -> None:
    verdict = decide(ballots((None, 0.99), ("5", 0.1)))

    assert (verdict.winner, verdict.agreement) == (1, 0.5)


def test_the_winner_is_named_by_its_index_not_by_its_place() -> None:
    assert decide([Ballot("1", 0.5, 7), Ballot("1", 0.6, 3)]).winner == 3


def test_nobody_voted() -> None:
    with pytest.raises(ValueError, match="empty"):
        decide([])


@pytest.mark.parametrize("seed", range(20))
def test_weights_are_a_softmax(seed: int) -> None:
    rng = random.Random(seed)
    cast = ballots(*((rng.choice("ABC"), rng.random()) for _ in range(rng.randint(1, 8))))
    masses = [math.exp(ballot.weight / TEMPERATURE) for ballot in cast]
    plain: dict[str, float] = {}
    for ballot, mass in zip(cast, masses, strict=True):
        key = str(ballot.value).lower()
        plain[key] = plain.get(key, 0) + mass / sum(masses)
    best = max(plain, key=lambda value: plain[value])

    verdict = decide(cast)

    assert verdict.votes == pytest.approx(plain, abs=1e-4)
    assert str(verdict.value).lower() == best
    surest = max(ballot.weight for ballot in cast if ballot.value == verdict.value)
    assert cast[verdict.winner].weight == surest
    assert decide(cast[::-1]) == verdict


@pytest.mark.parametrize(
    ("values", "n_total", "over"),
    [
        ([], 5, False),
        (["1"], 1, False),  # one is no consensus
        (["1", "1"], 2, True),
        (["1", "1"], 3, True),  # the third cannot overtake
        (["1", "1"], 5, False),
        (["1", "2"], 2, False),
        (["1", "2", "1"], 3, True),
        (["1", "1", "1"], 16, True),  # all of at least three
        (["1", "1.0", "2/2"], 16, True),
        (["1", "1", "1", "2"], 16, False),
        (["1"] * 6 + ["2"], 16, True),  # P = 0.965
        (["1"] * 5 + ["2"], 16, False),  # P = 0.9375
        ([None, None, None], 4, False),
        (["1", None, None], 3, False),
        (["1", "1", None], 3, True),
        (["1", "1", "1", None], 16, False),  # three of four; P = 0.9375
    ],
)
def test_consensus(values: list[str | None], n_total: int, over: bool) -> None:
    assert consensus(values, n_total) is over


@pytest.mark.parametrize(("first", "second"), [(0, 0), (2, 0), (3, 1), (5, 5), (9, 4)])
def test_the_posterior_is_the_integral_of_beta(first: int, second: int) -> None:
    steps = 20_000
    grid = [(i + 0.5) / steps for i in range(steps)]
    density = [x**first * (1 - x) ** second for x in grid]
    above = sum(value for x, value in zip(grid, density, strict=True) if x > 0.5)

    assert stays(first, second) == pytest.approx(above / sum(density), abs=1e-4)


def test_giving_up_waits_for_four_finished_samples() -> None:
    assert low_confidence_threshold([0.5, 0.6, 0.7]) is None
    assert low_confidence_threshold([0.5, 0.6, 0.7, 0.8]) == pytest.approx(0.53)


@pytest.mark.parametrize("seed", range(5))
def test_about_a_tenth_lies_below_the_threshold(seed: int) -> None:
    rng = random.Random(seed)
    lowest = [rng.random() for _ in range(200)]

    threshold = low_confidence_threshold(lowest)

    assert threshold is not None
    assert sum(value < threshold for value in lowest) == 20
