"""One line of the doctor's: what was looked at, how it is, what to do."""

import enum
from collections.abc import Iterable
from dataclasses import dataclass


class Level(enum.StrEnum):
    OK = "ok"
    WARN = "warn"  # it serves, but not as well or not as safely as it could
    FAIL = "fail"  # it does not start, or does not serve


@dataclass(frozen=True, slots=True)
class Finding:
    """`remedy` is a sentence for an operator; empty only where nothing is to be done."""

    name: str
    level: Level
    told: str
    remedy: str = ""


def good(name: str, told: str) -> Finding:
    return Finding(name, Level.OK, told)


def warn(name: str, told: str, remedy: str) -> Finding:
    return Finding(name, Level.WARN, told, remedy)


def fail(name: str, told: str, remedy: str) -> Finding:
    return Finding(name, Level.FAIL, told, remedy)


def worst(findings: Iterable[Finding]) -> Level:
    """The gravest level among them; ok where there are none."""
    levels = list(Level)
    return max((finding.level for finding in findings), key=levels.index, default=Level.OK)
