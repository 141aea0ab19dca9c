"""Several thoughts on one question at once, and the answer they agree on.

Each sample is an engine request of its own over the same prompt, so the prefix cache shares the prompt
and one can be stopped without the others. Rules: docs/thinking.md, "Samples".
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from gateway.thinking.run import Piece
from gateway.thinking.sample import Sample
from gateway.thinking.vote import (
    Ballot,
    Verdict,
    consensus,
    decide,
    low_confidence_threshold,
)

MIN_TOKENS_TO_STOP = 256  # a thought's beginning says too little to give it up


class Parallel:
    """`pieces()` gives (sample, piece), and (sample, None) when one is through; then `verdict()`."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples
        self._queue: asyncio.Queue[tuple[Sample, Piece | None]] = asyncio.Queue()
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def pieces(self) -> AsyncGenerator[tuple[Sample, Piece | None], None]:
        for sample in self.samples:
            self._tasks[sample.index] = asyncio.create_task(self._feed(sample))
        left = len(self.samples)
        try:
            while left:
                sample, piece = await self._queue.get()
                if piece is None:
                    left -= 1
                    await self._ended(sample)
                else:
                    self._give_up_if_lost(sample)
                yield sample, piece
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def verdict(self) -> Verdict:
        """The winner among the finished ones."""
        ballots = [
            Ballot(sample.value, _weight(sample), sample.index) for sample in self._finished()
        ]
        return decide(ballots)

    async def _feed(self, sample: Sample) -> None:
        try:
            async with aclosing(sample.pieces()) as pieces:
                async for piece in pieces:
                    self._queue.put_nowait((sample, piece))
        finally:
            self._queue.put_nowait((sample, None))

    async def _ended(self, sample: Sample) -> None:
        if sample.status in ("completed", "incomplete"):
            self._stop_at_consensus()
            return
        task = self._tasks[sample.index]
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error

    def _stop_at_consensus(self) -> None:
        values = [sample.value for sample in self._finished()]
        if consensus(values, len(self.samples)):
            for sample in self.samples:
                self._stop(sample, "consensus_cancelled")

    def _give_up_if_lost(self, sample: Sample) -> None:
        """Less sure than nine in ten of those that are through."""
        thought = sample.thought
        if thought is None or len(thought) < MIN_TOKENS_TO_STOP or len(thought) % 64:
            return
        finished = [other.thought for other in self._finished() if other.thought is not None]
        if len(finished) < 4:
            return
        threshold = low_confidence_threshold([trace.lowest_window() for trace in finished])
        if threshold is not None and thought.lowest_window() < threshold:
            self._stop(sample, "stopped_low_confidence")

    def _stop(self, sample: Sample, status: str) -> None:
        if sample.status == "running":
            sample.status = status
            self._tasks[sample.index].cancel()

    def _finished(self) -> list[Sample]:
        return [sample for sample in self.samples if sample.status in ("completed", "incomplete")]


def _weight(sample: Sample) -> float:
    confidence = sample.confidence(None)
    return 0.5 if confidence is None else confidence.score
