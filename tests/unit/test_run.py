"""One bounded thought and its answer: how it ends, what the engine is asked, what a caller gets."""

import asyncio
import random
from collections.abc import AsyncGenerator

import pytest

from gateway.thinking.dialect import EARLY_STOP, Dialect
from gateway.thinking.run import Piece
from tests.runs import OPENED, PROMPT, count, each_dialect, finish, names, phases, run_on, text
from tests.scripted import PATIENCE_S, Entry, Script, ScriptedEngine, said, text_of, tokens

NATURAL = Script(["Two and two", ".</think>", "\n\nIt is", " four."], cached=5)


@pytest.fixture
def engine() -> ScriptedEngine:
    engine = ScriptedEngine()
    engine.script = phases(think=NATURAL)
    return engine


def answer_prompt(engine: ScriptedEngine) -> str:
    return text_of(engine.jobs[-1].prompt)


@each_dialect
async def test_a_natural_end_costs_one_engine_request(dialect: Dialect) -> None:
    engine = ScriptedEngine(dialect=dialect)
    engine.script = phases(think=NATURAL)

    run, pieces = await finish(engine)

    out = run.outcome
    assert names(engine) == ["r-think"] and out.engine_requests == 1
    assert text(pieces, "reasoning") == out.reasoning == "Two and two."
    assert text(pieces, "close") == "</think>"
    assert text(pieces, "answer") == out.answer == "It is four."
    assert (out.end_reason, out.forced, out.answer_source) == ("natural", False, "model")
    assert out.cached_tokens == 5 and pieces[-1].finish_reason == "stop"


@each_dialect
async def test_a_mark_in_the_middle_of_a_delta_is_found(dialect: Dialect) -> None:
    engine = ScriptedEngine(dialect=dialect)
    engine.script = phases(think=Script(["Hm. So</thi", "nk>Four", "."]))
    if dialect.knows_marks:
        engine.script = phases(think=Script(["Hm. So</think>Four", "."]))

    run, _ = await finish(engine)

    assert (run.outcome.reasoning, run.outcome.answer) == ("Hm. So", "Four.")
    assert run.outcome.engine_requests == 1


@each_dialect
async def test_what_only_begins_like_a_mark_stays_in_the_thought(dialect: Dialect) -> None:
    engine = ScriptedEngine(dialect=dialect)
    engine.script = phases(think=Script(["a </thi", "n air </", "think>b"]))
    if dialect.knows_marks:
        engine.script = phases(think=Script(["a </thi", "n air ", "</think>b"]))

    run, _ = await finish(engine)

    assert (run.outcome.reasoning, run.outcome.answer) == ("a </thin air ", "b")


@each_dialect
async def test_a_spent_budget_closes_the_thought_with_the_phrase(dialect: Dialect) -> None:
    engine = ScriptedEngine(dialect=dialect)
    engine.script = phases(think=Script(["Let me", " see whether", " it is so"]))

    run, pieces = await finish(engine, budget=10)

    out = run.outcome
    assert names(engine) == ["r-think", "r-answer"]
    assert (out.end_reason, out.forced) == ("budget", True)
    assert text(pieces, "reasoning") == out.reasoning == "Let me see"
    assert count(pieces, "reasoning") == out.reasoning_tokens == 10
    assert text(pieces, "close") == "</think>"
    assert dialect.decode(engine.jobs[-1].prompt) == f"{OPENED}Let me see{EARLY_STOP}"
    assert out.forced_tokens == len(dialect.phrase)
    assert EARLY_STOP.strip() not in out.answer + out.reasoning
    assert out.answer_cached_tokens == 32
    assert engine.aborted == ["r-think"]


async def test_near_the_budget_the_end_of_a_sentence_is_good_enough(engine: ScriptedEngine) -> None:
    engine.script = phases(think=Script(list("x" * 92 + ". And then more of it")))

    run, _ = await finish(engine, budget=100)

    assert run.outcome.reasoning == "x" * 92 + "."


@each_dialect
@pytest.mark.parametrize("budget", [1, 7, 20, 61, 200])
async def test_how_tokens_are_grouped_into_deltas_changes_nothing(
    dialect: Dialect, budget: int
) -> None:
    spoken = dialect.encode("First. Then </th and möre.\nSo it is 4 €.</think>\n\nIt is four €.")
    dice = random.Random(budget)
    outcomes = set()
    for most in (1, 2, 5, 20, 100):
        sizes = [dice.randint(1, most) for _ in spoken]
        engine = ScriptedEngine(dialect=dialect)
        engine.script = phases(think=said(dialect, spoken, sizes, tail=(0,)))
        run, pieces = await finish(engine, budget=budget)
        assert count(pieces, "reasoning") == run.outcome.reasoning_tokens <= budget
        parts = ("reasoning", "close", "answer")
        told = tuple((text(pieces, part), count(pieces, part)) for part in parts)
        outcomes.add((told, run.outcome.end_reason, engine.jobs[-1].prompt))

    assert len(outcomes) == 1, outcomes


@each_dialect
async def test_a_tool_call_ends_the_thought_and_goes_on_in_the_same_request(
    dialect: Dialect,
) -> None:
    engine = ScriptedEngine(dialect=dialect)
    engine.script = phases(think=Script(["I look. ", '<tool_call>{"name":', '"f"}</tool_call>']))

    run, pieces = await finish(engine)

    assert run.outcome.end_reason == "tool_call" and not run.outcome.forced
    assert text(pieces, "reasoning") == "I look. "
    assert run.outcome.answer == '<tool_call>{"name":"f"}</tool_call>'
    assert run.outcome.engine_requests == 1


async def test_a_tool_call_in_a_thought_apart_leads_to_an_answer_of_its_own(
    engine: ScriptedEngine,
) -> None:
    engine.script = phases(think=Script(["I look. ", "<tool_call>"]))

    run, _ = await finish(engine, apart=True)

    assert run.outcome.end_reason == "tool_call"
    assert answer_prompt(engine) == f"{OPENED}I look. \n</think>\n\n"


async def test_depth_zero_behind_an_opened_thought_closes_it_at_once(
    engine: ScriptedEngine,
) -> None:
    engine.script = phases(think=NATURAL)

    run, pieces = await finish(engine, thinks=False, level=0, prompt=tokens(OPENED))

    assert names(engine) == ["r-answer"]
    assert answer_prompt(engine) == f"{OPENED}\n</think>\n\n"
    assert {piece.phase for piece in pieces} == {"answer"}
    assert run.outcome.end_reason == "skipped" and not run.outcome.forced


async def test_depth_zero_adds_nothing_to_a_template_without_thoughts(
    engine: ScriptedEngine,
) -> None:
    await finish(engine, thinks=False, level=0)

    assert answer_prompt(engine) == PROMPT


async def test_a_thought_that_the_template_opened_is_not_opened_again(
    engine: ScriptedEngine,
) -> None:
    await finish(engine, prompt=tokens(OPENED))

    assert text_of(engine.jobs[0].prompt) == OPENED


async def test_white_space_is_held_back_until_something_can_be_seen(
    engine: ScriptedEngine,
) -> None:
    engine.script = phases(think=Script(["Hm.</think>", "\n", " \n", "Four"]))

    _, pieces = await finish(engine)

    answer = [piece for piece in pieces if piece.phase == "answer"]
    assert [piece.text for piece in answer] == ["Four"]
    assert len(answer[0].token_ids) == 7  # the white space's tokens are there all the same


async def advance(pieces: AsyncGenerator[Piece, None], phase: str) -> None:
    async for piece in pieces:
        if piece.phase == phase:
            return


async def test_cancelling_while_the_engine_is_silent_aborts_it(engine: ScriptedEngine) -> None:
    engine.script = lambda job: Script(gate=asyncio.Event())
    task = asyncio.create_task(finish(engine))
    await asyncio.wait_for(engine.crowded.wait(), PATIENCE_S)

    task.cancel()
    await asyncio.wait({task})

    assert engine.aborted == ["r-think"]


async def test_answer_now_before_the_start_skips_the_thought(engine: ScriptedEngine) -> None:
    run = run_on(engine)

    assert run.answer_now() == "waiting"
    pieces = [piece async for piece in run.pieces()]

    assert names(engine) == ["r-answer"] and text(pieces, "answer") == "It is four."
    assert run.outcome.end_reason == "answer_now" and run.outcome.reasoning_tokens == 0


async def test_answer_now_ends_the_thought_at_its_next_token(engine: ScriptedEngine) -> None:
    engine.script = phases(think=Script(["abc", "def", "ghi"]))
    run = run_on(engine)
    pieces = run.pieces()
    first = await anext(pieces)

    assert run.answer_now() == "thinking"
    rest = [piece async for piece in pieces]

    assert text([first, *rest], "reasoning") == "abcd"
    assert run.outcome.end_reason == "answer_now" and run.outcome.answer == "It is four."


async def test_answer_now_in_the_answer_changes_nothing(engine: ScriptedEngine) -> None:
    run = run_on(engine)
    pieces = run.pieces()
    await advance(pieces, "answer")

    assert run.answer_now() == "answering"
    _ = [piece async for piece in pieces]

    assert (run.outcome.answer, run.outcome.end_reason) == ("It is four.", "natural")


async def test_priority_and_sampling_hold_for_both_phases(engine: ScriptedEngine) -> None:
    engine.script = phases(think=Script(["x" * 40]))

    sampling = {"temperature": 0.5}
    changes = {"flat_logprobs": True}

    await finish(engine, priority=-3, budget=10, sampling=sampling, changes=changes)

    assert [(job.priority, job.sampling) for job in engine.jobs] == [(-3, sampling)] * 2
    assert all(job.changes["flat_logprobs"] for job in engine.jobs)


def exit_script(text: str, sure_at: int) -> Script:
    """Each token is certain; from `sure_at` on, `</think>` is as likely as what was drawn."""
    (close,) = tokens("</think>")
    rows = [
        {token: Entry(-0.7), close: Entry(-0.8 if place >= sure_at else -9.0)}
        for place, token in enumerate(tokens(text))
    ]
    return Script([text_of([token]) for token in tokens(text)], logprobs=rows)


async def test_early_exit_by_logprob_waits_for_the_end_of_a_sentence(
    engine: ScriptedEngine,
) -> None:
    engine.script = phases(think=exit_script("One. Two. Three. Four.", 6))

    run, _ = await finish(engine, early_exit="logprob")

    assert (run.outcome.reasoning, run.outcome.end_reason) == ("One. Two.", "early_exit")


async def test_early_exit_is_off_by_default(engine: ScriptedEngine) -> None:
    engine.script = phases(think=exit_script("One. Two.</think>Four", 0))

    run, _ = await finish(engine)

    assert run.outcome.end_reason == "natural"
