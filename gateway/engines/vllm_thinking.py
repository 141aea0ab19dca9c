"""The thinking guarantee for the routes that vLLM serves itself.

`ThinkingClient` stands where vLLM's handlers expect the engine client. A request that carries a plan (a
context variable, set by the route in front) becomes a `ThinkingRun`; its pieces go back as the outputs
that the handlers know. Everything else passes through, unless the engine gives it up.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import msgspec
from vllm.exceptions import VLLMValidationError
from vllm.inputs.engine import tokens_input
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RepetitionDetectionParams, RequestOutputKind, SamplingParams
from vllm.v1.core.sched.utils import check_sequence_repetition
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from gateway.engines.types import Delta, Job
from gateway.errors import EngineUnavailable, NoAnswer
from gateway.thinking.dialect import Dialect
from gateway.thinking.effort import PLAN, Plan
from gateway.thinking.run import Piece, Request, ThinkingRun

# A sentence or a paragraph four times in a row, or 32 times the same few tokens.
LOOP = RepetitionDetectionParams(max_pattern_size=256, min_pattern_size=8, min_count=4)
# Finish reasons of what was not finished, as when the engine is told to end.
GAVE_UP = ("abort", "error")


def looping(ids: Sequence[int]) -> bool:
    """The tail of the tokens repeats itself again and again."""
    return bool(check_sequence_repetition(ids, LOOP))


def changed(params: SamplingParams, job: Job, **more: Any) -> SamplingParams:
    """The parameters of one phase of a job."""
    changes = {**job.changes, **more}
    if "logit_bias" in changes:
        changes["logit_bias"] = {**(params.logit_bias or {}), **changes["logit_bias"]}
    fresh: dict[str, Any] = {
        "max_tokens": job.max_tokens,
        "thinking_token_budget": None,  # the engine's own, see ThinkingRun
        "skip_clone": False,
        # Derived ones, made anew from the fields above and below.
        "_all_stop_token_ids": set(),
        "output_text_buffer_length": 0,
    }
    return msgspec.structs.replace(params, **fresh, **changes)


def delta_of(output: RequestOutput, completion: CompletionOutput) -> Delta:
    """Raises EngineUnavailable: the engine gave it up."""
    if completion.finish_reason in GAVE_UP:
        raise EngineUnavailable("the engine gave up on the request; try again", retry_after_s=1)
    return Delta(
        index=completion.index,
        text=completion.text,
        token_ids=completion.token_ids,
        finish_reason=completion.finish_reason,
        stop_reason=completion.stop_reason,
        cached_tokens=output.num_cached_tokens or 0,
        logprobs=completion.logprobs,
    )


class _Source:
    """One call of `generate()`, as the phases of a run use it."""

    def __init__(
        self, client: AsyncLLM, dialect: Dialect, kwargs: dict[str, Any], salt: str | None
    ) -> None:
        self.client = client
        self.dialect = dialect
        self.kwargs = kwargs
        self.salt = salt  # of the prefix cache

    looping = staticmethod(looping)

    async def generate(self, job: Job) -> AsyncGenerator[Delta, None]:
        kind = RequestOutputKind.DELTA if job.stream else RequestOutputKind.FINAL_ONLY
        kwargs = dict(self.kwargs)
        if job.reasoning_ended is not None:
            kwargs["reasoning_ended"] = job.reasoning_ended
        source = self.client.generate(
            tokens_input(list(job.prompt), cache_salt=self.salt),
            changed(job.sampling, job, output_kind=kind),
            job.request_id,
            priority=job.priority,
            **kwargs,
        )
        async with aclosing(source) as outputs:
            async for output in outputs:
                for completion in output.outputs:
                    yield delta_of(output, completion)


class ThinkingClient:
    """vLLM's `EngineClient`, and the guarantee. What is not here is the inner client's."""

    def __init__(self, inner: AsyncLLM, dialect: Dialect) -> None:
        self.inner = inner
        self.dialect = dialect

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **kwargs: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        plan = PLAN.get()
        ids = prompt.get("prompt_token_ids") if isinstance(prompt, dict) else None
        if plan is None or ids is None:
            if ids is not None and self._binds_at_once(ids, sampling_params, kwargs):
                kwargs["reasoning_ended"] = True
            return _unless_given_up(
                self.inner.generate(prompt, sampling_params, request_id, **kwargs)
            )
        return self._think(plan, prompt, sampling_params, request_id, kwargs)

    def _binds_at_once(
        self, ids: Sequence[int], params: SamplingParams, kwargs: dict[str, Any]
    ) -> bool:
        """A grammar of a route that knows of no thought, as completions do. A reasoning model's engine would
        wait for the end of one, and where none is open the grammar would never bind."""
        if not params.structured_outputs or "reasoning_parser_kwargs" in kwargs:
            return False
        return not self.dialect.opened(tuple(ids))

    async def _think(
        self,
        plan: Plan,
        prompt: Any,
        params: SamplingParams,
        request_id: str,
        kwargs: dict[str, Any],
    ) -> AsyncGenerator[RequestOutput, None]:
        whole = _request(plan, prompt, params)
        whole = replace(
            whole, context=self.inner.model_config.max_model_len, priority=kwargs.pop("priority", 0)
        )
        source = _Source(self.inner, self.dialect, kwargs, prompt.get("cache_salt"))
        runs = [
            ThinkingRun(source, replace(whole, request_id=name, sampling=_child(params, index)))
            for index, name in enumerate(_names(request_id, params.n))
        ]
        plan.begin(runs)
        frame = _Frame(request_id, runs, params.output_kind)
        try:
            async with aclosing(_together(runs)) as pieces:
                async for index, piece in pieces:
                    if (output := frame.take(index, piece)) is not None:
                        yield output
        except NoAnswer as error:
            raise VLLMValidationError(error.message) from error
        except EngineUnavailable as error:
            raise EngineDeadError from error


async def _unless_given_up(
    outputs: AsyncGenerator[RequestOutput, None],
) -> AsyncGenerator[RequestOutput, None]:
    """What the engine gave up is an error: vLLM's handlers would send the half of it as the whole."""
    async with aclosing(outputs):
        async for output in outputs:
            for completion in output.outputs:
                if completion.finish_reason in GAVE_UP:
                    raise EngineDeadError
            yield output


def _names(request_id: str, n: int) -> list[str]:
    return [request_id] if n == 1 else [f"{request_id}-{index}" for index in range(n)]


def _child(params: SamplingParams, index: int) -> SamplingParams:
    """As vLLM does for `n`: each completion has a seed of its own."""
    if params.seed is None or index == 0:
        return params
    return msgspec.structs.replace(params, n=1, seed=params.seed + index)


def _request(plan: Plan, prompt: Any, params: SamplingParams) -> Request:
    bound = bool(params.stop or params.stop_token_ids or params.structured_outputs)
    return Request(
        request_id="",
        prompt=tuple(prompt["prompt_token_ids"]),
        thinks=plan.thinks,
        level=plan.level,
        budget=plan.budget,
        ceiling=plan.ceiling,
        max_tokens=params.max_tokens or 1,
        sampling=params,
        context=0,
        apart=bound,
        min_tokens=params.min_tokens,
        stream=params.output_kind is not RequestOutputKind.FINAL_ONLY,
        strip=plan.thinks,
        trace=plan.trace,
    )


async def _together(runs: Sequence[ThinkingRun]) -> AsyncGenerator[tuple[int, Piece], None]:
    """The pieces of all runs as they come. Closing it closes every run."""
    if len(runs) == 1:
        async with aclosing(runs[0].pieces()) as pieces:
            async for piece in pieces:
                yield 0, piece
        return
    queue: asyncio.Queue[tuple[int, Piece | None]] = asyncio.Queue()

    async def feed(index: int, run: ThinkingRun) -> None:
        try:
            async with aclosing(run.pieces()) as pieces:
                async for piece in pieces:
                    queue.put_nowait((index, piece))
        finally:
            queue.put_nowait((index, None))

    tasks = [asyncio.create_task(feed(index, run)) for index, run in enumerate(runs)]
    left = len(tasks)
    try:
        while left:
            index, fed = await queue.get()
            if fed is not None:
                yield index, fed
                continue
            left -= 1
            await tasks[index]  # raises what the run raised
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Frame:
    """Pieces as the outputs that vLLM's handlers read: each by itself, or all at the end."""

    def __init__(self, request_id: str, runs: list[ThinkingRun], kind: RequestOutputKind) -> None:
        self.request_id = request_id
        self.runs = runs
        self.prompts = [list(run.prompt) for run in runs]  # once, not for each token
        self.at_end = kind is RequestOutputKind.FINAL_ONLY
        self.pieces: list[list[Piece]] = [[] for _ in runs]
        self.left = len(runs)

    def take(self, index: int, piece: Piece) -> RequestOutput | None:
        self.left -= piece.finish_reason is not None
        if not self.at_end:
            return self._output([_completion(index, [piece])])
        self.pieces[index].append(piece)
        if self.left:
            return None
        return self._output([_completion(i, pieces) for i, pieces in enumerate(self.pieces)])

    def _output(self, completions: list[CompletionOutput]) -> RequestOutput:
        run = self.runs[completions[0].index]
        return RequestOutput(
            request_id=self.request_id,
            prompt=None,
            prompt_token_ids=self.prompts[completions[0].index],
            prompt_logprobs=None,
            outputs=completions,
            finished=self.left == 0,
            num_cached_tokens=run.outcome.cached_tokens,
        )


def _completion(index: int, pieces: Sequence[Piece]) -> CompletionOutput:
    last = pieces[-1]
    return CompletionOutput(
        index=index,
        text="".join(piece.text for piece in pieces),
        token_ids=[token for piece in pieces for token in piece.token_ids],
        cumulative_logprob=None,
        logprobs=_rows(pieces),
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
    )


def _rows(pieces: Sequence[Piece]) -> Any:
    """A token that was put there and not drawn has no log-probability; vLLM's handlers read None."""
    rows = [row for piece in pieces for row in piece.logprobs or [None] * len(piece.token_ids)]
    return rows
