"""How a run ends early: engines that die, callers who leave, `answer_now`, and trial answers."""

import asyncio

import pytest

from gateway.engines.types import Job
from gateway.errors import EngineUnavailable
from gateway.thinking.dialect import EARLY_STOP
from tests.runs import BLANK, EOS, LONG, OPENED, engine_with, finish, phases, run_on, text
from tests.scripted import PATIENCE_S, Entry, Script, text_of, tokens

DEATHS = [
    ("think", {"think": LONG}),
    ("answer", {"think": LONG}),
    ("retry", {"think": LONG, "answer": BLANK}),
    ("probe1", {"think": Script(["x" * 70 + ".", "y"])}),
]


@pytest.mark.parametrize(("phase", "scripts"), DEATHS, ids=[phase for phase, _ in DEATHS])
@pytest.mark.parametrize("fail_at", [0, 1])
async def test_an_engine_that_dies_is_told_in_each_phase(
    phase: str, scripts: dict[str, Script], fail_at: int
) -> None:
    dying = Script(["", ""], failure=EngineUnavailable("the engine stopped"), fail_at=fail_at)
    engine = engine_with(phases(**scripts | {phase: dying}))

    with pytest.raises(EngineUnavailable, match="the engine stopped"):
        await finish(engine, early_exit="probe", budget=None if phase == "probe1" else 10)

    assert engine.unfinished() == 0


async def test_an_engine_that_dies_in_a_watched_answer_is_told() -> None:
    dying = Script(["a</think>", "b", "c"], failure=EngineUnavailable("stopped"), fail_at=2)
    run = run_on(engine_with(phases(think=dying)))

    with pytest.raises(EngineUnavailable, match="stopped"):
        _ = [piece async for piece in run.pieces()]

    assert run.outcome.answer == "b"


WATCHED = Script(["Hm", ".</think>", "It", " is", " four"], tail=(EOS,))


@pytest.mark.parametrize(
    ("phase", "think", "aborted"),
    [
        ("reasoning", WATCHED, ["r-think"]),
        ("close", WATCHED, ["r-think"]),
        ("answer", WATCHED, ["r-think"]),
        ("close", LONG, ["r-think"]),  # dropped at the budget; the answer has not begun
        ("answer", LONG, ["r-think", "r-answer"]),
    ],
)
async def test_a_caller_who_leaves_ends_the_work(
    phase: str, think: Script, aborted: list[str]
) -> None:
    engine = engine_with(phases(think=think))
    pieces = run_on(engine, budget=10).pieces()
    while (await anext(pieces)).phase != phase:
        pass

    await pieces.aclose()

    assert (engine.aborted, engine.unfinished()) == (aborted, 0)


@pytest.mark.parametrize(
    ("phase", "aborted"),
    [("answer", "r-answer"), ("retry", "r-retry"), ("probe1", "r-think-probe1")],
)
async def test_cancelling_while_the_engine_is_silent_ends_the_work(
    phase: str, aborted: str
) -> None:
    inside = asyncio.Event()
    silent = Script(gate=asyncio.Event())
    scripts = {"think": LONG, "answer": BLANK} if phase == "retry" else {"think": LONG}
    if phase == "probe1":
        scripts = {"think": Script(["x" * 70 + ".", "y"])}

    def script(job: Job) -> Script:
        if job.request_id == aborted:
            inside.set()
            return silent
        return phases(**scripts)(job)

    engine = engine_with(script)
    budget = None if phase == "probe1" else 10
    task = asyncio.create_task(finish(engine, early_exit="probe", budget=budget))
    await asyncio.wait_for(inside.wait(), PATIENCE_S)
    await asyncio.sleep(0)

    task.cancel()
    await asyncio.wait({task})

    assert aborted in engine.aborted and engine.unfinished() == 0


async def test_answer_now_where_nothing_would_be_thought_is_not_told_as_forced() -> None:
    run = run_on(engine_with(phases()), thinks=False, level=0)
    run.answer_now()

    _ = [piece async for piece in run.pieces()]

    assert (run.outcome.end_reason, run.outcome.forced) == ("skipped", False)


async def test_answer_now_after_the_end_says_so() -> None:
    run, _ = await finish(engine_with(phases(think=WATCHED)))

    assert run.answer_now() == "done"


def trial(text: str, logprob: float) -> Script:
    return Script([text], logprobs=[{token: Entry(logprob)} for token in tokens(text)])


@pytest.mark.parametrize("thought", ["x" * 62 + ".", "x" * 80], ids=["too early", "no sentence"])
async def test_a_probe_asks_at_the_end_of_sentences_and_not_too_often(thought: str) -> None:
    engine = engine_with(phases(think=Script([thought, "</think>Four"]), probe1=trial("4", 0)))

    run, _ = await finish(engine, early_exit="probe")

    assert (run.outcome.probe_trials, run.outcome.end_reason) == (0, "natural")


async def test_a_sure_probe_ends_the_thought_and_is_counted_apart() -> None:
    thought = Script(["x" * 70 + ".", "y" * 70 + ".", "z"])
    probes = {"probe1": trial("42", -1.0), "probe2": trial("421", -0.01)}
    engine = engine_with(phases(think=thought, **probes))

    run, pieces = await finish(engine, early_exit="probe")

    out = run.outcome
    assert (out.end_reason, out.forced) == ("early_exit", True)
    assert (out.probe_trials, out.probe_tokens, out.reasoning_tokens) == (2, 5, 142)
    assert sum(len(piece.token_ids) for piece in pieces) <= 1000
    assert text_of(engine.jobs[2].prompt).startswith(
        f"{OPENED}{thought.texts[0]}{thought.texts[1]}"
    )
    assert text_of(engine.jobs[-1].prompt).endswith(EARLY_STOP)


async def test_a_length_in_the_answer_is_the_answers_end() -> None:
    engine = engine_with(phases(think=LONG, answer=Script(["It", " is"], finish="length")))

    run, pieces = await finish(engine, budget=10)

    assert run.outcome.finish_reason == pieces[-1].finish_reason == "length"
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)


async def test_a_plain_answer_is_the_stream_in_one() -> None:
    found = []
    for stream in (True, False):
        engine = engine_with(phases(think=LONG))
        run, pieces = await finish(engine, budget=10, stream=stream)
        found.append((text(pieces, "reasoning"), text(pieces, "answer"), run.outcome))
        assert [job.stream for job in engine.jobs] == [True, stream]  # a thought is always watched

    assert found[0] == found[1]
