"""How sure the model was, from its log-probabilities. A score, no proof; docs/thinking.md has limits."""

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gateway.thinking.calibration import FEATURES, Calibration

# Without a calibration file, a cut or circling thought is no ground for more than this.
CAP_FORCED = 0.5
LEAST = -100.0  # nats; -inf would poison every mean
TAIL, WINDOW_MIN, WINDOW_MAX = 2048, 64, 2048


class Candidate(Protocol):
    """vLLM's `Logprob`."""

    logprob: float


Row = Mapping[int, Candidate]


class Trace:
    """Three numbers per token; the rows themselves are let go, a long thought would fill memory."""

    def __init__(self, vocabulary: int, k: int) -> None:
        self.vocabulary = vocabulary
        self.k = k
        self.certainty = array("f")  # 1 - entropy / ln V, 0 to 1
        self.deepconf = array("f")  # minus the mean log-probability of the top k
        self.drawn = array("f")  # log-probability of the token itself

    def __len__(self) -> int:
        return len(self.drawn)

    def add(self, token_ids: Sequence[int], rows: Sequence[Row]) -> None:
        """One row per token: the candidates, the drawn one among them (perhaps beyond the top k)."""
        for token, row in zip(token_ids, rows, strict=True):
            ranked = sorted((max(entry.logprob, LEAST) for entry in row.values()), reverse=True)
            top = ranked[: self.k]
            if not top:
                continue
            self.certainty.append(self._certainty(top))
            self.deepconf.append(-sum(top) / len(top))
            drawn = row.get(token)
            self.drawn.append(LEAST if drawn is None else max(drawn.logprob, LEAST))

    def _certainty(self, top: Sequence[float]) -> float:
        """Entropy of the top k, the mass that is left spread evenly over all other tokens."""
        masses = [math.exp(value) for value in top]
        entropy = -sum(mass * value for mass, value in zip(masses, top, strict=True))
        rest, others = 1.0 - sum(masses), self.vocabulary - len(top)
        if rest > 0 and others > 0:
            entropy -= rest * math.log(rest / others)
        return min(1.0, max(0.0, 1.0 - entropy / math.log(self.vocabulary)))

    def window(self) -> int:
        """DeepConf's 2,048 never fills on short thoughts."""
        return min(WINDOW_MAX, max(WINDOW_MIN, len(self) // 8))

    def lowest_window(self) -> float:
        """The least sure stretch, by certainty; 0 for no tokens."""
        means = window_means(self.certainty, self.window())
        return float(means.min()) if means.size else 0.0

    def tail(self) -> float | None:
        """Mean certainty at the end of the thought."""
        size = min(TAIL, max(1, len(self) // 4))
        return float(np.mean(self.certainty[-size:])) if len(self) else None


def window_means(values: Sequence[float], size: int) -> np.ndarray:
    """Mean of every window of that size, stride 1; of all values when there are fewer. Linear."""
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.size <= size:
        return numbers.mean(keepdims=True) if numbers.size else numbers
    sums = np.concatenate([[0.0], np.cumsum(numbers)])
    means: np.ndarray = (sums[size:] - sums[:-size]) / size
    return means


def deepconf(trace: Trace) -> dict[str, Any]:
    """DeepConf's measures (arXiv 2508.15260). Not monotone: uniform noise scores high; never used alone."""
    means = window_means(trace.deepconf, trace.window())
    empty = dict.fromkeys(("mean", "tail", "lowest_group", "bottom10"))
    shape = {"k": trace.k, "window": trace.window()}
    if not means.size:
        return {**empty, **shape}
    lowest = np.sort(means)[: max(1, means.size // 10)]
    return {
        "mean": round(float(np.mean(trace.deepconf)), 4),
        "tail": round(float(np.mean(trace.deepconf[-TAIL:])), 4),
        "lowest_group": round(float(means.min()), 4),
        "bottom10": round(float(lowest.mean()), 4),
        **shape,
    }


@dataclass(frozen=True, slots=True)
class Confidence:
    """`score` is 0 to 1; only a calibrated one may be read as a probability."""

    score: float
    calibrated: bool
    method: str
    calibration: dict[str, Any] | None
    components: dict[str, Any]


def components(thought: Trace, answer: Trace, **circumstances: Any) -> dict[str, Any]:
    """What the score is made of. `circumstances`: forced, looped, truncated, failed_step_fraction, agreement,
    p_true; they are passed on."""
    certain = thought.tail()
    fallback = float(np.mean(answer.certainty)) if len(answer) else 0.0
    lowest = thought.lowest_window() if len(thought) else fallback
    return {
        "answer_prob": round(math.exp(float(np.mean(answer.drawn))), 6) if len(answer) else 0.0,
        "answer_certainty": round(fallback, 6),
        "token_entropy": round(fallback if certain is None else certain, 6),
        "lowest_window": round(lowest, 6),
        "deepconf": deepconf(thought if len(thought) else answer),
        "length_tokens": len(thought),
        "verbal": None,
        **circumstances,
    }


def features(measured: Mapping[str, Any]) -> list[float]:
    """The numbers that a calibration weighs, in the order of FEATURES; a missing one is neutral."""
    agreement = measured.get("agreement")
    named = {
        "log_answer_prob": math.log(max(measured["answer_prob"], 1e-12)),
        "answer_certainty": measured["answer_certainty"],
        "token_entropy": measured["token_entropy"],
        "lowest_window": measured["lowest_window"],
        "log_length": math.log1p(measured["length_tokens"]),
        "forced": float(measured["forced"]),
        "looped": float(measured["looped"]),
        "truncated": float(measured["truncated"]),
        "failed_step_fraction": measured["failed_step_fraction"],
        "agreement": 0.5 if agreement is None else agreement,
    }
    return [float(named[name]) for name in FEATURES]


def score(measured: dict[str, Any], calibration: Calibration | None) -> Confidence:
    """By the model's calibration file; without one by `by_formula`, and `calibrated` is false."""
    if calibration is not None:
        value = calibration.probability(features(measured))
        return Confidence(round(value, 4), True, "logistic-v1", calibration.told(), measured)
    return Confidence(round(by_formula(measured), 4), False, "formula-v1", None, measured)


def by_formula(measured: Mapping[str, Any]) -> float:
    """Geometric mean of the answer's probability and certainty and of the thought's certainty, lowered where
    samples disagree. Rises with each of them; near 0 for noise."""
    parts = [measured["answer_prob"], measured["answer_certainty"], measured["token_entropy"]]
    if measured.get("agreement") is not None:
        parts.append(measured["agreement"])
    value = float(math.prod(parts) ** (1 / len(parts)))
    capped = measured["forced"] or measured["looped"] or measured["truncated"]
    return min(value, CAP_FORCED) if capped else value
