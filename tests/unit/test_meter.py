"""What a request cost: what its caller was told, or what was drawn where that was more."""

from contextlib import aclosing
from typing import Any

import pytest

from gateway.policy.meter import METER, Cost, Meter
from gateway.thinking.dialect import Dialect
from gateway.thinking.effort import Plan
from gateway.thinking.run import Piece, ThinkingRun
from tests.drawn import Drawn
from tests.runs import ANSWER, BLANK, each_dialect, engine_with, phases, run_on
from tests.scripted import Script, ScriptedEngine


def usage(prompt: int, completion: int, cached: int = 0) -> dict[str, Any]:
    details = {"cached_tokens": cached}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "prompt_tokens_details": details,
    }


def meter(told: dict[str, Any] | None = None, *drawn: Drawn) -> Meter:
    made = Meter({} if told is None else {"usage": told})
    made.drawn.extend(drawn)
    return made


@pytest.mark.parametrize(
    ("told", "drawn", "expected"),
    [
        (None, [], Cost()),
        (usage(5, 9, 2), [Drawn(5, 2, 9)], Cost(5, 2, 0, 9)),
        (None, [Drawn(5, 2, 3)], Cost(5, 2, 0, 3)),
        (usage(5, 9), [Drawn(5, 0, 12)], Cost(5, 0, 0, 12)),
        (usage(5, 9), [], Cost(5, 0, 0, 9)),
        # A batch of which one item failed in the middle: it was told of the others only.
        (usage(5, 4), [Drawn(5, 0, 4), Drawn(7, 1, 2)], Cost(12, 1, 0, 6)),
        # Siblings of one prompt.
        (None, [Drawn(5, 0, 4), Drawn(0, 0, 4)], Cost(5, 0, 0, 8)),
    ],
)
def test_the_cost_is_what_was_told_or_drawn(
    told: dict[str, Any] | None, drawn: list[Drawn], expected: Cost
) -> None:
    assert meter(told, *drawn).cost() == expected


async def run_metered(
    engine: ScriptedEngine, stop_after: int | None = None, **request: Any
) -> tuple[Cost, ThinkingRun, list[Piece]]:
    """Run a thought and its answer, perhaps not to the end."""
    plan = Plan(level=3)
    counting = Meter({"plan": plan})
    token = METER.set(counting)
    seen: list[Piece] = []
    try:
        run = run_on(engine, **request)
        plan.begin([run])
        async with aclosing(run.pieces()) as pieces:
            async for piece in pieces:
                seen.append(piece)
                if len(seen) == stop_after:
                    break
    finally:
        METER.reset(token)
    return counting.cost(), run, seen


NATURAL = Script(["so so", "</think>", "It is", " four."], tail=(0,))
ENDS: dict[str, dict[str, Script]] = {
    "natural": {"think": NATURAL},
    "at the budget": {"think": Script(["x"] * 900), "answer": ANSWER},
    "by an end of text": {"think": Script(["so so"], tail=(0,)), "answer": ANSWER},
    "an answer after a blank one": {"think": NATURAL, "answer": BLANK, "retry": ANSWER},
    "blank at first": {
        "think": Script(["so", "</think>"], tail=(0,)),
        "answer": BLANK,
        "retry": ANSWER,
    },
}


@pytest.mark.parametrize(
    "options", [{}, {"budget": 0}, {"apart": True}, {"thinks": False}], ids=str
)
@pytest.mark.parametrize("scripts", ENDS.values(), ids=list(ENDS))
@each_dialect
async def test_a_thought_and_its_answer_cost_what_vllms_handlers_count(
    scripts: dict[str, Script], options: dict[str, Any], dialect: Dialect
) -> None:
    engine = engine_with(phases(**scripts), dialect=dialect)

    cost, run, pieces = await run_metered(engine, **options)

    assert cost.prompt == run.outcome.prompt_tokens
    assert cost.thinking == run.outcome.reasoning_tokens
    assert cost.thinking + cost.answer == sum(len(piece.token_ids) for piece in pieces)


async def test_a_thought_that_was_stopped_is_counted_as_far_as_it_came() -> None:
    engine = engine_with(phases(think=Script(["x"] * 900)))

    cost, run, _ = await run_metered(engine, stop_after=10)

    assert cost == Cost(run.outcome.prompt_tokens, 0, 10, 0)


async def test_an_answer_that_was_hung_up_on_is_charged_as_far_as_it_was_drawn() -> None:
    """Of what is not shown, only the engine knows."""
    thought, blank = Script(["so", "</think>"]), Script(["\n"] * 50)
    engine = engine_with(phases(think=thought, answer=blank, retry=ANSWER))

    cost, run, _ = await run_metered(engine, stop_after=4)

    assert run.phase != "done"
    assert cost.answer >= 50
