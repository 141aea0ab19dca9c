"""How many tokens a thought may take, and how many are kept for the answer.

The caps follow what vLLM #55382 proposes, the shares OpenRouter's; docs/api.md tells callers.
"""

import math
from dataclasses import dataclass

# Below this the phrase that ends a thought would eat the answer; such requests answer at once.
MIN_TOTAL = 32
MIN_RESERVE = 64
MAX_RESERVE = 4096


@dataclass(frozen=True, slots=True)
class Depth:
    """One level: a cap in tokens, and the share of all output tokens it may take."""

    name: str
    cap: int
    share: float


DEPTHS = (
    Depth("none", 0, 0.0),
    Depth("minimal", 1024, 0.50),
    Depth("low", 4096, 0.60),
    Depth("medium", 8192, 0.75),
    Depth("high", 16384, 0.80),
    Depth("xhigh", 32768, 0.85),
)
NAMES = {depth.name: level for level, depth in enumerate(DEPTHS)} | {"max": 5}


@dataclass(frozen=True, slots=True)
class Wish:
    """How long to think: by level, or exactly; and how long the operator lets anybody think. Tokens."""

    level: int
    explicit: int | None = None
    ceiling: int | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """What was asked and what is given; tokens."""

    requested: int | None  # the explicit budget; None: by depth
    applied: int  # 0: answer at once
    clamped: bool  # less was given than was asked, exactly or by depth
    answer_reserve: int


def plan(wish: Wish, total: int, forced: int) -> Budget:
    """Split `total` output tokens into thought and answer.

    `forced` is the length of the phrase that ends a thought early. An explicit budget beats the level,
    the ceiling beats both.
    """
    reserve = _reserve(total)
    depth = DEPTHS[wish.level]
    by_depth = min(depth.cap, int(depth.share * total))
    wanted = by_depth if wish.explicit is None or wish.level == 0 else wish.explicit
    room = fitting(total, forced)
    applied = min(wanted, room, wanted if wish.ceiling is None else wish.ceiling)
    return Budget(wish.explicit, applied, applied < wanted, reserve)


def fitting(total: int, forced: int) -> int:
    """The longest thought that leaves room for its answer in so many tokens."""
    return max(0, total - _reserve(total) - forced) if total >= MIN_TOTAL else 0


def _reserve(total: int) -> int:
    return min(max(MIN_RESERVE, math.ceil(total / 4)), MAX_RESERVE, max(1, total // 2))
