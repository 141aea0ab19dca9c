"""Which of several answers to give. Weights decide the vote; the confidence told is another matter."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.thinking.values import canonical

# CISC (arXiv 2502.06233): softmax of confidence; colder makes the surest one a dictator.
TEMPERATURE = 0.25
SURE = 0.95
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
    value: str | None
    agreement: float | None
    votes: dict[str, float]


def decide(ballots: Sequence[Ballot]) -> Verdict:
    """Weighted majority; the surest sample of the majority speaks. Free texts: the surest one."""
    surest = max(ballots, key=lambda ballot: ballot.weight)
    voting = [ballot for ballot in ballots if ballot.value is not None]
    if not voting:
        return Verdict(surest.index, None, None, {})
    votes: dict[str, float] = defaultdict(float)
    for ballot in voting:
        votes[canonical(ballot.value or "")] += math.exp(ballot.weight / TEMPERATURE)
    total = sum(votes.values())
    shares = {value: round(share / total, 4) for value, share in votes.items()}
    chosen = max(votes, key=lambda value: votes[value])
    for_it = [ballot for ballot in voting if canonical(ballot.value or "") == chosen]
    winner = max(for_it, key=lambda ballot: ballot.weight)
    agreement = (len(for_it) + 1) / (len(ballots) + 2)
    return Verdict(winner.index, winner.value, round(agreement, 4), shares)


def consensus(values: Sequence[str | None], n_total: int) -> bool:
    """The rest cannot change the majority, or hardly would. Never with fewer than two."""
    known = [canonical(value) for value in values if value is not None]
    if len(known) < 2:
        return False
    ranked = [count for _, count in Counter(known).most_common(2)] + [0]
    first, second = ranked[0], ranked[1]
    if first > second + (n_total - len(values)):
        return True
    return stays(first, second) > SURE


def stays(first: int, second: int) -> float:
    """P(the leader is really more frequent than the runner-up), Beta(first + 1, second + 1) above one half.

    Source: adaptive consistency (arXiv 2305.11860), closed form by the binomial sum.
    """
    n = first + second + 1
    return float(sum(math.comb(n, k) for k in range(first + 1)) / 2**n)


def low_confidence_threshold(lowest: Sequence[float]) -> float | None:
    """Below which a running sample is given up; None while too few are through to know."""
    if len(lowest) < LEAST_FINISHED:
        return None
    ordered = sorted(lowest)
    return ordered[int(len(ordered) * PERCENTILE / 100)]
