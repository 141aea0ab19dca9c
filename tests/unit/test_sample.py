"""One thought with its answer, measured: what counts, what does not, and what it costs in memory."""

import importlib
import tracemalloc
import warnings
from itertools import count
from typing import Any

import pytest

from gateway.thinking.confidence import Trace
from gateway.thinking.dialect import Dialect
from gateway.thinking.ptrue import p_true
from gateway.thinking.sample import TOP_K, Sample
from tests.runs import OPENED, run_on
from tests.scripted import Entry, Script, ScriptedEngine, text_of, tokens

LONG = 32_768
MIB = 2**20


def rows(text: str, logprob: float) -> list[dict[int, Entry]]:
    return [{token: Entry(logprob)} for token in tokens(text)]


async def finished(script: Any, **changes: Any) -> Sample:
    engine = ScriptedEngine()
    engine.script = script
    sample = Sample(0, run_on(engine, **changes), TOP_K)
    _ = [piece async for piece in sample.pieces()]
    return sample


async def test_thought_and_answer_are_measured_apart_and_the_mark_not_at_all() -> None:
    text = "Hm.</think>Four"
    measured = [*rows("Hm.", -1.0), *rows("</think>", -50.0), *rows("Four", -0.5)]

    sample = await finished(lambda job: Script([text], logprobs=measured))

    assert sample.thought is not None and sample.answer is not None
    assert list(sample.thought.drawn) == [-1.0] * 3
    assert list(sample.answer.drawn) == [-0.5] * 4
    assert sample.status == "completed"


async def test_a_forced_phrase_and_an_extracted_answer_raise_no_confidence() -> None:
    thought = Script(["I see. " * 20], logprobs=rows("I see. " * 20, -0.01))
    nothing = Script([" "], logprobs=rows(" ", -0.01))

    sample = await finished(
        lambda job: thought if job.request_id.endswith("think") else nothing, budget=40
    )

    confidence = sample.confidence(None)
    assert sample.run.outcome.answer_source == "extracted_from_reasoning"
    assert confidence is not None and confidence.score == 0


async def test_tokens_add_up() -> None:
    sample = await finished(lambda job: Script(["x" * 40]), budget=10)

    out = sample.run.outcome
    parts = out.reasoning_tokens + out.forced_tokens + out.answer_tokens + out.probe_tokens
    assert sample.tokens == parts


@pytest.mark.parametrize(
    ("row", "expected"),
    [({"T": -0.1}, None), ({"True": -0.5, "False": -0.5}, 0.5), ({" true": -0.2}, 1.0)],
)
async def test_p_true_is_the_share_among_true_and_false(
    row: dict[str, float], expected: float | None
) -> None:
    words = {9000 + place: word for place, word in enumerate(row)}
    known = Dialect(tokens, lambda ids: "".join(words.get(i, chr(i)) for i in ids), 9999)
    engine = ScriptedEngine(dialect=known)
    verdict = {token: Entry(row[word]) for token, word in words.items()}
    engine.script = lambda job: (
        Script(["x"], logprobs=[verdict])
        if job.request_id.endswith("ptrue")
        else Script(["Hm.</think>Four"])
    )
    run = run_on(engine)
    _ = [piece async for piece in run.pieces()]

    assert await p_true(run) == expected
    asked = engine.jobs[-1]
    assert text_of(asked.prompt).startswith(f"{OPENED}Hm.</think>Four\n\nIs the answer")
    assert asked.max_tokens == 1


def test_the_log_probabilities_of_a_long_thought_fit_into_64_mib() -> None:
    """vLLM's front end keeps those of a whole request until its end; ours are three numbers a token."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flat = importlib.import_module("vllm.logprobs").FlatLogprobs()
    trace = Trace(151_936, TOP_K)
    fresh = count(1000)  # no two numbers or texts are the same object
    tracemalloc.start()
    for _ in range(LONG):
        ids = [next(fresh) for _ in range(TOP_K + 1)]
        texts = [f" word{token}" for token in ids]
        values = [-1.0 / token for token in ids]
        flat.append_fast(ids, values, iter([token + 300 for token in ids]), texts)
        trace.add([ids[0]], [flat[-1]])
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert len(flat) == len(trace) == LONG
    assert kept < 64 * MIB


@pytest.mark.parametrize("top_k", [None, TOP_K])
async def test_without_log_probabilities_there_is_no_confidence(top_k: int | None) -> None:
    engine = ScriptedEngine()
    engine.script = lambda job: Script(["Hm.</think>Four"])
    sample = Sample(0, run_on(engine), top_k)
    _ = [piece async for piece in sample.pieces()]

    confidence = sample.confidence(None)
    assert confidence is None if top_k is None else confidence is not None and not confidence.score
