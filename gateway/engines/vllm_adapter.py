"""vLLM behind our seam: the only module that imports `vllm`.

`tests/unit/test_vllm_surface.py` names each vLLM symbol used here, so an upgrade fails with a sentence.
Section numbers in comments are those of vLLM 0.32's traps in docs/adr/0002-embed-vllm.md.
"""

import argparse
import asyncio
import contextlib
import difflib
import functools
import os
import signal
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from vllm.distributed.ec_transfer.ec_connector.metrics import ECConnectorProm
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorProm
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.launchers.launcher import validate_api_server_args
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
from vllm.exceptions import GracefulHTTPError, RetryableRequestError, VLLMClientError
from vllm.inputs.engine import tokens_input
from vllm.platforms import current_platform
from vllm.sampling_params import SamplingParams
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.utils.gc_utils import freeze_gc_heap
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.perf import PerfMetricsProm
from vllm.v1.spec_decode.metrics import SpecDecodingProm

from engine_config.profile import Profile, ProfileError, cli_args
from gateway.asgi import error_response
from gateway.engines.types import Delta, Job, Limits, TokenIds
from gateway.engines.vllm_thinking import ThinkingClient, changed, delta_of, looping
from gateway.errors import (
    EngineOverloaded,
    EngineUnavailable,
    InvalidRequest,
    from_validation,
)
from gateway.thinking.dialect import Dialect, dialect_of

SHUTDOWN_TIMEOUT_S = 10
# Children inherit os.environ at their start (trap 1.4.8), so one engine starts at a time.
_environment_lock = threading.Lock()


def parse_args(profile: Profile, model: Path | str) -> argparse.Namespace:
    """vLLM's own namespace for a profile. A new one for each engine: vLLM writes into it (1.1).

    Raises:
        ProfileError: a setting that vLLM does not know or refuses.
    """
    parser = make_arg_parser(FlexibleArgumentParser())
    known = {action.dest for action in parser._actions}
    for key in profile.vllm:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise ProfileError(f"profile {profile.name}: vLLM has no setting '{key}'{hint}")

    def refuse(message: str) -> NoReturn:
        raise ProfileError(f"profile {profile.name}: {message}")

    parser.error = refuse
    args: argparse.Namespace = parser.parse_args(cli_args(profile, model))
    try:
        validate_parsed_serve_args(args)
        validate_api_server_args(args)
    except (TypeError, ValueError, KeyError) as error:
        raise ProfileError(f"profile {profile.name}: {error}") from error
    return args


async def open_engine(profile: Profile, model: Path | str) -> "VllmEngine":
    """Load the model and build vLLM's app over it. Takes from 20 s to minutes; the loop stays free.

    Raises:
        ProfileError: vLLM refuses a setting.
        Exception: whatever vLLM raises when the engine does not come up.
    """
    registry = CollectorRegistry()
    heartbeat = Heartbeat()
    args, client = await asyncio.to_thread(
        _start, profile, model, _stat_logger(registry, heartbeat)
    )
    try:
        await client.reset_mm_cache()
        tasks = await client.get_supported_tasks()
        app = build_app(args, tasks, client.model_config)
        dialect = await asyncio.to_thread(_dialect, client)
        # With a reasoning parser, vLLM's routes tell thought from answer; then they get the guarantee.
        served = ThinkingClient(client, dialect) if args.reasoning_parser else client
        await init_app_state(served, app.state, args, tasks)
    except BaseException:
        await asyncio.to_thread(client.shutdown, timeout=SHUTDOWN_TIMEOUT_S)
        raise
    _trim(app)
    await asyncio.to_thread(freeze_gc_heap)
    return VllmEngine(client, app, registry, heartbeat, dialect)


def _dialect(client: AsyncLLM) -> Dialect:
    tokenizer = client.renderer.get_tokenizer()
    eos = client.model_config.get_diff_sampling_param().get("stop_token_ids", [])
    return dialect_of(tokenizer, len(tokenizer), frozenset([tokenizer.eos_token_id, *eos]))


def _start(
    profile: Profile, model: Path | str, stat_logger: type[PrometheusStatLogger]
) -> tuple[argparse.Namespace, AsyncLLM]:
    """Blocks while the engine loads; run it in a thread (1.1)."""
    cli_env_setup()
    args = parse_args(profile, model)
    with _environment_lock, _environment(profile):
        engine_args = AsyncEngineArgs.from_cli_args(args)
        config = engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
        client = AsyncLLM.from_vllm_config(
            vllm_config=config,
            usage_context=UsageContext.OPENAI_API_SERVER,
            stat_loggers=[stat_logger],
            disable_log_stats=args.disable_log_stats,
        )
    return args, client


@contextlib.contextmanager
def _environment(profile: Profile) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update({key: str(entry.value) for key, entry in profile.environment.items()})
    try:
        yield
    finally:
        for key in profile.environment:
            os.environ.pop(key)
            if key in before:
                os.environ[key] = before[key]


def _trim(app: FastAPI) -> None:
    """Take out what our own app does already, so that a chunk passes fewer `send` wrappers."""
    app.state.server = SimpleNamespace(should_exit=False)  # its error handler reads it (1.4.1)
    app.user_middleware.clear()
    app.middleware_stack = None  # built anew at the first request, as Ray Serve does (1.2)
    app.add_exception_handler(EngineDeadError, _on_engine_dead)
    app.add_exception_handler(RequestValidationError, _on_invalid)


async def _on_engine_dead(request: Request, error: Exception) -> Response:
    """vLLM answers 500; a dead engine is back soon, so 503 and Retry-After."""
    return error_response(
        EngineUnavailable("the engine stopped; it is being restarted"), request.scope
    )


async def _on_invalid(request: Request, error: Exception) -> Response:
    """vLLM writes pydantic's dict as text; say the field and the value in a sentence."""
    assert isinstance(error, RequestValidationError)
    return error_response(from_validation(list(error.errors())), request.scope)


class Heartbeat:
    """When the engine was last seen to do something; `time.monotonic` seconds."""

    def __init__(self) -> None:
        self.at = time.monotonic()

    def beat(self) -> None:
        self.at = time.monotonic()


def _stat_logger(registry: CollectorRegistry, heartbeat: Heartbeat) -> type[PrometheusStatLogger]:
    """vLLM's metrics in a registry of their own: a second engine would wipe the first's (1.4.3)."""
    gauge = staticmethod(functools.partial(Gauge, registry=registry))
    counter = staticmethod(functools.partial(Counter, registry=registry))
    histogram = staticmethod(functools.partial(Histogram, registry=registry))
    classes = {"_gauge_cls": gauge, "_counter_cls": counter, "_histogram_cls": histogram}

    def record(self: PrometheusStatLogger, *args: Any, **kwargs: Any) -> None:
        heartbeat.beat()
        PrometheusStatLogger.record(self, *args, **kwargs)

    parts = {
        "_spec_decoding_cls": type("SpecDecoding", (SpecDecodingProm,), {"_counter_cls": counter}),
        "_perf_metrics_cls": type("Perf", (PerfMetricsProm,), {"_counter_cls": counter}),
        "_kv_connector_cls": type("KVConnector", (KVConnectorProm,), classes),
        "_ec_connector_cls": type("ECConnector", (ECConnectorProm,), classes),
    }
    return type("SlotStatLogger", (PrometheusStatLogger,), {**classes, **parts, "record": record})


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
        raise InvalidRequest(_first_sentence(error), getattr(error, "parameter", None)) from error
    except ValidationError as error:
        raise from_validation(list(error.errors())) from error
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidRequest(str(error)) from error


def _first_sentence(error: VLLMClientError) -> str:
    """The message without the `(parameter=..., value=...)` that vLLM appends."""
    return str(error.args[0]) if error.args else str(error)


class VllmEngine:
    """One AsyncLLM, its app, its metrics. Keeps `gateway.engines.types.Engine`."""

    def __init__(
        self,
        client: AsyncLLM,
        app: FastAPI,
        registry: CollectorRegistry,
        heartbeat: Heartbeat,
        dialect: Dialect,
    ) -> None:
        self.app = app
        self.registry = registry
        self.limits = Limits(
            client.model_config.max_model_len, client.vllm_config.scheduler_config.max_num_seqs
        )
        self.dialect = dialect
        self.thinks = bool(app.state.args.reasoning_parser)
        self.device = str(current_platform.device_type)
        self._client = client
        self._heartbeat = heartbeat
        self._renderer = app.state.online_renderer
        self._models = app.state.openai_serving_models
        self._defaults = client.model_config.get_diff_sampling_param()

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

    def kill(self) -> None:
        manager = self._client.engine_core.resources.engine_manager
        for process in manager.processes if manager else ():
            if process.pid and process.is_alive():
                os.kill(process.pid, signal.SIGKILL)

    async def aclose(self) -> None:
        await asyncio.to_thread(self._client.shutdown, timeout=SHUTDOWN_TIMEOUT_S)


def _prompt_ids(rendered: Any) -> TokenIds:
    if isinstance(rendered, ErrorResponse):
        raise InvalidRequest(rendered.error.message, rendered.error.param)
    return tuple(rendered[0]["prompt_token_ids"])
