"""Several thoughts at once: they vote, the rest is stopped when it is decided, and nothing is left behind."""

import asyncio
from typing import Any

import pytest

from gateway.engines.types import Job
from gateway.errors import EngineUnavailable
from gateway.thinking.parallel import Parallel
from gateway.thinking.run import Piece
from gateway.thinking.sample import Sample
from tests.runs import run_on
from tests.scripted import PATIENCE_S, Entry, Script, ScriptedEngine, events_of, make_app, tokens


def said(answer: str, logprob: float = -0.1, **more: Any) -> Script:
    """A short thought and its answer, every token drawn with that log-probability."""
    text = f"Hm.</think>{answer}"
    rows = [{token: Entry(logprob)} for token in tokens(text)]
    return Script([text], logprobs=rows, **more)


def samples(engine: ScriptedEngine, n: int) -> list[Sample]:
    return [Sample(i, run_on(engine, request_id=f"s{i}"), 5) for i in range(n)]


def by_sample(*scripts: Script) -> Any:
    def script(job: Job) -> Script:
        return scripts[int(job.request_id[1])]

    return script


async def through(parallel: Parallel) -> list[tuple[Sample, Piece | None]]:
    async with asyncio.timeout(PATIENCE_S):
        return [step async for step in parallel.pieces()]


async def test_the_majority_wins_and_agreement_is_told() -> None:
    engine = ScriptedEngine()
    engine.script = by_sample(
        said("The answer is 4."), said("The answer is 5."), said("The answer is 4.0")
    )
    parallel = Parallel(samples(engine, 3))

    await through(parallel)

    verdict = parallel.verdict()
    assert verdict.winner in (0, 2) and verdict.agreement == pytest.approx(3 / 5)


async def test_once_the_majority_is_certain_the_rest_is_stopped() -> None:
    never = asyncio.Event()
    engine = ScriptedEngine()
    same = said("The answer is 4.")
    engine.script = by_sample(same, same, said("The answer is 9.", gate=never))
    parallel = Parallel(samples(engine, 3))

    await through(parallel)

    assert [sample.status for sample in parallel.samples] == [
        *("completed", "completed", "consensus_cancelled")
    ]
    assert parallel.verdict().value == "4"
    assert engine.aborted == ["s2-think"] and engine.unfinished() == 0


async def test_a_sample_far_less_sure_than_the_finished_ones_is_given_up() -> None:
    engine = ScriptedEngine()
    unsure = [{ord("y"): Entry(-9.0)} for _ in range(64 * 6)]
    lost = Script(["y" * 64] * 6, logprobs=unsure, gate=asyncio.Event(), gate_at=5)
    sure = [said(f"The answer is {digit}.", -0.01) for digit in range(4)]
    engine.script = by_sample(*sure, lost)
    parallel = Parallel(samples(engine, 5))

    await through(parallel)

    assert parallel.samples[4].status == "stopped_low_confidence"
    assert engine.unfinished() == 0


async def test_an_engine_that_dies_in_one_sample_ends_them_all() -> None:
    never = asyncio.Event()
    engine = ScriptedEngine()
    dying = Script(["a"], failure=EngineUnavailable("the engine stopped"))
    engine.script = by_sample(said("4", gate=never), dying)

    with pytest.raises(EngineUnavailable):
        await through(Parallel(samples(engine, 2)))

    assert engine.unfinished() == 0


async def test_closing_early_aborts_every_sample() -> None:
    never = asyncio.Event()
    engine = ScriptedEngine()
    engine.crowd = 3
    hanging = Script(["a", "b"], gate=never, gate_at=1)
    engine.script = by_sample(hanging, hanging, hanging)
    pieces = Parallel(samples(engine, 3)).pieces()
    await anext(pieces)
    await asyncio.wait_for(engine.crowded.wait(), PATIENCE_S)

    await pieces.aclose()

    assert len(engine.aborted) == 3 and engine.unfinished() == 0


async def test_the_route_streams_samples_and_one_answer() -> None:
    engine = ScriptedEngine()
    engine.script = lambda job: said("The answer is 4.")
    body = {"question": "2+2?", "samples": 3}
    async with make_app(engine) as client:
        plain = (await client.post("/thinking", json=body)).json()
        streamed = events_of((await client.post("/thinking", json={**body, "stream": True})).text)

    kinds = [event["type"] for event in streamed]
    assert plain["answer"] == "The answer is 4."
    assert kinds.count("thinking.sample") == 3 and kinds.count("thinking.answer.delta") == 1
    assert kinds[0] == "thinking.created" and kinds[-1] == "thinking.completed"
    assert set(streamed[-1]["response"]) == set(plain)
    assert plain["confidence"]["components"]["agreement"] >= 0.6
    assert len({job.request_id for job in engine.jobs}) == len(engine.jobs)


async def test_each_sample_draws_from_a_seed_of_its_own() -> None:
    engine = ScriptedEngine()
    engine.script = lambda job: said("4")
    async with make_app(engine) as client:
        await client.post("/thinking", json={"question": "?", "samples": 3, "seed": 7})

    assert sorted(job.sampling["seed"] for job in engine.jobs) == [7, 8, 9]
