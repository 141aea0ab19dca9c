"""Trial answers: when one is asked for, what it asks, and when it is sure."""

import math

import pytest

from gateway.engines.types import Job
from gateway.thinking.dialect import Dialect
from gateway.thinking.probe import EVERY, SURE, TRIAL, TRIAL_TOKENS, Probe
from gateway.thinking.thought import Thought
from tests.runs import each_dialect, engine_with
from tests.scripted import KNOWS_MARKS, Entry, Script, ScriptedEngine, tokens

SAMPLING = {"temperature": 0.7, "seed": 3}
JOB = Job("r-think", tokens("<user>2+2?<think>\n"), 1000, SAMPLING, priority=-2)


def trial(text: str, *probabilities: float) -> Script:
    rows = [
        {token: Entry(math.log(p))} for token, p in zip(tokens(text), probabilities, strict=True)
    ]
    return Script([text], logprobs=rows)


def probe_on(script: Script, dialect: Dialect = KNOWS_MARKS) -> tuple[Probe, ScriptedEngine]:
    engine = engine_with(lambda job: script, dialect=dialect)
    return Probe(engine, JOB), engine


def thought(text: str, dialect: Dialect = KNOWS_MARKS) -> Thought:
    return Thought(dialect, 1000, lambda ids: False, ids=list(dialect.encode(text)))


ENOUGH = "x" * (EVERY - 1) + "."


@pytest.mark.parametrize(
    ("probabilities", "sure"),
    [((1.0, 1.0), True), ((SURE + 0.01,) * 2, True), ((SURE,) * 2, False), ((1.0, 0.8), False)],
)
async def test_a_trial_is_sure_by_the_geometric_mean_of_its_tokens(
    probabilities: tuple[float, float], sure: bool
) -> None:
    probe, _ = probe_on(trial("42", *probabilities))

    assert await probe.sure(thought(ENOUGH)) is sure
    assert probe.confidence == pytest.approx(math.sqrt(math.prod(probabilities)))


@pytest.mark.parametrize(
    "script",
    [Script([]), Script([" "], logprobs=[{ord(" "): Entry(0)}]), Script(["42"])],
    ids=["nothing", "blank", "no log-probabilities"],
)
async def test_a_trial_that_says_nothing_is_not_sure(script: Script) -> None:
    probe, _ = probe_on(script)

    assert await probe.sure(thought(ENOUGH)) is False
    assert probe.confidence == 0


@pytest.mark.parametrize(
    ("text", "asked"),
    [("", 0), ("x" * (EVERY - 2) + ".", 0), (ENOUGH, 1), ("x" * 500, 0), ("x" * 500 + "\n", 1)],
)
async def test_it_asks_at_the_end_of_a_sentence_when_one_is_due(text: str, asked: int) -> None:
    probe, engine = probe_on(trial("4", 0.5))

    await probe.sure(thought(text))

    assert len(engine.jobs) == probe.trials == asked


async def test_it_asks_again_only_so_many_tokens_later() -> None:
    probe, _ = probe_on(trial("42", 0.5, 0.5))

    trials = []
    for count in (EVERY, EVERY + 1, 2 * EVERY - 1, 2 * EVERY, 3 * EVERY - 1, 3 * EVERY + 5):
        await probe.sure(thought("x" * (count - 1) + "."))
        trials.append(probe.trials)

    assert trials == [1, 1, 1, 2, 2, 3]
    assert probe.tokens == 6


@each_dialect
async def test_a_trial_is_a_short_greedy_job_beside_the_thought(dialect: Dialect) -> None:
    probe, engine = probe_on(Script(["4"]), dialect)

    await probe.sure(thought(ENOUGH, dialect))

    (job,) = engine.jobs
    assert job.prompt == (*JOB.prompt, *dialect.encode(f"{ENOUGH}{TRIAL}"))
    assert (job.max_tokens, job.priority, job.stream) == (TRIAL_TOKENS, -2, False)
    assert job.sampling == SAMPLING
    assert job.changes == {
        "n": 1,
        "temperature": 0.0,
        "logprobs": 1,
        "stop": ["}"],
        "min_tokens": 0,
        "structured_outputs": None,
    }


async def test_each_trial_has_a_name_of_its_own() -> None:
    probe, engine = probe_on(trial("4", 0.5))

    await probe.sure(thought(ENOUGH))
    await probe.sure(thought(ENOUGH * 2))

    assert [job.request_id for job in engine.jobs] == ["r-think-probe1", "r-think-probe2"]
