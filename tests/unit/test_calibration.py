"""Fitting, measuring and refusing, on synthetic answers whose P(correct) is known."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gateway.thinking import calibration
from gateway.thinking.calibration import (
    Floats,
    Weights,
    fit,
    folds,
    held_out,
    measure,
    refusal,
)


def drawn(p: Floats, seed: int) -> Floats:
    """Right with probability p. The seed is not that of p, which would compare p with itself."""
    return (np.random.default_rng([seed, 1]).random(len(p)) < p).astype(float)


def synthetic(n: int, seed: int) -> tuple[Floats, Floats, Floats, list[str]]:
    """Two features that matter, one that does not, one constant; P(correct) is known. Ten tasks."""
    rng = np.random.default_rng(seed)
    x = np.column_stack([rng.normal(size=(n, 3)), np.ones(n)])
    p = 1 / (1 + np.exp(-(0.4 + 1.5 * x[:, 0] - 0.8 * x[:, 1])))
    return x, p, drawn(p, seed + 1), [f"t{i % 10}" for i in range(n)]


# Straightforward versions, one question at a time.


def plain_auroc(p: Floats, right: Floats) -> float:
    won = pairs = 0.0
    for mine, good in zip(p, right, strict=True):
        for other, bad in zip(p, right, strict=True):
            if good and not bad:
                pairs += 1
                won += 1.0 if mine > other else 0.5 if mine == other else 0.0
    return float(won / pairs)


def plain_ece(p: Floats, right: Floats) -> float:
    """For p without ties: question i of n, by p, is in bin floor(15 (i + 1/2) / n)."""
    ranked = sorted(zip(p.tolist(), right.tolist(), strict=True))
    gaps = [0.0] * 15
    for i, (mine, good) in enumerate(ranked):
        gaps[int(15 * (i + 0.5) / len(ranked))] += good - mine
    return float(sum(map(abs, gaps)) / len(ranked))


def plain_selective(p: Floats, right: Floats) -> float:
    """For p without ties and n a multiple of 5."""
    ranked = sorted(zip(p.tolist(), right.tolist(), strict=True), reverse=True)
    surest = ranked[: len(ranked) * 4 // 5]
    return float(sum(good for _, good in surest) / len(surest))


@pytest.mark.parametrize("seed", range(4))
def test_figures_are_what_the_formulas_say(seed: int) -> None:
    p = np.random.default_rng(seed).random(205)
    right = drawn(p, seed)

    told = measure(p, right, seed)

    base = right.mean()
    logs = [math.log(mine if good else 1 - mine) for mine, good in zip(p, right, strict=True)]
    plain = {
        "auroc": plain_auroc(p, right),
        "ece": plain_ece(p, right),
        "selective_accuracy": plain_selective(p, right),
        "brier": sum((mine - good) ** 2 for mine, good in zip(p, right, strict=True)) / len(p),
        "nll": -sum(logs) / len(p),
        "accuracy": base,
        "brier_base": base * (1 - base),
        "brier_gain": base * (1 - base) - ((p - right) ** 2).mean(),
    }
    assert {key: told[key]["value"] for key in plain} == pytest.approx(plain)
    assert all(told[key]["low"] <= told[key]["high"] for key in plain)
    assert (told["n"], told["right"]) == (205, right.sum())


def test_ties_count_half_and_stay_in_one_bin() -> None:
    p = np.repeat([0.25, 0.5, 0.75], 40)
    right = drawn(p, 3)

    told = measure(p, right, 0)

    gaps = [abs(float((right - p)[p == level].sum())) for level in (0.25, 0.5, 0.75)]
    assert told["ece"]["value"] == pytest.approx(sum(gaps) / 120)
    assert told["auroc"]["value"] == pytest.approx(plain_auroc(p, right))
    # The surest 96: both upper levels, and of the lowest 16 of 40, as right as that level is.
    surest = right[p > 0.4].sum() + 16 * right[p == 0.25].mean()
    assert told["selective_accuracy"]["value"] == pytest.approx(surest / 96)


def test_the_order_of_the_questions_does_not_matter() -> None:
    p = np.repeat([0.3, 0.6], 100)
    right = np.concatenate([np.zeros(70), np.ones(30), np.zeros(40), np.ones(60)])
    shuffled = np.random.default_rng(0).permutation(200)

    first, second = measure(p, right, 0), measure(p[shuffled], right[shuffled], 0)

    assert first["ece"]["value"] == pytest.approx(0, abs=1e-9)
    for key in ("ece", "auroc", "brier"):
        assert first[key]["value"] == pytest.approx(second[key]["value"])


def test_the_bootstrap_gives_the_same_figures_as_a_set_with_repeats() -> None:
    """A resampled set, written out with its repeated questions, is measured the same."""
    p = np.sort(np.random.default_rng(5).random(60))
    right = drawn(p, 5)
    counts = calibration._resampled(np.random.default_rng(1), 60)[:3]

    told = calibration._figures(p, *calibration._grouped(counts, right, np.arange(60)))

    for row, count in enumerate(counts.astype(int)):
        again = measure(np.repeat(p, count), np.repeat(right, count), 0)
        for key in ("ece", "auroc", "brier", "nll", "selective_accuracy"):
            assert told[key][row] == pytest.approx(again[key]["value"]), key


def test_intervals_are_seeded_and_hold_the_truth() -> None:
    p = np.random.default_rng(2).random(600)
    right = drawn(p, 2)

    told = measure(p, right, 7)

    assert told == measure(p, right, 7)
    assert told["auroc"]["low"] < 5 / 6 < told["auroc"]["high"]
    width = told["accuracy"]["high"] - told["accuracy"]["low"]
    rate = right.mean()
    assert width == pytest.approx(2 * 1.96 * math.sqrt(rate * (1 - rate) / 600), rel=0.15)


def test_a_perfect_score_has_the_analytic_auroc_and_hardly_an_ece() -> None:
    """p uniform and right with probability p: AUROC is 5/6, Brier 1/6."""
    p = np.random.default_rng(0).random(6000)
    right = drawn(p, 1)

    told = measure(p, right, 0)

    assert told["auroc"]["value"] == pytest.approx(5 / 6, abs=0.015)
    assert told["brier"]["value"] == pytest.approx(1 / 6, abs=0.01)
    assert told["ece"]["value"] < 0.025
    assert told["ece"]["value"] <= told["ece_chance"]["high"]


def test_a_shifted_score_has_the_shift_as_ece() -> None:
    p = np.random.default_rng(0).uniform(0.2, 0.7, 4000)

    told = measure(p + 0.2, drawn(p, 1), 0)

    assert told["ece"]["value"] == pytest.approx(0.2, abs=0.02)
    assert told["ece_chance"]["high"] < 0.05


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_one_class_has_no_auroc(value: float) -> None:
    told = measure(np.linspace(0, 1, 40), np.full(40, value), 0)

    assert math.isnan(told["auroc"]["value"])
    assert math.isfinite(told["nll"]["value"])


def test_the_fit_finds_the_weights() -> None:
    x, p, right, _ = synthetic(6000, 0)

    weights = fit(x, right)

    raw = np.array(weights.weights) / np.array(weights.scale)
    assert raw == pytest.approx([1.5, -0.8, 0.0, 0.0], abs=0.12)
    assert weights.weights[3] == 0
    told = [weights.probability(row) for row in x[:500].tolist()]
    assert np.abs(np.array(told) - p[:500]).max() < 0.08


def test_the_fit_is_where_the_penalised_likelihood_is_flat() -> None:
    x, _, right, _ = synthetic(120, 3)
    weights = fit(x, right)

    def loss(beta: list[float], bias: float) -> float:
        moved = replace(weights, weights=tuple(beta), bias=bias)
        told = [moved.probability(row) for row in x.tolist()]
        pairs = zip(told, right, strict=True)
        logs = sum(math.log(mine if good else 1 - mine) for mine, good in pairs)
        return -logs + sum(w * w for w in beta) / 2 + bias * bias * 0.5e-3

    best, here = loss(list(weights.weights), weights.bias), list(weights.weights)
    for i in range(len(here)):
        for step in (-1e-3, 1e-3):
            moved = [w + step * (j == i) for j, w in enumerate(here)]
            assert loss(moved, weights.bias) > best
    for step in (-1e-3, 1e-3):
        assert loss(here, weights.bias + step) > best


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_the_fit_stays_finite_when_all_answers_are_alike(value: float) -> None:
    x = synthetic(50, 0)[0]

    weights = fit(x, np.full(50, value))

    assert abs(weights.bias) < 20
    assert abs(weights.probability(x[0].tolist()) - value) < 0.01


def test_the_fit_stays_finite_when_one_feature_tells_all() -> None:
    x = np.linspace(-1, 1, 80)[:, None]

    weights = fit(x, (x[:, 0] > 0).astype(float))

    assert 1 < weights.weights[0] < 20


def test_a_value_far_outside_of_what_was_measured_does_not_decide_alone() -> None:
    weights = Weights(weights=(1.0,), bias=0.0, mean=(0.0,), scale=(1.0,))

    assert weights.probability([4.0]) == weights.probability([1e6])
    assert weights.probability([-1e6]) > 0.01


@pytest.mark.parametrize("n_tasks", [2, 9, 10, 23])
def test_folds_hold_whole_tasks_of_about_equal_size(n_tasks: int) -> None:
    tasks = [f"t{i}" for i in range(n_tasks) for _ in range(5 + i % 3)]

    parts = folds(tasks)

    assert sorted(task for part in parts for task in part) == sorted(set(tasks))
    sizes = [sum(tasks.count(task) for task in part) for part in parts]
    assert len(parts) == min(10, n_tasks)
    assert max(sizes) - min(sizes) <= 7


def test_no_question_is_scored_by_a_model_that_saw_its_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first feature names the task; a fit on the task itself would show it."""
    x, _, right, tasks = synthetic(240, 0)
    x[:, 0] = [float(task[1:]) for task in tasks]
    seen: list[set[float]] = []
    asked: list[float] = []

    class Spy(Weights):
        def probability(self, values: Any) -> float:
            assert values[0] not in seen[-1]
            asked.append(values[0])
            return 0.5

    def spy(given: Floats, labels: Floats) -> Weights:
        seen.append(set(given[:, 0].tolist()))
        return Spy((0.0,) * 4, 0.0, (0.0,) * 4, (1.0,) * 4)

    monkeypatch.setattr(calibration, "fit", spy)

    assert held_out(x, right, tasks).tolist() == [0.5] * 240
    assert len(asked) == 240


def test_one_task_cannot_be_held_out() -> None:
    x, _, right, _ = synthetic(30, 0)

    assert np.isnan(held_out(x, right, ["only"] * 30)).all()


def judged(x: Floats, right: Floats, tasks: list[str]) -> dict[str, Any]:
    return measure(held_out(x, right, tasks), right, 0) | {"tasks": len(set(tasks))}


def test_known_probabilities_are_recovered_on_held_out_tasks() -> None:
    x, p, right, tasks = synthetic(3000, 0)

    told = judged(x, right, tasks)

    # P(a right one is surer than a wrong one), over all pairs, from the true probabilities.
    ranked = np.sort(p)
    won = (ranked * (np.cumsum(1 - ranked) - (1 - ranked) / 2)).sum()
    analytic = won / (p.sum() * (1 - p).sum())
    assert told["auroc"]["value"] == pytest.approx(analytic, abs=0.02)
    assert told["ece"]["value"] < 0.04
    assert refusal(told) is None


def test_shuffled_labels_have_no_auroc_and_are_refused() -> None:
    """Somewhat below 0.5: a fold's base rate is learned from the others, which lack what it has much of."""
    aurocs, reasons = [], []
    for seed in range(12):
        x, _, right, tasks = synthetic(800, seed)
        told = judged(x, np.random.default_rng(seed).permutation(right), tasks)
        aurocs.append(told["auroc"]["value"])
        reasons.append(refusal(told))

    assert None not in reasons
    assert 0.45 < np.mean(aurocs) < 0.52
    assert 0.38 < min(aurocs) <= max(aurocs) < 0.56


def metrics(**changes: Any) -> dict[str, Any]:
    return {
        "n": 800,
        "right": 300,
        "tasks": 8,
        "auroc": {"value": 0.75, "low": 0.7, "high": 0.8},
        "brier": {"value": 0.19, "low": 0.18, "high": 0.2},
        "brier_base": {"value": 0.234, "low": 0.23, "high": 0.24},
        "brier_gain": {"value": 0.044, "low": 0.03, "high": 0.06},
        "ece": {"value": 0.06, "low": 0.05, "high": 0.09},
        "ece_chance": {"value": 0.04, "high": 0.055},
    } | changes


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"n": 199}, "199 answered questions; at least 200"),
        ({"right": 0}, "0 of 800 answers are right"),
        ({"right": 800}, "800 of 800 answers are right"),
        ({"tasks": 3}, "3 kinds of 'task'; at least 4"),
        ({"auroc": {"value": 0.55, "low": 0.5, "high": 0.6}}, "AUROC could be 0.500"),
        ({"brier_gain": {"value": 0.01, "low": -0.001, "high": 0.02}}, "gain could be -0.0010"),
        ({"ece": {"value": 0.156, "low": 0.1, "high": 0.2}}, "ECE 0.156"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], reason: str) -> None:
    assert refusal(metrics()) is None

    told = refusal(metrics(**changes))

    assert told is not None
    assert reason in told


def test_too_few_questions_or_tasks_are_refused_without_further_figures() -> None:
    assert refusal({"n": 10, "right": 3, "tasks": 1}) is not None
    assert refusal({"n": 1000, "right": 300, "tasks": 1}) is not None
