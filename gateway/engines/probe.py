"""Does a freshly loaded engine answer? Asked before requests may reach it."""

import asyncio
import math
import uuid
from contextlib import aclosing

from gateway.engines.types import Engine, Job

QUESTION = [{"role": "user", "content": "What is 2 + 3? Answer in one sentence. 请用一句话回答。"}]
TOKENS = 16
TIMEOUT_S = 120


class ProbeFailed(Exception):
    """The engine came up but does not answer as an engine should."""


async def answers(engine: Engine) -> None:
    """Warm the engine up with one question.

    Raises:
        ProbeFailed: no token came in time, or its log-probabilities are not numbers (broken weights).
    """
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await _ask(engine)
    except TimeoutError as error:
        raise ProbeFailed(f"the probe was not answered within {TIMEOUT_S} s") from error


async def _ask(engine: Engine) -> None:
    job = Job(
        request_id=f"probe-{uuid.uuid4().hex}",
        prompt=await engine.render_chat(QUESTION),
        max_tokens=TOKENS,
        sampling={"temperature": 0.0, "logprobs": 1},
        stream=False,
        changes={"min_tokens": TOKENS},
    )
    tokens = 0
    numbers: list[float] = []
    async with aclosing(engine.generate(job)) as deltas:
        async for delta in deltas:
            tokens += len(delta.token_ids)
            rows = zip(delta.token_ids, delta.logprobs or (), strict=False)
            numbers.extend(row[token].logprob for token, row in rows if row)
    if tokens < TOKENS:
        raise ProbeFailed(f"the probe gave {tokens} tokens instead of {TOKENS}")
    if not all(math.isfinite(number) for number in numbers):
        raise ProbeFailed("the probe's log-probabilities are not numbers: the weights are broken")
