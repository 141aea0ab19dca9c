"""P(True): the model's own verdict on its answer (Kadavath et al. 2022), one token long.

Asked for with `confidence: "full"`. The prompt so far is in the prefix cache, so it costs the answer's last
block, the question and one token.
"""

import math
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

from gateway.engines.types import Job
from gateway.thinking.run import ThinkingRun

QUESTION = "\n\nIs the answer above right? One word, True or False: "
CANDIDATES = 20


async def p_true(run: ThinkingRun) -> float | None:
    """P(True) among True and False; None when neither is among the likely next words."""
    request = run.request
    changes: dict[str, Any] = {
        "n": 1,
        "temperature": 0.0,
        "logprobs": CANDIDATES,
        "min_tokens": 0,
        "stop": [],
        "structured_outputs": None,
    }
    job = Job(
        f"{request.request_id}-ptrue",
        (*run.transcript(), *run.dialect.encode(QUESTION)),
        1,
        request.sampling,
        request.priority,
        stream=False,
        changes=changes,
        trace=request.trace.headers(),
    )
    async with aclosing(run.source.generate(job)) as deltas:
        async for delta in deltas:
            run.outcome.probe_tokens += len(delta.token_ids)
            for row in delta.logprobs or ():
                return _share(row or {}, run)
    return None


def _share(row: Mapping[int, Any], run: ThinkingRun) -> float | None:
    masses = {"true": 0.0, "false": 0.0}
    for token, entry in row.items():
        word = run.dialect.decode([token]).strip().casefold()
        if word in masses:
            masses[word] += math.exp(entry.logprob)
    total = sum(masses.values())
    return round(masses["true"] / total, 4) if total else None
