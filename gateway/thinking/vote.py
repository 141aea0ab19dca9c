"""Which of several answers to give. Weights decide the vote; the confidence told is another matter."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gateway.thinking.values import canonical

# CISC (arXiv 2502.06233) weighs by softmax(confidence / T) and tunes T for each model, which takes
# labels. At 0.5 two samples lose to one that is 0.35 surer, about where plain weights would put it.
TEMPERATURE = 0.5
SURE = 0.95
ENOUGH_VOTES = 3
LEAST_FINISHED = 4
PERCENTILE = 10  # DeepConf's eta of 90: only the least sure tenth is given up


@dataclass(frozen=True, slots=True)
class Ballot:
    """One finished sample: its answer's value (None: a free text) and how sure it was, 0 to 1."""

    value: str | None
    weight: float
    index: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """`agreement` is (votes + 1) / (samples + 2); None where there was nothing to vote on."""

    winner: int  # index of the sample whose answer is given
    value: str | None  # as that sample wrote it
    agreement: float | None
    votes: dict[str, float]  # canonical value -> its share of the weights; they sum to 1


def decide(ballots: Sequence[Ballot]) -> Verdict:
    """Weighted majority; the surest sample of the majority speaks. Only free texts: the surest one.

    Raises:
        ValueError: no ballots.
    """
    groups: dict[str, list[Ballot]] = defaultdict(list)
    for ballot in ballots:
        if ballot.value is not None:
            groups[canonical(ballot.value)].append(ballot)
    if not groups:
        return Verdict(_surest(ballots).index, None, None, {})
    masses = {
        value: math.fsum(math.exp(ballot.weight / TEMPERATURE) for ballot in group)
        for value, group in groups.items()
    }
    chosen = max(groups, key=lambda value: (masses[value], *_rank(_surest(groups[value]))))
    winner = _surest(groups[chosen])
    agreement = (len(groups[chosen]) + 1) / (len(ballots) + 2)
    total = math.fsum(masses.values())
    shares = {value: round(mass / total, 4) for value, mass in masses.items()}
    return Verdict(winner.index, winner.value, round(agreement, 4), shares)


def _surest(ballots: Sequence[Ballot]) -> Ballot:
    return max(ballots, key=_rank)


def _rank(ballot: Ballot) -> tuple[float, int]:
    """Among equally sure ones the first sample, so that the same request has the same winner."""
    return ballot.weight, -ballot.index


def consensus(values_so_far: Sequence[str | None], n_total: int) -> bool:
    """The samples that still run cannot change the majority, or hardly would.

    By heads: how sure each sample is, is not looked at. A sample without a value is finished and votes
    for nothing. False until two samples have a value.
    """
    known = [canonical(value) for value in values_so_far if value is not None]
    if len(known) < 2:
        return False
    counts = [count for _, count in Counter(known).most_common(2)]
    first, second = counts[0], (counts[1] if len(counts) > 1 else 0)
    if first > second + n_total - len(values_so_far):
        return True
    if first >= ENOUGH_VOTES and first / len(values_so_far) >= SURE:
        return True
    return stays(first, second) > SURE


def stays(first: int, second: int) -> float:
    """P(the leader is really more frequent than the runner-up): Beta(first + 1, second + 1) above 1/2.

    Source: Adaptive-Consistency (arXiv 2305.11860); the integral is a binomial sum for whole numbers.
    """
    n = first + second + 1
    return float(sum(math.comb(n, k) for k in range(first + 1)) / 2**n)


def low_confidence_threshold(lowest_groups: Sequence[float]) -> float | None:
    """The lowest window below which a running sample is given up; None while too few are through.

    `lowest_groups` are `Trace.lowest_window()` of the finished samples: by certainty, since DeepConf's
    own C calls noise sure.

    Source: DeepConf online, `np.percentile(..., 100 - eta)`; its warm-up is 16 samples, ours 4.
    """
    if len(lowest_groups) < LEAST_FINISHED:
        return None
    return float(np.percentile(lowest_groups, PERCENTILE))
