"""One contract, kept by the real engine and by the scripted one that stands in for it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
import pytest_asyncio

from engine_config import profile
from gateway.engines.opening import locate, open_engine, prepare_environment
from gateway.engines.types import Delta, Engine, Job
from gateway.errors import InvalidRequest
from gateway.thinking.run import Request, ThinkingRun
from tests.scripted import Script, ScriptedEngine

pytestmark = pytest.mark.asyncio(loop_scope="module")

# What a script cannot have of its own: a cache, an eye for loops.
only_vllm = pytest.mark.parametrize("engine", ["vllm"], indirect=True)
GREEDY = {"temperature": 0, "ignore_eos": True}
TOKENS = 12


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["scripted", "vllm"])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    opened: Engine
    if request.param == "scripted":
        opened = scripted = ScriptedEngine()
        scripted.script = lambda job: Script(["a" * 4] * (job.max_tokens // 4), finish="length")
    else:
        chosen = profile.load("nano-qwen3")
        location = locate(chosen, lambda phase, fraction: None)
        prepare_environment([chosen])
        opened = await open_engine(chosen, location)
    yield opened
    await opened.aclose()
    await opened.aclose()  # safe to call twice


async def job(engine: Engine, name: str, **changes: object) -> Job:
    prompt = await engine.render_chat([{"role": "user", "content": "Why?"}])
    fields = {"max_tokens": TOKENS, "sampling": GREEDY, **changes}
    return Job(name, prompt, **fields)  # type: ignore[arg-type]


async def deltas(engine: Engine, job: Job) -> list[Delta]:
    return [delta async for delta in engine.generate(job)]


async def test_deltas_add_up_and_only_the_last_one_ends(engine: Engine) -> None:
    told = await deltas(engine, await job(engine, "add-up"))

    assert sum(len(delta.token_ids) for delta in told) == TOKENS
    assert [delta.finish_reason for delta in told[:-1]] == [None] * (len(told) - 1)
    assert told[-1].finish_reason == "length" and told[-1].stop_reason is None


async def test_without_streaming_there_is_one_delta_with_the_same_text(engine: Engine) -> None:
    streamed = await deltas(engine, await job(engine, "streamed", max_tokens=200))
    (whole,) = await deltas(engine, await job(engine, "whole", max_tokens=200, stream=False))

    assert len(streamed) > 1
    assert whole.text == "".join(delta.text for delta in streamed)
    assert list(whole.token_ids) == [token for delta in streamed for token in delta.token_ids]
    assert whole.finish_reason == "length"


async def test_n_completions_have_an_index_each(engine: Engine) -> None:
    told = await deltas(
        engine, await job(engine, "three", sampling={"temperature": 1, "ignore_eos": True, "n": 3})
    )

    ends = sorted(delta.index for delta in told if delta.finish_reason is not None)
    assert ends == [0, 1, 2]
    assert sum(len(delta.token_ids) for delta in told) == 3 * TOKENS


async def test_closing_the_generator_ends_the_work(engine: Engine) -> None:
    long = await job(engine, "closed", max_tokens=2000)

    async with aclosing(engine.generate(long)) as running:
        await anext(running)
        assert engine.unfinished() == 1

    assert engine.unfinished() == 0
    assert len(await deltas(engine, await job(engine, "after"))) > 0


async def test_cancelling_the_caller_ends_the_work(engine: Engine) -> None:
    long = await job(engine, "cancelled", max_tokens=2000)
    first = asyncio.Event()

    async def read() -> None:
        async with aclosing(engine.generate(long)) as running:
            async for _ in running:
                first.set()

    reader = asyncio.create_task(read())
    await asyncio.wait_for(first.wait(), 60)
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)

    assert engine.unfinished() == 0


async def test_a_prompt_longer_than_the_context_is_refused(engine: Engine) -> None:
    with pytest.raises(InvalidRequest):
        await engine.render_text("word " * (engine.limits.max_model_len + 1))


async def test_marks_are_the_same_tokens_alone_and_behind_a_thought(engine: Engine) -> None:
    dialect = engine.dialect
    assert dialect.knows_marks

    assert dialect.encode("Hm") + dialect.empty == dialect.encode("Hm\n</think>\n\n")
    assert dialect.decode(dialect.encode("a <think>\nb</think>")) == "a <think>\nb</think>"
    assert not set(dialect.visible) & {*dialect.open, *dialect.close}


@only_vllm
async def test_a_line_over_and_over_is_a_loop_and_a_rule_of_dashes_is_not(engine: Engine) -> None:
    line = [7, 8, 9, 10, 11, 12, 13, 14, 15]

    assert engine.looping(list(range(100)) + 4 * line)
    assert not engine.looping(list(range(100)) + [5] * 24)
    assert not engine.looping(list(range(500)))


@only_vllm
async def test_a_forced_answer_finds_its_prompt_in_the_cache(engine: Engine) -> None:
    block = 128  # vLLM's KV block on the CPU
    messages = [{"role": "user", "content": "word " * 400}]
    prompt = await engine.render_chat(messages, thinking=True)
    request = Request(
        request_id="cached",
        prompt=prompt,
        thinks=True,
        level=3,
        budget=200,
        ceiling=None,
        max_tokens=400,
        sampling={"temperature": 1},
        context=engine.limits.max_model_len,
    )
    run = ThinkingRun(engine, request)

    _ = [piece async for piece in run.pieces()]

    out = run.outcome
    told = len(run.prompt) + out.reasoning_tokens + out.forced_tokens
    assert out.engine_requests == 2
    assert (out.answer_cached_tokens or 0) >= (told - 1) // block * block - block > 300


async def test_a_conversation_renders_to_a_prompt_that_holds_it(engine: Engine) -> None:
    short = await engine.render_chat([{"role": "user", "content": "Hi"}])
    long = await engine.render_chat([{"role": "user", "content": "Hi, how are you today?"}])

    assert 0 < len(short) < len(long)


async def test_an_idle_engine_is_alive_and_not_silent(engine: Engine) -> None:
    card = await engine.model_card()

    assert card["object"] == "model" and card["id"] == card["root"]
    assert not engine.dead() and engine.unfinished() == 0
    assert engine.silent_s() < 1
    assert engine.limits.max_model_len > 0 and engine.device == "cpu"
