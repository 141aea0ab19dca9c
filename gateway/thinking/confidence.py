"""How sure the model was, from its log-probabilities. A score, no proof; docs/thinking.md has limits."""

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from gateway.thinking.calibration import FEATURES, Calibration

# Without a calibration file, a cut or circling thought is no ground for more than this.
CAP_FORCED = 0.5
LEAST = -100.0  # nats; -inf would poison every mean
TAIL, WINDOW_MIN, WINDOW_MAX = 2048, 64, 2048  # tokens
UNKNOWN = 0.5  # agreement and P(True) when nobody asked
LEAST_PROB = 1e-6  # what `answer_prob` is rounded to

Floats = NDArray[np.float64]


class LogprobLike(Protocol):
    """vLLM's `Logprob`."""

    logprob: float


Row = Mapping[int, LogprobLike]


class Circumstances(TypedDict):
    """What the tokens themselves do not tell."""

    forced: bool  # the thought was ended for the model
    looped: bool
    truncated: bool  # the answer ran into max_tokens
    failed_step_fraction: float  # 0 to 1
    agreement: (
        float | None
    )  # of the samples, Beta-smoothed; None: one sample, or no value to compare
    p_true: float | None


class Trace:
    """Three numbers per token, 12 bytes; the rows are let go, those of a long thought would fill memory."""

    def __init__(self, vocab_size: int, k: int) -> None:
        self.vocab_size = vocab_size
        self.k = k
        self.certainty = array("f")  # c_i, 0 to 1
        self.deepconf = array("f")  # C_i, nats
        self.drawn = array("f")  # log-probability of the token itself, nats

    def __len__(self) -> int:
        return len(self.drawn)

    def add(self, token_ids: Sequence[int], rows: Sequence[Row]) -> None:
        """One row per token: the candidates, the drawn one among them (perhaps beyond the top k).

        A token with an empty row is not counted: nothing is known of it.
        """
        for token, row in zip(token_ids, rows, strict=True):
            if not row:
                continue
            ranked = sorted((_sane(entry.logprob) for entry in row.values()), reverse=True)
            top = ranked[: self.k]
            masses = [math.exp(value) for value in top]
            # Rounding can take the sum past 1.
            rest, others = max(0.0, 1.0 - sum(masses)), self.vocab_size - len(top)
            share = math.log(rest / others) if rest > 0 and others > 0 else LEAST
            entropy = -sum(p * log_p for p, log_p in zip(masses, top, strict=True)) - rest * share
            self.certainty.append(certainty(entropy, self.vocab_size))
            self.deepconf.append(-sum(top) / len(top))
            entry = row.get(token)
            self.drawn.append(max(share, LEAST) if entry is None else _sane(entry.logprob))

    def window(self) -> int:
        """Tokens in a sliding window: DeepConf's 2,048 never fills on short thoughts."""
        return min(WINDOW_MAX, max(WINDOW_MIN, len(self) // 8))

    def tail(self) -> int:
        """Tokens that count as the end of the thought."""
        return min(TAIL, max(1, len(self) // 4))

    def lowest_window(self) -> float:
        """The least sure stretch, by certainty; 0 for no tokens."""
        means = window_means(self.certainty, self.window())
        return float(means.min()) if means.size else 0.0

    def tail_certainty(self) -> float:
        """Mean certainty at the end of the thought; 0 for no tokens."""
        return float(np.mean(self.certainty[-self.tail() :])) if len(self) else 0.0


def _sane(logprob: float) -> float:
    """-inf and NaN become LEAST; a rounded-up 1e-7 becomes 0."""
    return min(logprob, 0.0) if logprob > LEAST else LEAST


def certainty(entropy: float, vocab_size: int) -> float:
    """1 - H / ln V: 0 for uniform noise, 1 when only one token is possible. Entropy in nats."""
    if vocab_size < 2:
        return 1.0
    return min(1.0, max(0.0, 1.0 - entropy / math.log(vocab_size)))


def window_means(values: Sequence[float], size: int) -> Floats:
    """Mean of every window of that size, stride 1; of all values when there are fewer. Linear.

    Shape (max(1, n - size + 1),); (0,) for no values.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.size <= size:
        return numbers.mean(keepdims=True) if numbers.size else numbers
    sums = np.concatenate([[0.0], np.cumsum(numbers)])
    means: Floats = (sums[size:] - sums[:-size]) / size
    return means


def deepconf(trace: Trace) -> dict[str, Any]:
    """DeepConf's measures, nats; None for no tokens.

    Shown, never scored: C is not monotone in certainty. Uniform noise has C = ln V = 11.9 with Qwen3's
    vocabulary, p = 0.99 has 7.3.

    Source: arXiv 2508.15260; `bottom10` is the mean of the lowest tenth of the windows.
    """
    means = window_means(trace.deepconf, trace.window())
    shape: dict[str, Any] = {"k": trace.k, "window": trace.window()}
    if not means.size:
        return dict.fromkeys(("mean", "tail", "lowest_group", "bottom10")) | shape
    lowest = np.sort(means)[: max(1, means.size // 10)]
    return {
        "mean": round(float(np.mean(trace.deepconf)), 4),
        "tail": round(float(np.mean(trace.deepconf[-trace.tail() :])), 4),
        "lowest_group": round(float(means.min()), 4),
        "bottom10": round(float(lowest.mean()), 4),
        **shape,
    }


@dataclass(frozen=True, slots=True)
class Confidence:
    """`score` is 0 to 1; only a calibrated one may be read as a probability."""

    score: float
    calibrated: bool
    method: str  # logistic-v1 | formula-v1
    calibration: dict[str, Any] | None
    components: dict[str, Any]


def components(
    thought: Trace, answer: Trace, **circumstances: Unpack[Circumstances]
) -> dict[str, Any]:
    """What the score is made of; everything can be written as JSON.

    `answer_prob` is the geometric mean of the answer's token probabilities, `token_entropy` the mean
    certainty at the thought's end, `lowest_window` that of its least sure stretch. The answer stands in
    for a thought that was skipped. An answer without log-probabilities (taken from the thought as a last
    resort) has probability and certainty 0: the model never gave it.
    """
    sure = float(np.mean(answer.certainty)) if len(answer) else 0.0
    drawn = math.exp(float(np.mean(answer.drawn))) if len(answer) else 0.0
    told = thought if len(thought) else answer
    return {
        "answer_prob": round(min(1.0, drawn), 6),
        "answer_certainty": round(sure, 6),
        "token_entropy": round(thought.tail_certainty() if len(thought) else sure, 6),
        "lowest_window": round(told.lowest_window(), 6),
        "deepconf": deepconf(told),
        "length_tokens": len(thought),
        "verbal": None,
        **circumstances,
    }


def features(measured: Mapping[str, Any]) -> list[float]:
    """The numbers that a calibration weighs, in the order of FEATURES.

    An agreement or P(True) that nobody asked for is 0.5: it speaks for neither side.
    """
    agreement, p_true = measured["agreement"], measured["p_true"]
    named = {
        "log_answer_prob": math.log(max(measured["answer_prob"], LEAST_PROB)),
        "answer_certainty": measured["answer_certainty"],
        "token_entropy": measured["token_entropy"],
        "lowest_window": measured["lowest_window"],
        "log_length": math.log1p(measured["length_tokens"]),
        "forced": measured["forced"],
        "looped": measured["looped"],
        "truncated": measured["truncated"],
        "failed_step_fraction": measured["failed_step_fraction"],
        "agreement": UNKNOWN if agreement is None else agreement,
        "p_true": UNKNOWN if p_true is None else p_true,
    }
    return [float(named[name]) for name in FEATURES]


def score(measured: dict[str, Any], calibration: Calibration | None) -> Confidence:
    """By the model's calibration; without one by `by_formula`, and `calibrated` is false.

    A calibration for another k is not used: the entropy of more candidates is another number.
    """
    if calibration is not None and calibration.k == measured["deepconf"]["k"]:
        value = calibration.probability(features(measured))
        return Confidence(round(value, 4), True, "logistic-v1", calibration.told(), measured)
    return Confidence(round(by_formula(measured), 4), False, "formula-v1", None, measured)


def by_formula(measured: Mapping[str, Any]) -> float:
    """Geometric mean of what is known: the answer's probability and certainty, the certainty at the
    thought's end, and, where asked for, agreement and P(True). Rises with each; near 0 for noise, whose
    answer has probability 1 / V. At most 0.5 when the thought was cut or went in circles, or the answer
    was cut."""
    parts = [measured["answer_prob"], measured["answer_certainty"], measured["token_entropy"]]
    parts += [measured[key] for key in ("agreement", "p_true") if measured[key] is not None]
    value = float(math.prod(parts) ** (1 / len(parts)))
    capped = measured["forced"] or measured["looped"] or measured["truncated"]
    return min(value, CAP_FORCED) if capped else value
