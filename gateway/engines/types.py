"""What crosses the engine seam: plain data, and the Protocol that an engine keeps.

No pydantic request, no SSE text and no vLLM object passes here, so an engine can be in this process,
in another one, or scripted for a test.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from engine_config.profile import Profile

if TYPE_CHECKING:  # it is made of the types below
    from gateway.thinking.dialect import Dialect

TokenIds = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """One generation, already validated.

    `sampling` holds vLLM's own names (temperature, top_p, stop, n, seed, logprobs ...); what is
    missing falls to the model's generation config, then to vLLM's defaults. Where a caller came through
    vLLM's own handlers it is vLLM's parameter object. `changes` are made to either, by vLLM's names.
    """

    request_id: str
    prompt: TokenIds  # shape (n_prompt,)
    max_tokens: int  # >= 1
    sampling: Any = field(default_factory=dict)
    priority: int = 0  # lower is earlier
    stream: bool = True  # False: one Delta per completion, at its end
    reasoning_ended: bool | None = None  # True: a grammar binds from the first token
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Delta:
    """What one completion gained since its last Delta."""

    index: int  # which of `n` completions
    text: str
    token_ids: Sequence[int]  # shape (n_new,)
    finish_reason: str | None  # "stop", "length", ...; None while it goes on
    stop_reason: int | str | None = None  # the stop string or token id that ended it
    cached_tokens: int = 0  # prompt tokens found in the prefix cache
    # Per new token: id -> entry with `logprob`, `rank`, `decoded_token`; None for a token not drawn.
    logprobs: Sequence[Mapping[int, Any] | None] | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What the engine can hold."""

    max_model_len: int  # prompt and output together, tokens
    max_num_seqs: int  # sequences decoded at once


class Source(Protocol):
    """What a thought and its answer need of an engine."""

    dialect: "Dialect"  # how the model opens and closes a thought

    def generate(self, job: Job) -> AsyncGenerator[Delta, None]:
        """Run the job. Closing the generator aborts the work and frees its KV blocks.

        Raises:
            InvalidRequest: the engine refuses the job.
            EngineUnavailable: the engine is dead or overloaded.
        """
        ...

    def looping(self, ids: Sequence[int]) -> bool:
        """The tail of the tokens repeats itself again and again."""
        ...


class Engine(Source, Protocol):
    """One model, loaded. `app` serves its OpenAI routes; the rest is for the native ones."""

    app: ASGIApp
    registry: CollectorRegistry
    limits: Limits
    device: str  # "cpu", "cuda", ...
    thinks: bool  # its OpenAI routes tell thought from answer

    async def render_text(self, text: str) -> TokenIds:
        """Tokens of a raw prompt.

        Raises:
            InvalidRequest: the prompt is longer than the model's context.
        """
        ...

    async def render_chat(
        self, messages: Sequence[Mapping[str, Any]], thinking: bool = False
    ) -> TokenIds:
        """Tokens of a conversation in the model's chat template, ready for its thought or answer.

        Raises:
            InvalidRequest: not a conversation, or longer than the model's context.
        """
        ...

    async def model_card(self) -> dict[str, Any]:
        """The model's entry of `/v1/models`."""
        ...

    def dead(self) -> bool:
        """The engine processes are gone, or their output cannot be read any more."""
        ...

    def unfinished(self) -> int:
        """Requests handed in and not finished."""
        ...

    def silent_s(self) -> float:
        """Seconds since the last sign of progress; an idle engine is not silent."""
        ...

    def kill(self) -> None:
        """End the engine processes at once; for one that hangs."""
        ...

    async def aclose(self) -> None:
        """Shut down. Safe to call twice and on a dead engine."""
        ...


# Loads a profile's model from a folder or hub id.
Opener = Callable[[Profile, Path | str], Awaitable[Engine]]
