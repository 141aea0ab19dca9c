"""A calibration: what a model's confidence is worth, measured on questions with known answers.

First the file and its use in the server; then how `gateway calibrate` fits one, measures it on kinds of
question it was not fitted on, and when it refuses to call the result calibrated.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

VERSION = 1
# Of the forced phrase and the probes: another wording shifts the log-probabilities behind it.
PROMPT_VERSION = 1
FEATURES = (
    "log_answer_prob",
    "answer_certainty",
    "token_entropy",
    "lowest_window",
    "log_length",
    "forced",
    "looped",
    "truncated",
    "failed_step_fraction",
    "agreement",
    "p_true",
)

# Standard deviations. A thought far longer than any that was measured must not decide alone.
FAR = 4.0
RIDGE = 1.0  # L2 on the standardised weights, in units of one question
RIDGE_BIAS = 1e-3  # keeps it finite when all answers are right
STEPS = 100
BINS = 15
COVERAGE = 0.8
RESAMPLES, BATCH = 1000, 100
FOLDS = 10

MIN_QUESTIONS, MIN_TASKS = 200, 4
MIN_AUROC = 0.5
# ECE beyond what a perfect score would show with as many questions.
MAX_EXCESS_ECE = 0.1

Floats = NDArray[np.float64]
Interval = dict[str, float]  # value, low, high: the estimate and its 95 % bootstrap interval


class CalibrationError(Exception):
    """A file that cannot be used; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Logistic regression over standardised FEATURES; each tuple has shape (n_features,)."""

    weights: tuple[float, ...]
    bias: float
    mean: tuple[float, ...]
    scale: tuple[float, ...]  # above 0

    def probability(self, values: Sequence[float]) -> float:
        """P(correct) for feature values, shape (n_features,)."""
        terms = zip(self.weights, values, self.mean, self.scale, strict=True)
        logit = self.bias + sum(
            weight * max(-FAR, min(FAR, (x - mean) / scale)) for weight, x, mean, scale in terms
        )
        return 1 / (1 + math.exp(-max(-500.0, min(500.0, logit))))


@dataclass(frozen=True, slots=True)
class Calibration(Weights):
    """Weights bound to the model, and to the k, that they were measured with."""

    fingerprint: str  # engine_config/fingerprint.py
    k: int  # log-probabilities per token
    metrics: Mapping[str, Any]  # on held-out kinds of question, see `measure`
    dataset: str
    n: int  # questions
    created: str  # ISO 8601, UTC
    tokenizer: str | None = None  # hash; the fingerprint covers it where the folder has one
    prompt_version: int = PROMPT_VERSION
    version: int = VERSION
    features: tuple[str, ...] = FEATURES

    def fits(self, fingerprint: str, k: int) -> bool:
        """It was made for this very model, read with as many log-probabilities."""
        return self.fingerprint == fingerprint and self.k == k

    def told(self) -> dict[str, Any]:
        """What an answer says about it."""
        keys = ("ece", "auroc", "brier")
        told = {key: self.metrics[key]["value"] for key in keys if key in self.metrics}
        return {"dataset": self.dataset, "n": self.n, **told}

    def save(self, path: Path) -> None:
        """Whole or not at all."""
        part = path.with_name(f"{path.name}.part")
        part.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        part.replace(path)


def load(path: Path) -> Calibration:
    """A file that `gateway calibrate` wrote.

    Raises:
        CalibrationError: not there, damaged, or of another version of this program.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
        made = (raw["version"], raw["prompt_version"], tuple(raw["features"]))
        if made != (VERSION, PROMPT_VERSION, FEATURES):
            message = f"{path}: made by another version; run `gateway calibrate` again"
            raise CalibrationError(message)
        return _checked(raw)
    except OSError as error:
        raise CalibrationError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise CalibrationError(f"{path}: not a calibration: {error!r}") from error


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _checked(raw: dict[str, Any]) -> Calibration:
    """Raises ValueError, KeyError or TypeError for what no calibration has."""
    lists = {key: tuple(map(float, raw[key])) for key in ("weights", "mean", "scale")}
    if any(len(values) != len(FEATURES) for values in lists.values()) or min(lists["scale"]) <= 0:
        raise ValueError("wrong number of weights, or a scale that is not above 0")
    numbers = [*lists["weights"], *lists["mean"], *lists["scale"], float(raw["bias"])]
    if not all(map(math.isfinite, numbers)):
        raise ValueError("a weight is not finite")
    kinds = (("fingerprint", str), ("k", int), ("metrics", dict), ("dataset", str), ("n", int))
    for key, kind in (*kinds, ("created", str)):
        if not isinstance(raw[key], kind):
            raise TypeError(f"{key} is no {kind.__name__}")
    if any(not math.isfinite(raw["metrics"][key]["value"]) for key in ("ece", "auroc", "brier")):
        raise ValueError("a metric is not finite")
    rest = {key: raw[key] for key in ("fingerprint", "k", "metrics", "dataset", "n", "created")}
    fields: dict[str, Any] = {**lists, **rest, "bias": float(raw["bias"])}
    return Calibration(tokenizer=raw.get("tokenizer"), **fields)


def fitting(path: Path, fingerprint: str) -> Calibration:
    """The calibration, if it was made for this very model.

    Raises:
        CalibrationError: as `load`, or made for another model.
    """
    calibration = load(path)
    if not calibration.fits(fingerprint, calibration.k):
        raise CalibrationError(
            f"{path}: made for another model (fingerprint {calibration.fingerprint[:12]}, this one is "
            f"{fingerprint[:12]}); run `gateway calibrate` for this one"
        )
    return calibration


def fit(x: Floats, right: Floats) -> Weights:
    """L2-regularised logistic regression by Newton's method (IRLS), step halved where it overshoots.

    `x` has shape (n, n_features), `right` (n,) of 0 and 1. A feature that never changes has weight 0.
    """
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    z = np.clip((x - mean) / scale, -FAR, FAR)
    z = np.hstack([z, np.ones((len(z), 1))])
    ridge = np.append(np.full(x.shape[1], RIDGE), RIDGE_BIAS)
    beta = np.zeros(z.shape[1])
    for _ in range(STEPS):
        p = _sigmoid(z @ beta)
        slope = z.T @ (p - right) + ridge * beta
        curve = (z.T * (p * (1 - p))) @ z + np.diag(ridge)
        step = np.linalg.solve(curve, slope)
        before = _loss(z, right, beta, ridge)
        while _loss(z, right, beta - step, ridge) > before and np.abs(step).max() > 1e-9:
            step = step / 2
        beta = beta - step
        if np.abs(step).max() < 1e-9:
            break
    return Weights(tuple(beta[:-1].tolist()), float(beta[-1]), *_tuples(mean, scale))


def _tuples(*arrays: Floats) -> list[tuple[float, ...]]:
    return [tuple(array.tolist()) for array in arrays]


def _sigmoid(logit: Floats) -> Floats:
    p: Floats = 0.5 * (1 + np.tanh(logit / 2))
    return p


def _loss(z: Floats, right: Floats, beta: Floats, ridge: Floats) -> float:
    logit = z @ beta
    return float((np.logaddexp(0, logit) - right * logit).sum() + 0.5 * (ridge * beta**2).sum())


def folds(tasks: Sequence[str]) -> list[list[str]]:
    """The tasks in at most ten folds of about as many questions; a task is never split."""
    sizes = {task: tasks.count(task) for task in sorted(set(tasks))}
    parts: list[list[str]] = [[] for _ in range(min(FOLDS, len(sizes)))]
    for task in sorted(sizes, key=lambda task: -sizes[task]):
        min(parts, key=lambda part: sum(sizes[other] for other in part)).append(task)
    return parts


def held_out(x: Floats, right: Floats, tasks: Sequence[str]) -> Floats:
    """P(correct) of each question by a model that saw no question of its task, shape (n,).

    Stricter than leaving out single questions, whose template the model would know. With one task
    nothing can be held out: all NaN.
    """
    names = np.array(tasks)
    p = np.full(len(right), np.nan)
    if len(set(tasks)) < 2:
        return p
    for part in folds(tasks):
        out = np.isin(names, part)
        weights = fit(x[~out], right[~out])
        p[out] = [weights.probability(row) for row in x[out].tolist()]
    return p


def measure(p: Floats, right: Floats, seed: int) -> dict[str, Any]:
    """How good the probabilities `p` of being right are, both of shape (n,).

    `ece` (15 bins of equal mass), `brier`, `auroc`, `nll`, `accuracy`, `brier_base` (always saying the
    base rate, p(1 - p)), `brier_gain` (base less own, question by question) and `selective_accuracy` (of
    the 80 % surest) are Intervals over 1,000 resampled sets of questions. Few questions inflate ECE, and
    resampling once more, so its interval lies high; the yardstick is `ece_chance`, the ECE that a perfect
    score would show with as many questions: mean, and `high`, which 95 % stay below. AUROC is NaN where
    one class is missing.
    """
    rng = np.random.default_rng(seed)
    p = np.clip(p, 1e-6, 1 - 1e-6)
    order = np.argsort(p, kind="stable")
    p, right = p[order], right[order]
    levels, starts = np.unique(p, return_index=True)
    n = len(p)
    point = _figures(levels, *_grouped(np.ones((1, n)), right, starts))
    batches, perfect = [], []
    for _ in range(RESAMPLES // BATCH):
        counts = _resampled(rng, n)
        batches.append(_figures(levels, *_grouped(counts, right, starts)))
        drawn = (rng.random((BATCH, n)) < p).astype(float)
        sizes = np.add.reduceat(np.ones((BATCH, n)), starts, axis=1)
        perfect.append(_ece(levels, sizes, np.add.reduceat(drawn, starts, axis=1)))
    chance = np.concatenate(perfect)
    told: dict[str, Any] = {
        key: _interval(value[0], np.concatenate([batch[key] for batch in batches]))
        for key, value in point.items()
    }
    told["ece_chance"] = {"value": float(chance.mean()), "high": float(np.quantile(chance, 0.95))}
    return told | {"n": n, "right": int(right.sum())}


def _resampled(rng: np.random.Generator, n: int) -> Floats:
    """How often each question is in each of BATCH bootstrap sets, shape (BATCH, n)."""
    drawn = rng.integers(0, n, (BATCH, n)) + n * np.arange(BATCH)[:, None]
    return np.bincount(drawn.ravel(), minlength=BATCH * n).reshape(BATCH, n).astype(float)


def _grouped(counts: Floats, right: Floats, starts: NDArray[np.intp]) -> tuple[Floats, Floats]:
    """Questions, and right ones, at each level of p, both (n_sets, n_levels). Ties stay together."""
    size = np.add.reduceat(counts, starts, axis=1)
    return size, np.add.reduceat(counts * right, starts, axis=1)


def _interval(value: float, resampled: Floats) -> Interval:
    known = resampled[~np.isnan(resampled)]
    low, high = np.quantile(known, [0.025, 0.975]) if known.size else (math.nan, math.nan)
    return {"value": float(value), "low": float(low), "high": float(high)}


def _figures(p: Floats, size: Floats, hits: Floats) -> dict[str, Floats]:
    """The figures of each set, shape (n_sets,). `p` rises, (n_levels,); the rest (n_sets, n_levels)."""
    n, rate = size.sum(axis=1), hits.sum(axis=1) / size.sum(axis=1)
    squares = size * p**2 - 2 * p * hits + hits
    logs = hits * np.log(p) + (size - hits) * np.log1p(-p)
    brier, base = squares.sum(axis=1) / n, rate * (1 - rate)
    return {
        "ece": _ece(p, size, hits),
        "brier": brier,
        "brier_base": base,
        "brier_gain": base - brier,
        "auroc": _auroc(size, hits),
        "nll": -logs.sum(axis=1) / n,
        "accuracy": rate,
        "selective_accuracy": _selective(size, hits),
    }


def _ece(p: Floats, size: Floats, hits: Floats) -> Floats:
    """Mean over BINS of equal mass of |accuracy - mean p|. Equal p share the bin of their middle."""
    middle = np.cumsum(size, axis=1) - size / 2
    place = np.minimum(BINS - 1, middle * BINS // size.sum(axis=1, keepdims=True))
    gap = hits - size * p
    off = [np.abs(np.where(place == b, gap, 0.0).sum(axis=1)) for b in range(BINS)]
    total: Floats = np.sum(off, axis=0) / size.sum(axis=1)
    return total


def _auroc(size: Floats, hits: Floats) -> Floats:
    """P(a right one is surer than a wrong one), ties half (Mann-Whitney). NaN with one class."""
    wrong = size - hits
    below = np.cumsum(wrong, axis=1) - wrong / 2
    pairs = hits.sum(axis=1) * wrong.sum(axis=1)
    won = (hits * below).sum(axis=1)
    auroc: Floats = np.divide(won, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
    return auroc


def _selective(size: Floats, hits: Floats) -> Floats:
    """Accuracy of the surest COVERAGE; of the level at its edge, the fitting part."""
    wanted = COVERAGE * size.sum(axis=1, keepdims=True)
    surer = np.cumsum(size[:, ::-1], axis=1)[:, ::-1] - size
    taken = np.clip(wanted - surer, 0, size)
    share = np.divide(taken, size, out=np.zeros_like(size), where=size > 0)
    accuracy: Floats = (share * hits).sum(axis=1) / wanted[:, 0]
    return accuracy


def reliability(p: Floats, right: Floats) -> list[dict[str, float]]:
    """Mean P(correct) and accuracy in BINS of equal mass, surest last."""
    order = np.argsort(p, kind="stable")
    parts = [part for part in np.array_split(order, BINS) if part.size]
    return [
        {"p": float(p[part].mean()), "accuracy": float(right[part].mean()), "n": part.size}
        for part in parts
    ]


def refusal(metrics: Mapping[str, Any]) -> str | None:
    """Why this may not be called calibrated; None when it may. `metrics`: of `measure`, plus `tasks`.

    The score must tell right from wrong beyond chance (AUROC's interval above 0.5); its numbers must beat
    always saying the base rate (the Brier gain's interval above 0); and its ECE may be at most 0.1 above
    what a perfect score would show, for with few questions even that one is not small. AUROC alone let
    6 of 300 sets with shuffled labels through, AUROC and gain none (simulated).
    """
    n, hits = metrics["n"], metrics["right"]
    if n < MIN_QUESTIONS:
        return f"{n} answered questions; at least {MIN_QUESTIONS} are needed"
    if hits in (0, n):
        return f"{hits} of {n} answers are right; questions that are neither all too hard nor too easy?"
    if metrics["tasks"] < MIN_TASKS:
        return (
            f"{metrics['tasks']} kinds of 'task'; at least {MIN_TASKS} are needed to hold some out"
        )
    if (low := metrics["auroc"]["low"]) <= MIN_AUROC:
        return f"it may not tell right from wrong: AUROC could be {low:.3f}, chance is 0.5"
    if (low := metrics["brier_gain"]["low"]) <= 0:
        brier, base = metrics["brier"]["value"], metrics["brier_base"]["value"]
        return (
            f"always saying the base rate may be as good: Brier {brier:.4f} against {base:.4f}, "
            f"and the gain could be {low:.4f}"
        )
    ece, most = metrics["ece"]["value"], metrics["ece_chance"]["high"] + MAX_EXCESS_ECE
    if ece > most:
        return f"its numbers are off: ECE {ece:.3f}, with {n} questions at most {most:.3f}"
    return None
