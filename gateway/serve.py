"""Life and death of the server: bind, load, serve, drain, shut down.

The listeners are up before the engines, so that probes and early callers get an answer (503 with
Retry-After) instead of a refused connection. After SIGTERM they stay up until the last running request
is done, so that a load balancer can see readiness go before the socket does.
"""

import asyncio
import contextlib
import importlib
import logging
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from engine_config.profile import ProfileError, load
from gateway.app import create_admin_app, create_app
from gateway.console import Console
from gateway.engines.catalogue import Catalogue
from gateway.engines.cores import CoreSets
from gateway.engines.fleet import Fleet
from gateway.engines.opening import check, footprint, locate, open_engine, prepare_environment
from gateway.engines.served import ServedModel
from gateway.engines.switch import Tools
from gateway.engines.switcher import Switcher
from gateway.engines.types import Opener
from gateway.errors import GatewayError
from gateway.observability.figures import Figures
from gateway.observability.spans import UNTRACED, Tracer
from gateway.reload import Reloader
from gateway.settings import Settings
from gateway.tenancy import Tenancy
from gateway.tls import Certificate
from gateway.wire import bounded

log = logging.getLogger(__name__)

# What uvicorn waits for after our own drain; what is still open then is cut.
CUT_AFTER_S = 1
EXIT_FORCED = 130


class Listener(uvicorn.Server):
    """A uvicorn server that leaves signals to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        OSError: the port is taken or the address is not ours; the message says what to do.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise OSError(
            f"cannot listen on {host}:{port}: {error.strerror}. Something else has it? "
            "Choose another with PORT=... (or --port), the admin one with --admin-port"
        ) from error
    return sock


def listener(app: FastAPI, settings: Settings, certificate: Certificate | None = None) -> Listener:
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",  # that it listens is told by the console
        access_log=False,
        server_header=False,
        lifespan="off",
        http=bounded(settings),
        ws="none",
        timeout_keep_alive=settings.idle_timeout_s,
        timeout_graceful_shutdown=CUT_AFTER_S,
        # A request that was sent ahead starts in the task of the one before: not with its variables.
        reset_contextvars=True,
    )
    if certificate is not None:
        certificate.use(config)
    return Listener(config)


def open_tracer(settings: Settings) -> Tracer:
    """With tracing off, OpenTelemetry is not even imported."""
    if settings.trace_endpoint is None:
        return UNTRACED
    traces = importlib.import_module("gateway.observability.traces")
    tracer: Tracer = traces.open_tracer(settings)
    return tracer


def build_fleet(
    settings: Settings, console: Console, opener: Opener = open_engine
) -> tuple[Fleet, Catalogue]:
    """The models of the settings, located (built if need be), not yet loaded; and all profiles.

    Raises:
        ProfileError: a profile or its model is not usable, or two have the same name.
    """
    models: list[ServedModel] = []
    cores = CoreSets(settings.slot_cores)
    profiles = [load(name, settings.profiles_dir) for name in settings.profiles]
    catalogue = Catalogue(settings)
    catalogue.adopt(*catalogue.read())
    for problem in catalogue.broken.values():
        log.warning("left out: %s", problem)
    prepare_environment([*profiles, *catalogue.reachable(each.served_as for each in profiles)])
    for profile in profiles:
        if any(profile.served_as == model.name for model in models):
            raise ProfileError(f"two profiles serve the name '{profile.served_as}'")
        with console.building(profile.name) as progress:
            location: Path | str = locate(profile, progress)
        models.append(ServedModel(profile, location, opener, settings, cores))
    return Fleet(models, settings), catalogue


class Service:
    """One gateway process, from sockets to shutdown."""

    def __init__(
        self, settings: Settings, console: Console, fleet: Fleet, catalogue: Catalogue
    ) -> None:
        self.settings = settings
        self.console = console
        self.fleet = fleet
        figures = Figures(settings.metrics_tenants)
        self.switcher = Switcher(fleet, catalogue, Tools(locate, footprint, check))
        self.tenancy = Tenancy.of(settings, figures.registry)
        self.reloader = Reloader(settings, fleet, catalogue, self.tenancy.keyring)
        self.certificate = Certificate.of(settings, figures.registry)
        self.reloader.certificate = self.certificate
        self.tracer = open_tracer(settings)
        self.sockets = [
            bind(settings.host, settings.port),
            bind(settings.admin_host, settings.admin_port),
        ]
        public = create_app(settings, fleet, figures, self.tenancy, self.tracer)
        self.live = public.state.live
        self.listeners = [
            listener(public, settings, self.certificate),
            listener(
                create_admin_app(fleet, figures, self.switcher, self.reloader, self.tenancy),
                settings,
            ),
        ]
        self.stop = asyncio.Event()

    async def run(self) -> None:
        """Until SIGTERM or Ctrl-C. Raises what kept an engine from starting."""
        self._install_signals()
        self.tenancy.start()
        living = asyncio.create_task(self.live.keep())
        serving = [
            asyncio.create_task(server.serve(sockets=[sock]))
            for server, sock in zip(self.listeners, self.sockets, strict=True)
        ]
        try:
            await self._start()
            await self.stop.wait()
            self.console.say("stopping: running requests may finish, new ones get 503")
            self.fleet.begin_drain()
            await self.switcher.stop()
            if not await self.fleet.drain(self.settings.drain_timeout_s):
                log.warning("%d requests cut off at the drain limit", self.fleet.in_flight())
        finally:
            living.cancel()
            await self.switcher.stop()
            for server in self.listeners:
                server.should_exit = True
            await asyncio.gather(*serving, return_exceptions=True)
            try:
                await self.tenancy.aclose()
            finally:
                await self.fleet.close()
                await self.tracer.aclose()
        self.console.say("stopped")

    async def _start(self) -> None:
        """Load the engines, until a signal: a load cannot be drained."""
        ports = [sock.getsockname()[1] for sock in self.sockets]
        starting = asyncio.create_task(self._open_fleet())
        stopped = asyncio.create_task(self.stop.wait())
        await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not starting.done():
            self.console.say("stopped before the engine was up")
            starting.cancel()  # which ends the engine process that loads
            return  # others may serve already: they drain
        await starting
        self.console.ready(self.settings, self.fleet, *ports)

    async def _open_fleet(self) -> None:
        with self.console.starting() as tell:
            await self.fleet.start(tell)

    def _install_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)

    def _on_hangup(self) -> None:
        """Read settings and profiles anew; one reload at a time is all that a task is kept for."""
        self.reloading = asyncio.create_task(self._reload())

    async def _reload(self) -> None:
        outcome = "ok"
        try:
            await self.reloader.reload()
        except GatewayError as error:
            log.error("reload: %s", error.message)
            outcome = error.message
        except (
            Exception
        ) as error:  # nobody awaits this task: untold, a revoked key would stay valid
            log.exception("reload failed; what was in force may be so in part")
            outcome = f"failed: {type(error).__name__}"
        self.tenancy.audit.write("signal", {"action": "reload", "outcome": outcome})

    def _on_signal(self) -> None:
        """The first asks for a drain, the second ends it."""
        if self.stop.is_set():
            self.console.say("stopping now")
            os._exit(EXIT_FORCED)
        self.stop.set()
