"""What is computed from log-probabilities, against the formulas written out as loops."""

import json
import math
import random
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pytest

from gateway.thinking.calibration import FEATURES, Calibration
from gateway.thinking.confidence import (
    Circumstances,
    Trace,
    components,
    deepconf,
    features,
    score,
    window_means,
)

QWEN3 = 151_936
SMALL = 50
K = 5


@dataclass
class Entry:
    logprob: float


Row = dict[int, Entry]


def row(masses: Mapping[int, float]) -> Row:
    return {
        token: Entry(math.log(mass) if mass > 0 else -math.inf) for token, mass in masses.items()
    }


def random_row(rng: random.Random, vocab_size: int = SMALL) -> tuple[int, Row, list[float]]:
    """A drawn token, its row as vLLM gives it (top K and the drawn one), and the whole distribution."""
    logits = [rng.gauss(0, rng.choice([0.1, 2, 6])) for _ in range(vocab_size)]
    total = sum(math.exp(logit) for logit in logits)
    masses = [math.exp(logit) / total for logit in logits]
    ranked = sorted(range(vocab_size), key=lambda token: -masses[token])
    drawn = rng.choices(range(vocab_size), masses)[0]
    return drawn, row({token: masses[token] for token in {*ranked[:K], drawn}}), masses


def traced(rng: random.Random, n: int) -> tuple[Trace, list[list[float]], list[int]]:
    trace = Trace(SMALL, K)
    all_masses, tokens = [], []
    for _ in range(n):
        token, entries, masses = random_row(rng)
        trace.add([token], [entries])
        all_masses.append(masses)
        tokens.append(token)
    return trace, all_masses, tokens


def plain_certainty(masses: list[float]) -> float:
    top = sorted(masses, reverse=True)[:K]
    others = len(masses) - K
    rest = 1 - sum(top)
    entropy = 0.0
    for mass in top:
        entropy -= mass * math.log(mass)
    for _ in range(others):
        entropy -= rest / others * math.log(rest / others)
    return 1 - entropy / math.log(len(masses))


def plain_deepconf(masses: list[float]) -> float:
    top = sorted(masses, reverse=True)[:K]
    return -sum(math.log(mass) for mass in top) / K


def plain_windows(values: list[float], size: int) -> list[float]:
    if len(values) <= size:
        return [sum(values) / len(values)]
    return [sum(values[i : i + size]) / size for i in range(len(values) - size + 1)]


def noise(vocab_size: int, k: int, n: int) -> Trace:
    """What random weights say: every token is as likely."""
    trace = Trace(vocab_size, k)
    trace.add(list(range(n)), [row({i + j: 1 / vocab_size for j in range(k)}) for i in range(n)])
    return trace


def sure(p: float, n: int, vocab_size: int = QWEN3) -> Trace:
    trace = Trace(vocab_size, K)
    others = {j: (1 - p) / 10 for j in range(1, K)}
    trace.add([0] * n, [row({0: p} | others)] * n)
    return trace


def measured(thought: Trace, answer: Trace, **changes: Any) -> dict[str, Any]:
    plain: Circumstances = {
        "forced": False,
        "looped": False,
        "truncated": False,
        "failed_step_fraction": 0.0,
        "agreement": None,
        "p_true": None,
    }
    return components(thought, answer, **{**plain, **changes})


@pytest.mark.parametrize("seed", range(5))
def test_each_token_is_measured_as_the_formulas_say(seed: int) -> None:
    trace, all_masses, tokens = traced(random.Random(seed), 60)

    assert trace.certainty.tolist() == pytest.approx(
        [plain_certainty(masses) for masses in all_masses], abs=1e-5
    )
    assert trace.deepconf.tolist() == pytest.approx(
        [plain_deepconf(masses) for masses in all_masses], abs=1e-5
    )
    assert trace.drawn.tolist() == pytest.approx(
        [math.log(masses[token]) for token, masses in zip(tokens, all_masses, strict=True)],
        abs=1e-5,
    )


def test_golden_row() -> None:
    """H = -.7 ln .7 - .2 ln .2 - .1 ln(.1 / 8) = 1.00977; 1 - H / ln 10; C = -(ln .7 + ln .2) / 2."""
    trace = Trace(vocab_size=10, k=2)

    trace.add([4], [row({1: 0.7, 2: 0.2, 4: 0.01})])

    assert trace.certainty[0] == pytest.approx(0.561463, abs=1e-5)
    assert trace.deepconf[0] == pytest.approx(0.983056, abs=1e-5)
    assert trace.drawn[0] == pytest.approx(math.log(0.01), abs=1e-5)


def test_a_drawn_token_beyond_the_top_k_does_not_count_among_them() -> None:
    within, beyond = Trace(SMALL, 2), Trace(SMALL, 2)

    within.add([1], [row({1: 0.6, 2: 0.3})])
    beyond.add([9], [row({1: 0.6, 2: 0.3, 9: 1e-9})])

    assert within.certainty == beyond.certainty
    assert within.deepconf == beyond.deepconf


def test_broken_rows_do_no_harm() -> None:
    trace = Trace(SMALL, K)

    trace.add([1, 2], [{}, {}])
    assert len(trace) == 0

    too_much = {1: Entry(1e-6), 2: Entry(math.log(1e-5))}
    banned = {1: Entry(0.0), 2: Entry(-math.inf), 3: Entry(math.nan)}
    trace.add([1, 3, 40], [too_much, banned, row({1: 0.5, 2: 0.25})])

    assert len(trace) == 3
    assert all(0 <= value <= 1 for value in trace.certainty)
    assert all(math.isfinite(value) for value in (*trace.deepconf, *trace.drawn))
    assert trace.certainty[1] == pytest.approx(1, abs=1e-6)
    assert trace.drawn[2] == pytest.approx(math.log(0.25 / 48), abs=1e-5)
    json.dumps(measured(trace, trace), allow_nan=False)


@pytest.mark.parametrize("vocab_size", [1, 2, 5])
def test_a_vocabulary_no_larger_than_k(vocab_size: int) -> None:
    trace = Trace(vocab_size, K)

    trace.add([0], [row(dict.fromkeys(range(vocab_size), 1 / vocab_size))])

    assert trace.certainty[0] == (1.0 if vocab_size == 1 else pytest.approx(0, abs=1e-6))


def test_a_row_for_each_token() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Trace(SMALL, K).add([1, 2], [row({1: 1.0})])


def test_a_long_thought_takes_less_than_a_mebibyte() -> None:
    trace = sure(0.9, 32_768)

    stored = (trace.certainty, trace.deepconf, trace.drawn)
    assert sum(sys.getsizeof(values) for values in stored) < 2**20
    assert not trace.__dict__.keys() - {"vocab_size", "k", "certainty", "deepconf", "drawn"}


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 200, 700])
@pytest.mark.parametrize("size", [1, 64])
def test_windows_are_means_of_slices(n: int, size: int) -> None:
    rng = random.Random(n)
    values = [rng.random() for _ in range(n)]

    assert window_means(values, size).tolist() == pytest.approx(plain_windows(values, size))


@pytest.mark.parametrize(
    ("n", "size"), [(0, 64), (511, 64), (520, 65), (16_384, 2048), (40_000, 2048)]
)
def test_the_window_is_an_eighth_of_the_thought_within_bounds(n: int, size: int) -> None:
    assert sure(0.9, n).window() == size


@pytest.mark.parametrize("n", [1, 40, 64, 65, 300, 900])
def test_deepconf_and_certainty_of_a_whole_trace(n: int) -> None:
    trace, all_masses, _ = traced(random.Random(n), n)
    window, tail = min(2048, max(64, n // 8)), min(2048, max(1, n // 4))
    scores = [plain_deepconf(masses) for masses in all_masses]
    groups = plain_windows(scores, window)
    lowest = sorted(groups)[: max(1, len(groups) // 10)]
    certain = [plain_certainty(masses) for masses in all_masses]

    told = measured(trace, sure(0.9, 3))

    assert told["deepconf"] == {
        "mean": pytest.approx(sum(scores) / n, abs=1e-3),
        "tail": pytest.approx(sum(scores[-tail:]) / tail, abs=1e-3),
        "lowest_group": pytest.approx(min(groups), abs=1e-3),
        "bottom10": pytest.approx(sum(lowest) / len(lowest), abs=1e-3),
        "k": K,
        "window": window,
    }
    assert told["token_entropy"] == pytest.approx(sum(certain[-tail:]) / tail, abs=1e-5)
    assert told["lowest_window"] == pytest.approx(min(plain_windows(certain, window)), abs=1e-5)
    assert told["length_tokens"] == n


def test_no_tokens_have_no_measure() -> None:
    empty = Trace(SMALL, K)

    assert deepconf(empty) == {
        "mean": None,
        "tail": None,
        "lowest_group": None,
        "bottom10": None,
        "k": K,
        "window": 64,
    }
    assert empty.lowest_window() == 0
    assert score(measured(empty, empty), None).score == 0


def test_without_a_thought_the_answer_stands_in() -> None:
    answer = sure(0.8, 7)

    told = measured(Trace(QWEN3, K), answer)

    assert told["token_entropy"] == pytest.approx(answer.certainty[0], abs=1e-6)
    assert told["answer_prob"] == pytest.approx(0.8, abs=1e-6)
    assert told["length_tokens"] == 0
    assert told["deepconf"]["mean"] == pytest.approx(answer.deepconf[0], abs=1e-4)


def test_answer_prob_is_a_geometric_mean() -> None:
    answer = Trace(SMALL, K)

    answer.add([1, 1, 1], [row({1: p, 2: 0.01}) for p in (0.9, 0.5, 0.1)])

    assert measured(answer, answer)["answer_prob"] == pytest.approx((0.9 * 0.5 * 0.1) ** (1 / 3))


def test_deepconf_calls_noise_sure_and_the_score_does_not() -> None:
    """C of a uniform distribution is ln V, more than that of p = 0.99: it must never be scored."""
    thought, answer = noise(QWEN3, K, 600), noise(QWEN3, K, 20)

    told = measured(thought, answer)

    assert told["deepconf"]["mean"] == pytest.approx(math.log(QWEN3), abs=1e-3)
    assert told["deepconf"]["mean"] > measured(sure(0.99, 600), answer)["deepconf"]["mean"]
    assert told["token_entropy"] == pytest.approx(0, abs=1e-4)
    assert score(told, None).score < 0.01


def test_the_formula_never_reads_deepconf() -> None:
    told = measured(sure(0.9, 500), sure(0.9, 10))
    other = told | {"deepconf": dict.fromkeys(told["deepconf"], 1e9)}

    assert score(told, None).score == score(other, None).score


@pytest.mark.parametrize("seed", range(3))
def test_the_formula_rises_with_certainty_and_probability(seed: int) -> None:
    rng = random.Random(seed)
    wrong = []
    for _ in range(300):
        told = measured(sure(0.9, 10), sure(0.9, 10), agreement=rng.choice([None, rng.random()]))
        names = ("token_entropy", "answer_prob", "answer_certainty")
        told |= {name: rng.random() for name in names}
        for name in names:
            more = told | {name: rng.uniform(told[name], 1)}
            if score(more, None).score < score(told, None).score:
                wrong.append((told, more))

    assert wrong == []


def test_golden_formula() -> None:
    told = measured(sure(0.9, 10), sure(0.9, 10))
    told |= {"answer_prob": 0.5, "answer_certainty": 0.4, "token_entropy": 0.64}

    assert score(told, None).score == pytest.approx(0.128 ** (1 / 3), abs=1e-4)
    assert score(told | {"agreement": 0.75}, None).score == pytest.approx(
        0.096 ** (1 / 4), abs=1e-4
    )


@pytest.mark.parametrize("what", ["forced", "looped", "truncated"])
def test_a_cut_or_circling_thought_is_never_more_than_a_half_sure(what: str) -> None:
    thought, answer = sure(0.9999, 500), sure(0.9999, 10)

    assert score(measured(thought, answer), None).score > 0.95
    assert score(measured(thought, answer, **{what: True}), None).score == 0.5


def test_features_come_in_the_order_of_their_names() -> None:
    told = measured(
        sure(0.9, 500), sure(0.8, 10), forced=True, failed_step_fraction=0.25, p_true=0.7
    )

    named = dict(zip(FEATURES, features(told), strict=True))

    assert named["log_answer_prob"] == pytest.approx(math.log(0.8), abs=1e-5)
    assert named["answer_certainty"] == told["answer_certainty"]
    assert named["token_entropy"] == told["token_entropy"]
    assert named["lowest_window"] == told["lowest_window"]
    assert named["log_length"] == pytest.approx(math.log(501))
    assert (named["forced"], named["looped"], named["truncated"]) == (1, 0, 0)
    assert named["failed_step_fraction"] == 0.25
    assert (named["agreement"], named["p_true"]) == (0.5, 0.7)


def test_features_are_finite_for_nothing_at_all() -> None:
    empty = Trace(SMALL, K)

    assert all(map(math.isfinite, features(measured(empty, empty))))


def calibration(k: int) -> Calibration:
    n = len(FEATURES)
    return Calibration(
        weights=(1.0,) + (0.0,) * (n - 1),
        bias=0.0,
        mean=(math.log(0.8),) + (0.0,) * (n - 1),
        scale=(1.0,) * n,
        fingerprint="f",
        k=k,
        metrics={key: {"value": 0.25} for key in ("ece", "auroc", "brier")},
        dataset="d",
        n=500,
        created="2026-01-01T00:00:00+00:00",
    )


def test_a_calibration_gives_a_probability_and_names_itself() -> None:
    told = score(measured(sure(0.9, 500), sure(0.8, 10)), calibration(K))

    assert told.score == pytest.approx(0.5, abs=1e-4)
    assert (told.calibrated, told.method) == (True, "logistic-v1")
    assert told.calibration == {
        "dataset": "d",
        "n": 500,
        "ece": 0.25,
        "auroc": 0.25,
        "brier": 0.25,
    }
    json.dumps(asdict(told), allow_nan=False)


def test_a_calibration_for_another_k_is_not_used() -> None:
    told = score(measured(sure(0.9, 500), sure(0.8, 10)), calibration(K + 1))

    assert (told.calibrated, told.method, told.calibration) == (False, "formula-v1", None)
