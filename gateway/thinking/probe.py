"""Trial answers in the middle of a thought (DEER, arXiv 2504.15895; opt-in, `early_exit: "probe"`)."""

import math
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from gateway.engines.types import Job, Source, TokenIds
from gateway.thinking.thought import Thought

EVERY = 64  # thinking tokens between two trials, at least
TRIAL_TOKENS = 20
SURE = 0.95  # geometric mean probability of the trial's tokens
TRIAL = "\n**Final Answer**\n\n\\boxed{"


class Probe:
    """Asks the model for its answer at a sentence's end, beside the thought that goes on meanwhile."""

    def __init__(self, source: Source, job: Job) -> None:
        self.source = source
        self.job = job  # its prompt is that of the thought
        self.dialect = source.dialect
        self.trials = 0
        self.tokens = 0  # drawn for trials
        self.confidence: float | None = None  # of the last trial
        self._last_at = 0

    async def sure(self, thought: Thought) -> bool:
        """The model would answer now what it would answer later."""
        ids = thought.ids
        due = len(ids) - self._last_at >= EVERY
        if not due or ids[-1] not in self.dialect.sentence_ends:
            return False
        self._last_at = len(ids)
        self.confidence = await self._trial(tuple(ids))
        return self.confidence > SURE

    async def _trial(self, thought: TokenIds) -> float:
        self.trials += 1
        changes: dict[str, Any] = {
            "n": 1,
            "temperature": 0.0,
            "logprobs": 1,
            "stop": ["}"],
            "min_tokens": 0,
            "structured_outputs": None,
        }
        prompt = (*self.job.prompt, *thought, *self.dialect.encode(TRIAL))
        name = f"{self.job.request_id}-probe{self.trials}"
        job = replace(
            self.job,
            request_id=name,
            prompt=prompt,
            max_tokens=TRIAL_TOKENS,
            stream=False,
            reasoning_ended=None,
            changes=changes,
        )
        drawn: list[float] = []
        text = ""
        async with aclosing(self.source.generate(job)) as deltas:
            async for delta in deltas:
                text += delta.text
                self.tokens += len(delta.token_ids)
                rows = zip(delta.token_ids, delta.logprobs or (), strict=False)
                drawn.extend(row[token].logprob for token, row in rows if row and token in row)
        return math.exp(sum(drawn) / len(drawn)) if drawn and text.strip() else 0.0
