"""Always an answer within max_tokens, whatever the model does: marks, blanks, ends of text, loops."""

import pytest

from gateway.engines.types import Job
from gateway.errors import NoAnswer
from gateway.thinking.budget import MIN_TOTAL
from gateway.thinking.dialect import EARLY_STOP, Dialect
from gateway.thinking.run import FORBID
from tests.runs import (
    APART,
    BLANK,
    EOS,
    LONG,
    OPENED,
    PROMPT,
    count,
    each_dialect,
    engine_with,
    finish,
    names,
    phases,
    text,
)
from tests.scripted import KNOWS_MARKS, OCTETS, PLAIN_TEXT, Entry, Script, said, text_of, tokens


def endless(job: Job) -> Script:
    """Never closes its thought, never stops."""
    spoken = "y" * job.max_tokens
    return Script([spoken[at : at + 7] for at in range(0, len(spoken), 7)], finish="length")


@each_dialect
@pytest.mark.parametrize("apart", [False, True], ids=["watched", "apart"])
@pytest.mark.parametrize("level", range(6))
@pytest.mark.parametrize("total", [1, 2, 8, 16, 31, 32, 33, 160, 400, 1000])
async def test_thought_mark_and_answer_fit_into_max_tokens(
    dialect: Dialect, apart: bool, level: int, total: int
) -> None:
    engine = engine_with(endless, dialect=dialect)
    thinks = level > 0 and total >= MIN_TOTAL  # as effort.read() has it

    run, pieces = await finish(engine, level=level, thinks=thinks, max_tokens=total, apart=apart)

    out = run.outcome
    assert text(pieces, "answer") == out.answer != ""
    assert count(pieces, "reasoning") == out.reasoning_tokens <= out.budget.applied
    assert count(pieces, "answer") == out.answer_tokens
    assert sum(len(piece.token_ids) for piece in pieces) <= total
    assert out.reasoning_tokens + out.forced_tokens + out.answer_tokens <= total


@each_dialect
@pytest.mark.parametrize("opened", [False, True], ids=["opened by us", "opened by the template"])
@pytest.mark.parametrize("left", [1, 2, 5, 8, 9, 12, 13, 31, 32, 40, 200, 600])
async def test_a_context_nearly_full_is_never_exceeded(
    dialect: Dialect, opened: bool, left: int
) -> None:
    prompt = dialect.encode(OPENED if opened else PROMPT)
    engine = engine_with(endless, dialect=dialect, context=len(prompt) + left)

    run, _ = await finish(engine, prompt=prompt, max_tokens=4096)

    fits = [len(job.prompt) + job.max_tokens <= len(prompt) + left for job in engine.jobs]
    assert run.outcome.answer and all(fits)


@pytest.mark.parametrize("size", [1, 2, 5, 100])
@pytest.mark.parametrize("strip", [True, False])
async def test_a_second_mark_in_front_of_the_answer_is_taken_out(size: int, strip: bool) -> None:
    spoken = tokens("Hm.</think>\n</think>\n\nFour.")
    script = said(KNOWS_MARKS, spoken, [size] * 50, tail=(EOS,))
    engine = engine_with(phases(think=script))

    run, pieces = await finish(engine, strip=strip)

    drawn = [token for piece in pieces if piece.phase == "answer" for token in piece.token_ids]
    marks = "" if strip else "\n</think>\n\n"
    assert (run.outcome.answer, run.outcome.engine_requests) == (f"{marks}Four.", 1)
    assert (tokens("</think>")[0] in drawn) is not strip  # no token of a mark without its text


async def test_a_mark_taken_out_takes_its_row_along() -> None:
    rows = [{token: Entry(-float(place))} for place, token in enumerate(tokens("a</think>b"))]
    spoken = tokens("a</think></think>b")
    script = said(KNOWS_MARKS, spoken, logprobs=[*rows[:2], {0: Entry(-9)}, rows[2]])

    _, pieces = await finish(engine_with(phases(think=script)))

    assert pieces[-1].token_ids == list(tokens("b"))
    assert pieces[-1].logprobs == [rows[2]]


async def test_a_mark_that_is_talked_about_later_stays() -> None:
    engine = engine_with(
        phases(think=Script(["x</think>The mark ", "</think> ends it"])), dialect=PLAIN_TEXT
    )

    run, _ = await finish(engine)

    assert run.outcome.answer == "The mark </think> ends it"


async def test_an_answer_that_begins_with_half_a_character_is_whole() -> None:
    script = said(OCTETS, OCTETS.encode("Hm.</think>€ 4"))
    engine = engine_with(phases(think=script), dialect=OCTETS)

    run, pieces = await finish(engine)

    assert run.outcome.answer == text(pieces, "answer") == "€ 4"
    assert run.outcome.answer_tokens == len(OCTETS.encode("€ 4"))


@pytest.mark.parametrize(
    "behind", ["", "\n\n", "</think>", " </think>\n"], ids=["nothing", "blank", "mark", "both"]
)
async def test_what_nobody_saw_of_a_watched_answer_is_not_in_the_next_one(behind: str) -> None:
    engine = engine_with(phases(think=Script(["Hm.</think>", behind], tail=(EOS,))))

    run, pieces = await finish(engine, strip=False)

    assert names(engine) == ["r-think", "r-answer"]
    assert run.outcome.answer == "It is four."
    assert count(pieces, "answer") == len("It is four.") + 1  # with its own EOS
    assert EOS not in engine.jobs[1].prompt
    assert [piece.phase for piece in pieces].count("close") == 1


@pytest.mark.parametrize("blank", ["", " \n", "\ufffd", "<think>", "\n</think> "])
async def test_each_fallback_follows_the_one_before(blank: str) -> None:
    nothing = Script([blank], tail=(EOS,))
    thought = Script(["Well.\nIt is four.\n<think>\n"], tail=(EOS,))
    engine = engine_with(phases(think=thought, answer=nothing, retry=nothing))

    run, pieces = await finish(engine)

    out = run.outcome
    assert names(engine) == ["r-think", "r-answer", "r-retry"]
    assert (out.answer, out.answer_source) == ("It is four.", "extracted_from_reasoning")
    assert (pieces[-1].text, pieces[-1].finish_reason) == ("It is four.", "stop")
    assert count(pieces, "answer") == out.answer_tokens == len(pieces[-1].token_ids)


async def test_an_answer_taken_from_the_thought_fits_into_max_tokens_too() -> None:
    thought = Script(["four " * 16], tail=(EOS,))
    engine = engine_with(phases(think=thought, answer=BLANK, retry=BLANK))

    run, _ = await finish(engine, max_tokens=256)

    out = run.outcome
    assert out.reasoning_tokens + out.forced_tokens + out.answer_tokens == 256
    assert out.answer.startswith("four four")


async def test_the_last_resort_draws_greedily_from_what_can_be_seen() -> None:
    engine = engine_with(phases(think=LONG, answer=BLANK, retry=Script(["4"])))

    run, _ = await finish(engine, budget=10)

    changes = engine.jobs[-1].changes
    assert (changes["temperature"], changes["allowed_token_ids"]) == (0, list(KNOWS_MARKS.visible))
    assert (run.outcome.answer, run.outcome.answer_source) == ("4", "model")


async def test_with_neither_answer_nor_thought_it_is_an_error() -> None:
    engine = engine_with(phases(think=Script([" "], tail=(EOS,)), answer=BLANK, retry=BLANK))

    with pytest.raises(NoAnswer):
        await finish(engine)


@each_dialect
@pytest.mark.parametrize("stop_reason", [None, EOS])
@pytest.mark.parametrize("budget", [100, 3], ids=["in time", "at the budget"])
async def test_an_end_of_text_in_the_thought_is_not_in_the_answers_prompt(
    dialect: Dialect, stop_reason: int | None, budget: int
) -> None:
    script = Script(["Hm"], tail=(EOS,), stop_reason=stop_reason)
    engine = engine_with(phases(think=script), dialect=dialect)

    run, _ = await finish(engine, budget=budget)

    assert (run.outcome.end_reason, run.outcome.forced) == ("eos", True)
    assert dialect.decode(engine.jobs[1].prompt) == f"{OPENED}Hm{EARLY_STOP}"


async def test_a_loop_is_answered_behind_the_phrase() -> None:
    engine = engine_with(phases(think=Script(["round and "] * 20)))
    engine.loops = True

    run, _ = await finish(engine)

    assert (run.outcome.end_reason, run.outcome.forced) == ("loop", True)
    assert text_of(engine.jobs[1].prompt).endswith(EARLY_STOP)
    assert engine.aborted == ["r-think"]


async def test_a_thought_apart_has_no_grammar_and_no_stop_strings_but_the_marks() -> None:
    for dialect, script in (
        (KNOWS_MARKS, APART),
        (PLAIN_TEXT, Script(["Two.</think>"], stop_reason="</think>")),
    ):
        engine = engine_with(phases(think=script), dialect=dialect)

        run, pieces = await finish(engine, apart=True, sampling={"stop": ["END"]})

        think, answer = engine.jobs
        stops = [
            *think.changes["stop"],
            *map(lambda id: dialect.decode([id]), think.changes["stop_token_ids"]),
        ]
        assert stops == ["</think>", "<tool_call>"]
        assert think.changes["structured_outputs"] is None and think.reasoning_ended is None
        assert not {"stop", "structured_outputs"} & set(answer.changes)
        assert answer.reasoning_ended is True
        assert (text(pieces, "close"), run.outcome.end_reason) == ("</think>", "natural")
        assert dialect.decode(answer.prompt) == f"{OPENED}Two.</think>\n\n"


@pytest.mark.parametrize(
    ("apart", "cached"), [(True, (5, 32)), (False, (7, None))], ids=["apart", "watched"]
)
async def test_cached_tokens_are_told_of_each_request(
    apart: bool, cached: tuple[int, int | None]
) -> None:
    watched = Script(["Two.</think>", "Four"], tail=(EOS,), cached=7)
    engine = engine_with(phases(think=APART if apart else watched))

    run, _ = await finish(engine, apart=apart)

    assert (run.outcome.cached_tokens, run.outcome.answer_cached_tokens) == cached


async def test_cached_tokens_of_a_thought_that_was_none_are_not_the_answers() -> None:
    engine = engine_with(phases(think=Script([""], tail=(EOS,), cached=3)))

    run, _ = await finish(engine)

    assert (run.outcome.cached_tokens, run.outcome.answer_cached_tokens) == (3, 32)


@pytest.mark.parametrize(("wanted", "given"), [(0, 0), (7, 3), (4, 0), (5000, 990)])
async def test_min_tokens_binds_what_is_left_of_it_to_the_answer(wanted: int, given: int) -> None:
    engine = engine_with(phases(think=APART))  # four tokens, a mark, and the answer's two newlines

    await finish(engine, apart=True, min_tokens=wanted, max_tokens=997)

    think, answer = engine.jobs
    assert (think.changes["min_tokens"], answer.changes["min_tokens"]) == (0, given)


@pytest.mark.parametrize(("apart", "least"), [(False, 1), (True, 0)])
async def test_an_answer_may_end_at_once_only_where_a_stop_string_may_end_it(
    apart: bool, least: int
) -> None:
    engine = engine_with(phases(think=LONG, answer=BLANK))

    await finish(engine, apart=apart, budget=10)

    assert [job.changes["min_tokens"] for job in engine.jobs[1:]] == [least, 1]


async def test_min_tokens_of_a_watched_run_is_the_engines_own() -> None:
    engine = engine_with(phases(think=Script(["Hm.</think>Four"], tail=(EOS,))))

    await finish(engine, min_tokens=9)

    assert "min_tokens" not in engine.jobs[0].changes


@pytest.mark.parametrize(
    ("dialect", "thinks", "forbidden"),
    [
        (KNOWS_MARKS, True, {*tokens("<think>"), *tokens("</think>")}),
        (KNOWS_MARKS, False, set()),
        (PLAIN_TEXT, True, set()),  # no token of text can be forbidden
    ],
)
async def test_an_answer_cannot_open_or_close_a_thought(
    dialect: Dialect, thinks: bool, forbidden: set[int]
) -> None:
    engine = engine_with(phases(think=LONG), dialect=dialect)

    await finish(engine, thinks=thinks, level=3 if thinks else 0, budget=10)

    assert engine.jobs[-1].changes.get("logit_bias", {}) == dict.fromkeys(forbidden, FORBID)
