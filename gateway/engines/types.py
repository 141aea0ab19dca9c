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
    trace: Mapping[str, str] | None = None  # W3C headers of the span to work under


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
    max_batched_tokens: int  # of one step, prompts and drawn ones together
    cache_tokens: int | None = None  # of all requests together; None: nobody can tell
    vocab_size: int | None = None  # token ids are below it; None: nobody can tell
    by_priority: bool = False  # its own scheduler heeds a Job's priority; else that must be 0


class Source(Protocol):
    """What a thought and its answer need of an engine."""

    dialect: "Dialect"  # how the model opens and closes a thought

    def generate(self, job: Job) -> AsyncGenerator[Delta, None]:
        """Run the job. Closing the generator aborts the work and frees its KV blocks.

        Raises:
            InvalidRequest: the engine refuses the job.
            EngineUnavailable: the engine is dead or overloaded, or gave the job up.
        """
        ...

    def looping(self, ids: Sequence[int]) -> bool:
        """The tail of the tokens repeats itself again and again."""
        ...


class Engine(Source, Protocol):
    """One model, loaded. `app` serves its OpenAI routes; the rest is for the native ones."""

    app: ASGIApp
    format: str  # of its weights, as vLLM names it: "bfloat16", "compressed-tensors", ...
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

    async def check_grammar(self, specs: Sequence[Mapping[str, Any]], limit_s: float) -> None:
        """Refuse what would not compile, each within so much processor time; nothing else is held up by that.

        A spec has one of vLLM's names (json, regex, choice, grammar, structural_tag) and its value.

        Raises:
            InvalidRequest: it does not compile, or not in time.
            EngineUnavailable: it cannot be tried now.
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

    def watch_steps(self, tell: Callable[[], None]) -> None:
        """Call `tell` after each step whose tokens have come; in the place of whom it told before."""
        ...

    def kill(self) -> None:
        """End the engine processes at once; for one that hangs."""
        ...

    def free_memory(self) -> int | None:
        """Bytes that another engine on the same device could take now; None: nobody can tell."""
        ...

    async def reload_weights(self, location: Path) -> None:
        """Put other weights of the same shape and type in the place of the present ones.

        No request may run meanwhile. What was cached of the old weights is forgotten.

        Raises:
            Exception: whatever vLLM raises; the weights are then neither the old nor the new ones.
        """
        ...

    async def load_adapter(self, name: str, path: Path) -> None:
        """Make a LoRA adapter available under a model name of its own.

        Raises:
            InvalidRequest: the engine takes no adapters, or not this one.
        """
        ...

    async def unload_adapter(self, name: str) -> None:
        """Forget it; requests that use it finish."""
        ...

    def has_adapter(self, name: str) -> bool:
        """It is loaded in this engine."""
        ...

    def adapted(self, name: str) -> "Engine":
        """The same engine, with a loaded adapter for all that is generated.

        Raises:
            ModelNotFound: not loaded here.
        """
        ...

    async def aclose(self) -> None:
        """Shut down. Safe to call twice and on a dead engine."""
        ...


# Loads a profile's model from a folder or hub id, on a set of cores ("0-3"; None: not bound). Cancelled,
# it ends what it has started before it lets go.
Opener = Callable[[Profile, Path | str, str | None], Awaitable[Engine]]
