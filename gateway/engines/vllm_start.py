"""Starting a vLLM engine: its arguments, its environment, its metrics, and giving a start up.

One of the modules that import `vllm`; section numbers are those of docs/adr/0002-embed-vllm.md.
"""

import argparse
import asyncio
import contextlib
import difflib
import functools
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from vllm.distributed.ec_transfer.ec_connector.metrics import ECConnectorProm
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorProm
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.launchers.launcher import validate_api_server_args
from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.perf import PerfMetricsProm
from vllm.v1.spec_decode.metrics import SpecDecodingProm

from engine_config import bind_cores
from engine_config.hardware import card_here
from engine_config.profile import Profile, ProfileError, cli_args

SHUTDOWN_TIMEOUT_S = 10
ABANDON_POLL_S = 0.2
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
    args: argparse.Namespace = parser.parse_args(cli_args(profile, model, card_here(profile)))
    try:
        validate_parsed_serve_args(args)
        validate_api_server_args(args)
    except (TypeError, ValueError, KeyError) as error:
        raise ProfileError(f"profile {profile.name}: {error}") from error
    return args


def check(profile: Profile, model: Path | str) -> None:
    """Let vLLM work out the whole configuration, as a start would; loads nothing.

    Raises:
        ProfileError: a setting that vLLM does not know or refuses.
        Exception: whatever vLLM says against model and settings together.
    """
    cli_env_setup()
    args = parse_args(profile, model)
    with _environment_lock, _environment(profile, None):
        AsyncEngineArgs.from_cli_args(args).create_engine_config()


@dataclass
class Start:
    """One start of an engine. `run` blocks while it loads; `abandon` gives it up."""

    profile: Profile
    model: Path | str
    cores: str | None
    stat_logger: type[PrometheusStatLogger]
    before: frozenset[int] | None = None  # pids that were our children when it began
    abandoned: bool = False

    def run(self) -> tuple[argparse.Namespace, AsyncLLM]:
        """In a thread: the constructor of AsyncLLM blocks until the weights are loaded (1.1)."""
        cli_env_setup()
        args = parse_args(self.profile, self.model)
        with _environment_lock, _environment(self.profile, self.cores):
            if self.abandoned:
                raise RuntimeError("given up before it began")
            self.before = frozenset(_children())
            engine_args = AsyncEngineArgs.from_cli_args(args)
            config = engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
            if self.abandoned:
                raise RuntimeError("given up before its process began")
            client = AsyncLLM.from_vllm_config(
                vllm_config=config,
                usage_context=UsageContext.OPENAI_API_SERVER,
                stat_loggers=[self.stat_logger],
                disable_log_stats=args.disable_log_stats,
            )
        return args, client

    async def loaded(self) -> tuple[argparse.Namespace, AsyncLLM]:
        """The engine when it is up; cancelled, its processes are ended first."""
        loading = asyncio.ensure_future(asyncio.to_thread(self.run))
        try:
            return await asyncio.shield(loading)
        except asyncio.CancelledError:
            ending = asyncio.create_task(self._abandon(loading))
            while not ending.done():
                # Cancelled again it goes on all the same, or an engine would be left that nobody holds.
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.shield(ending)
            raise

    async def _abandon(
        self, loading: "asyncio.Future[tuple[argparse.Namespace, AsyncLLM]]"
    ) -> None:
        """A thread cannot be cancelled, but its engine process can be killed: then vLLM gives up."""
        self.abandoned = True
        while not loading.done():
            for pid, process in _children().items():
                if self.before is not None and pid not in self.before:
                    process.kill()
            await asyncio.wait({loading}, timeout=ABANDON_POLL_S)
        if loading.exception() is None:  # it was up in the very moment
            await asyncio.to_thread(loading.result()[1].shutdown, timeout=SHUTDOWN_TIMEOUT_S)


def _children() -> dict[int, multiprocessing.process.BaseProcess]:
    """Our living child processes. All are engines: the gateway starts no others by multiprocessing."""
    return {child.pid: child for child in multiprocessing.active_children() if child.pid}


@contextlib.contextmanager
def _environment(profile: Profile, cores: str | None) -> Iterator[None]:
    wanted = {key: str(entry.value) for key, entry in profile.environment.items()}
    if cores is not None:
        threads = str(len(bind_cores.cores_of(cores)))
        wanted |= {bind_cores.VARIABLE: cores, "OMP_NUM_THREADS": threads}
    before = dict(os.environ)
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key in wanted:
            os.environ.pop(key)
            if key in before:
                os.environ[key] = before[key]


class Heartbeat:
    """When the engine was last seen to do something; `time.monotonic` seconds."""

    def __init__(self) -> None:
        self.at = time.monotonic()
        self.tell: Callable[[], object] = lambda: None  # after a step

    def beat(self) -> None:
        self.at = time.monotonic()


def stat_logger(registry: CollectorRegistry, heartbeat: Heartbeat) -> type[PrometheusStatLogger]:
    """vLLM's metrics in a registry of their own: a second engine would wipe the first's (1.4.3)."""
    gauge = staticmethod(functools.partial(Gauge, registry=registry))
    counter = staticmethod(functools.partial(Counter, registry=registry))
    histogram = staticmethod(functools.partial(Histogram, registry=registry))
    classes = {"_gauge_cls": gauge, "_counter_cls": counter, "_histogram_cls": histogram}

    def record(self: PrometheusStatLogger, *args: Any, **kwargs: Any) -> None:
        heartbeat.beat()
        PrometheusStatLogger.record(self, *args, **kwargs)
        heartbeat.tell()

    parts = {
        "_spec_decoding_cls": type("SpecDecoding", (SpecDecodingProm,), {"_counter_cls": counter}),
        "_perf_metrics_cls": type("Perf", (PerfMetricsProm,), {"_counter_cls": counter}),
        "_kv_connector_cls": type("KVConnector", (KVConnectorProm,), classes),
        "_ec_connector_cls": type("ECConnector", (ECConnectorProm,), classes),
    }
    return type("SlotStatLogger", (PrometheusStatLogger,), {**classes, **parts, "record": record})
