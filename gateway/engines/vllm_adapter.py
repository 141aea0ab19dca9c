"""vLLM behind our seam. Only this module and its neighbours `vllm_*` import `vllm`.

`tests/unit/test_vllm_surface.py` names each vLLM symbol used here, so an upgrade fails with a sentence.
Section numbers in comments are those of vLLM 0.32's traps in docs/adr/0002-embed-vllm.md.
"""

import asyncio
import contextlib
import copy
import ctypes
import functools
import gc
import os
import signal
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from prometheus_client import CollectorRegistry
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.lora.protocol import (
    LoadLoRAAdapterRequest,
    UnloadLoRAAdapterRequest,
)
from vllm.exceptions import GracefulHTTPError, RetryableRequestError, VLLMClientError
from vllm.inputs.engine import tokens_input
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform
from vllm.sampling_params import SamplingParams
from vllm.tokenizers import cached_get_tokenizer
from vllm.transformers_utils.processor import cached_get_processor
from vllm.utils.func_utils import _supports_kw
from vllm.utils.gc_utils import freeze_gc_heap
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from engine_config.hardware import free_bytes
from engine_config.profile import Profile
from gateway.asgi import died, error_response
from gateway.engines.types import Delta, Job, Limits, TokenIds
from gateway.engines.vllm_grammar import GrammarGuard
from gateway.engines.vllm_meter import meter
from gateway.engines.vllm_refusals import quieten, refused, refusing
from gateway.engines.vllm_salt import salt
from gateway.engines.vllm_start import SHUTDOWN_TIMEOUT_S, Heartbeat, Start, stat_logger
from gateway.engines.vllm_thinking import ThinkingClient, changed, delta_of, looping
from gateway.engines.vllm_traces import trace
from gateway.errors import (
    EngineOverloaded,
    EngineUnavailable,
    InvalidRequest,
    ModelNotFound,
    from_validation,
)
from gateway.thinking.dialect import Dialect, dialect_of

Told = TypeVar("Told")
CACHES = (cached_get_tokenizer, cached_get_processor, _supports_kw)
DEATH_POLL_S = 0.2


async def open_engine(
    profile: Profile, model: Path | str, cores: str | None = None
) -> "VllmEngine":
    """Load the model and build vLLM's app over it. Takes from 20 s to minutes; the loop stays free.

    Cancelled, it ends the engine's processes before it lets go.

    Raises:
        ProfileError: vLLM refuses a setting.
        Exception: whatever vLLM raises when the engine does not come up.
    """
    registry = CollectorRegistry()
    heartbeat = Heartbeat()
    start = Start(profile, model, cores, stat_logger(registry, heartbeat))
    guard = await GrammarGuard.open()  # it loads beside the engine
    try:
        args, client = await start.loaded()
    except BaseException:
        await guard.aclose()
        raise
    try:
        await unless_dead(client, client.reset_mm_cache())
        await guard.ready(client.vllm_config)
        salt(client)
        meter(client)
        trace(client)
        quieten()
        tasks = await unless_dead(client, client.get_supported_tasks())
        app = build_app(args, tasks, client.model_config)
        dialect = await asyncio.to_thread(_dialect, client)
        await init_app_state(ThinkingClient(client, dialect), app.state, args, tasks)
        _trim(app)
        await asyncio.to_thread(_freeze)
        return VllmEngine(client, app, (registry, heartbeat), dialect, guard)
    except BaseException:
        await guard.aclose()
        await asyncio.to_thread(client.shutdown, timeout=SHUTDOWN_TIMEOUT_S)
        raise


async def unless_dead(client: AsyncLLM, call: Awaitable[Told]) -> Told:
    """What the call to the engine gives. vLLM never ends one whose engine died meanwhile.

    Raises:
        EngineUnavailable: it died.
    """
    asked = asyncio.ensure_future(call)
    try:
        while not asked.done():
            await asyncio.wait({asked}, timeout=DEATH_POLL_S)
            if client.errored and not asked.done():
                raise EngineUnavailable("the engine stopped meanwhile; it is being restarted")
        return asked.result()
    finally:
        asked.cancel()


def _freeze() -> None:
    """Keep what lives as long as the engine out of the collector's way (1.4.2).

    Thawed first: the cycles of an engine that was shut down would otherwise stay for ever. So would its
    tokenizers, 140 MB for 150,000 tokens, as keys and values of vLLM's caches: all are cheap to fill again.
    """
    for cache in CACHES:
        cache.cache_clear()
    gc.unfreeze()
    freeze_gc_heap()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc: give the freed pages back
        libc.malloc_trim(0)


def _dialect(client: AsyncLLM) -> Dialect:
    tokenizer = client.renderer.get_tokenizer()
    eos = client.model_config.get_diff_sampling_param().get("stop_token_ids", [])
    return dialect_of(tokenizer, len(tokenizer), frozenset([tokenizer.eos_token_id, *eos]))


def _trim(app: FastAPI) -> None:
    """Take out what our own app does already, so that a chunk passes fewer `send` wrappers."""
    app.state.server = SimpleNamespace(should_exit=False)  # its error handler reads it (1.4.1)
    app.user_middleware.clear()
    app.middleware_stack = None  # built anew at the first request, as Ray Serve does (1.2)
    app.add_exception_handler(EngineDeadError, _on_engine_dead)
    app.add_exception_handler(RequestValidationError, _on_invalid)


async def _on_engine_dead(request: Request, error: Exception) -> Response:
    """vLLM answers 500; a dead engine is back soon, so 503 and Retry-After. One that lives gave this up."""
    gave_up = EngineUnavailable("the engine gave up on the request; try again", retry_after_s=1)
    return error_response(died(request.scope["gateway.exchange"]) or gave_up, request.scope)


async def _on_invalid(request: Request, error: Exception) -> Response:
    """vLLM writes pydantic's dict as text; say the field and the value in a sentence."""
    assert isinstance(error, RequestValidationError)
    return error_response(from_validation(list(error.errors())), request.scope)


@contextlib.contextmanager
def vllm_errors() -> Iterator[None]:
    """Translate what vLLM raises. A test walks vLLM's exception classes."""
    try:
        yield
    except EngineDeadError as error:
        raise EngineUnavailable("the engine stopped; it is being restarted") from error
    except GracefulHTTPError as error:
        if error.http_status == HTTPStatus.SERVICE_UNAVAILABLE:
            raise EngineOverloaded(str(error), retry_after_s=1) from error
        raise InvalidRequest(str(error)) from error
    except RetryableRequestError as error:
        raise EngineUnavailable(str(error), retry_after_s=1) from error
    except VLLMClientError as error:
        raise refused(error) from error
    except ValidationError as error:
        raise from_validation(list(error.errors())) from error
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidRequest(str(error)) from error


class VllmEngine:
    """One AsyncLLM, its app, its metrics. Keeps `gateway.engines.types.Engine`."""

    def __init__(
        self,
        client: AsyncLLM,
        app: FastAPI,
        watched: tuple[CollectorRegistry, Heartbeat],
        dialect: Dialect,
        guard: GrammarGuard,
    ) -> None:
        self.app = refusing(app)
        self.registry, self._heartbeat = watched
        self._guard = guard
        self.limits = _limits(client)
        self.dialect = dialect
        # With a reasoning parser, vLLM's routes tell thought from answer; then they get the guarantee.
        self.thinks = bool(app.state.args.reasoning_parser)
        self.device = str(current_platform.device_type)
        self._client = client
        self._renderer = app.state.online_renderer
        self._models = app.state.openai_serving_models
        self._defaults = client.model_config.get_diff_sampling_param()
        config = client.model_config
        self.format = str(config.quantization or config.dtype).removeprefix("torch.")
        self._adapter: LoRARequest | None = None

    async def render_text(self, text: str) -> TokenIds:
        with vllm_errors():
            request = CompletionRequest(prompt=text, max_tokens=1)
            return _prompt_ids(await self._renderer.render_completion(request))

    async def render_chat(
        self, messages: Sequence[Mapping[str, Any]], thinking: bool = False
    ) -> TokenIds:
        with vllm_errors():
            request = ChatCompletionRequest.model_validate(
                {
                    "messages": list(messages),
                    "chat_template_kwargs": {"enable_thinking": thinking},
                }
            )
            rendered = await self._renderer.render_chat(request)
            return _prompt_ids(rendered if isinstance(rendered, ErrorResponse) else rendered[1])

    looping = staticmethod(looping)

    async def generate(self, job: Job) -> AsyncGenerator[Delta, None]:
        with vllm_errors():
            source = self._client.generate(
                tokens_input(list(job.prompt)),
                self._params(job),
                job.request_id,
                priority=job.priority,
                reasoning_ended=job.reasoning_ended,
                lora_request=self._adapter,
                trace_headers=job.trace,
            )
            async with aclosing(source) as outputs:  # closing it is the abort
                async for output in outputs:
                    for completion in output.outputs:
                        yield delta_of(output, completion)

    def _params(self, job: Job) -> SamplingParams:
        fields = {"prompt": [0], "stream": job.stream, **job.sampling}
        request = CompletionRequest.model_validate(fields)
        params = request.to_sampling_params(job.max_tokens, self._defaults)
        return changed(params, job) if job.changes else params

    async def check_grammar(self, specs: Sequence[Mapping[str, Any]], limit_s: float) -> None:
        await self._guard.check(specs, limit_s)

    async def model_card(self) -> dict[str, Any]:
        card = (await self._models.show_available_models()).data[0]
        # `root` would be a path of this machine.
        return {**card.model_dump(mode="json"), "root": card.id}

    def dead(self) -> bool:
        return bool(self._client.errored)

    def unfinished(self) -> int:
        return int(self._client.get_num_unfinished_requests())

    def silent_s(self) -> float:
        if self.unfinished() == 0:
            self._heartbeat.beat()
        return time.monotonic() - self._heartbeat.at

    def watch_steps(self, tell: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        # Not from within vLLM's output handler: whatever it raises would be the engine's death.
        self._heartbeat.tell = functools.partial(loop.call_soon, tell)

    def kill(self) -> None:
        manager = self._client.engine_core.resources.engine_manager
        for process in manager.processes if manager else ():
            if process.pid and process.is_alive():
                os.kill(process.pid, signal.SIGKILL)

    def free_memory(self) -> int | None:
        return free_bytes(self.device)

    async def reload_weights(self, location: Path) -> None:
        client = self._client
        await unless_dead(client, client.pause_generation(mode="wait", clear_cache=True))
        try:
            path = {"weights_path": str(location)}
            await unless_dead(client, client.collective_rpc("reload_weights", kwargs=path))
        finally:
            await unless_dead(client, client.resume_generation())

    async def load_adapter(self, name: str, path: Path) -> None:
        if self._client.vllm_config.lora_config is None:
            raise InvalidRequest("this profile takes no adapters: it does not set enable_lora")
        request = LoadLoRAAdapterRequest(lora_name=name, lora_path=str(path))
        answer = await unless_dead(self._client, self._models.load_lora_adapter(request))
        if isinstance(answer, ErrorResponse):
            raise InvalidRequest(f"adapter '{name}': {answer.error.message}", "adapter")

    async def unload_adapter(self, name: str) -> None:
        number = self.adapted(name).lora_id()
        await self._models.unload_lora_adapter(UnloadLoRAAdapterRequest(lora_name=name))
        await unless_dead(self._client, self._client.remove_lora(number))

    def has_adapter(self, name: str) -> bool:
        return name in self._models.lora_requests and not self.dead()

    def adapted(self, name: str) -> "VllmEngine":
        if name not in self._models.lora_requests:
            raise ModelNotFound(f"adapter '{name}' is not loaded", "model")
        clone = copy.copy(self)
        clone._adapter = self._models.lora_requests[name]
        return clone

    def lora_id(self) -> int:
        """vLLM's number of the adapter; 0: none."""
        return int(self._adapter.lora_int_id) if self._adapter else 0

    async def aclose(self) -> None:
        try:
            await self._guard.aclose()
        finally:
            await asyncio.to_thread(self._client.shutdown, timeout=SHUTDOWN_TIMEOUT_S)


def _limits(client: AsyncLLM) -> Limits:
    scheduler = client.vllm_config.scheduler_config
    return Limits(
        max_model_len=client.model_config.max_model_len,
        max_num_seqs=scheduler.max_num_seqs,
        max_batched_tokens=scheduler.max_num_batched_tokens,
        cache_tokens=client.vllm_config.cache_config.kv_cache_size_tokens,
        vocab_size=client.model_config.get_vocab_size(),
        by_priority=scheduler.policy == "priority",
    )


def _prompt_ids(rendered: Any) -> TokenIds:
    if isinstance(rendered, ErrorResponse):
        raise InvalidRequest(rendered.error.message, rendered.error.param)
    return tuple(rendered[0]["prompt_token_ids"])
