"""One bounded thought and its answer: how it ends, what the answer is told, and who is to blame."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from gateway.engines.types import Job
from gateway.errors import EngineUnavailable
from gateway.thinking.run import EARLY_STOP, Piece, Request, ThinkingRun
from tests.scripted import PATIENCE_S, Script, ScriptedEngine, text_of, tokens

PROMPT = "<user>2+2?<assistant>"
NATURAL = Script(["Two and two", "."], stop_reason="</think>", tail=tokens("</think>"), cached=5)
ANSWER = Script(["It is", " four."], finish="stop")


@pytest.fixture
def engine() -> ScriptedEngine:
    engine = ScriptedEngine()
    engine.script = phases(NATURAL, ANSWER)
    return engine


def phases(think: Script, answer: Script) -> Callable[[Job], Script]:
    return lambda job: think if job.request_id.endswith("-think") else answer


def request(**changes: Any) -> Request:
    fields: dict[str, Any] = {
        "request_id": "r",
        "prompt": tokens(PROMPT),
        "level": 3,
        "budget": None,
        "max_tokens": 1000,
        "sampling": {"temperature": 0.5},
    }
    return Request(**fields | changes)


async def finish(engine: ScriptedEngine, **changes: Any) -> tuple[ThinkingRun, list[Piece]]:
    run = ThinkingRun(engine, request(**changes))
    return run, [piece async for piece in run.pieces()]


def answer_prompt(engine: ScriptedEngine) -> str:
    return text_of(engine.jobs[-1].prompt)


async def test_a_thought_that_closes_itself_is_followed_by_the_answer(
    engine: ScriptedEngine,
) -> None:
    run, pieces = await finish(engine)

    out = run.outcome
    assert [piece.phase for piece in pieces] == [
        "reasoning",
        "reasoning",
        "reasoning_done",
        "answer",
        "answer",
    ]
    assert (out.reasoning, out.answer) == ("Two and two.", "It is four.")
    assert (out.end_reason, out.forced, out.answer_source) == ("natural", False, "model")
    assert answer_prompt(engine) == f"{PROMPT}<think>\nTwo and two.</think>\n\n"


async def test_a_spent_budget_closes_the_thought_with_the_phrase(engine: ScriptedEngine) -> None:
    engine.script = phases(Script(["Let me", " see"], finish="length"), ANSWER)

    run, _ = await finish(engine, budget=10)

    out = run.outcome
    assert (out.end_reason, out.forced, out.forced_tokens) == ("budget", True, len(EARLY_STOP))
    assert engine.jobs[0].max_tokens == out.budget.applied == 10
    assert answer_prompt(engine) == f"{PROMPT}<think>\nLet me see{EARLY_STOP}"


async def test_a_model_that_stops_inside_its_thought_is_made_to_answer(
    engine: ScriptedEngine,
) -> None:
    engine.script = phases(Script(["Hm"], finish="stop", stop_reason=None, tail=[0]), ANSWER)

    run, _ = await finish(engine)

    assert (run.outcome.end_reason, run.outcome.forced) == ("eos", True)
    assert answer_prompt(engine) == f"{PROMPT}<think>\nHm{EARLY_STOP}"


async def test_depth_zero_answers_at_once_behind_an_empty_thought(engine: ScriptedEngine) -> None:
    run, pieces = await finish(engine, level=0)

    assert [piece.phase for piece in pieces] == ["reasoning_done", "answer", "answer"]
    assert (run.outcome.end_reason, run.outcome.forced) == ("skipped", False)
    assert [job.request_id for job in engine.jobs] == ["r-answer"]
    assert answer_prompt(engine) == f"{PROMPT}<think>\n\n</think>\n\n"


async def test_cached_prompt_tokens_are_counted_also_when_nothing_is_thought(
    engine: ScriptedEngine,
) -> None:
    engine.script = lambda job: Script(["four"], cached=16)

    run, _ = await finish(engine, level=0)

    assert run.outcome.cached_tokens == 16


async def test_a_thought_that_the_template_opened_is_not_opened_again(
    engine: ScriptedEngine,
) -> None:
    await finish(engine, prompt=tokens(f"{PROMPT}<think>\n"))

    assert text_of(engine.jobs[0].prompt) == f"{PROMPT}<think>\n"


async def test_stop_strings_end_the_answer_and_not_the_thought(engine: ScriptedEngine) -> None:
    await finish(engine, stop=("END",))

    assert [job.sampling["stop"] for job in engine.jobs] == [["</think>"], ["END"]]


async def test_a_response_format_binds_the_answer_and_not_the_thought(
    engine: ScriptedEngine,
) -> None:
    shape = {"type": "json_object"}

    await finish(engine, response_format=shape)

    think, answer = engine.jobs
    assert "response_format" not in think.sampling
    assert answer.sampling["response_format"] == shape
    assert answer.reasoning_ended is True


async def test_sampling_and_priority_hold_for_both_phases(engine: ScriptedEngine) -> None:
    await finish(engine, sampling={"temperature": 0.1, "seed": 7}, priority=-3)

    assert [(job.sampling["temperature"], job.sampling["seed"]) for job in engine.jobs] == [
        (0.1, 7),
        (0.1, 7),
    ]
    assert {job.priority for job in engine.jobs} == {-3}


async def test_both_phases_together_stay_within_max_tokens(engine: ScriptedEngine) -> None:
    engine.script = phases(Script(["x" * 50], finish="length"), ANSWER)

    run, _ = await finish(engine, budget=50, max_tokens=400)

    assert engine.jobs[1].max_tokens == 400 - 50 - len(EARLY_STOP)
    assert run.outcome.budget.answer_reserve <= engine.jobs[1].max_tokens


async def test_the_context_bounds_both_phases(engine: ScriptedEngine) -> None:
    engine.script = phases(Script(["x"], finish="length"), ANSWER)

    await finish(engine, max_tokens=4096)

    context = engine.limits.max_model_len
    assert [len(job.prompt) + job.max_tokens <= context for job in engine.jobs] == [True, True]


@pytest.mark.parametrize("blank", [[], [""], [" \n"]], ids=["nothing", "empty", "white space"])
async def test_a_blank_answer_is_taken_from_the_thought_and_says_so(
    engine: ScriptedEngine, blank: list[str]
) -> None:
    engine.script = phases(Script(["First.\nIt is four.\n"], stop_reason="</think>"), Script(blank))

    run, pieces = await finish(engine)

    assert run.outcome.answer.strip() == "It is four."
    assert run.outcome.answer_source == "extracted_from_reasoning"
    assert pieces[-1] == Piece("answer", "It is four.")


@pytest.mark.parametrize("phase", ["think", "answer"])
async def test_an_engine_that_dies_raises_in_either_phase(
    engine: ScriptedEngine, phase: str
) -> None:
    dying = Script(["a", "b"], failure=EngineUnavailable("the engine stopped"), fail_at=1)
    engine.script = lambda job: dying if job.request_id.endswith(phase) else NATURAL

    with pytest.raises(EngineUnavailable, match="the engine stopped"):
        await finish(engine)

    assert engine.unfinished() == 0


async def advance(pieces: AsyncGenerator[Piece, None], phase: str) -> None:
    async for piece in pieces:
        if piece.phase == phase:
            return


@pytest.mark.parametrize(
    ("phase", "job"), [("reasoning", "r-think"), ("answer", "r-answer")], ids=["thought", "answer"]
)
async def test_closing_early_aborts_the_running_phase(
    engine: ScriptedEngine, phase: str, job: str
) -> None:
    pieces = ThinkingRun(engine, request()).pieces()
    await advance(pieces, phase)

    await pieces.aclose()

    assert engine.aborted == [job]
    assert engine.unfinished() == 0


async def test_cancelling_while_the_engine_is_silent_aborts_it(engine: ScriptedEngine) -> None:
    engine.script = lambda job: Script(gate=asyncio.Event())
    task = asyncio.create_task(finish(engine))
    await asyncio.wait_for(engine.crowded.wait(), PATIENCE_S)

    task.cancel()
    await asyncio.wait({task})

    assert engine.aborted == ["r-think"]
