"""Life and death of the server: bind, load, serve, drain, shut down.

The listeners are up before the engines, so that probes and early callers get an answer (503 with
Retry-After) instead of a refused connection. After SIGTERM they stay up until the last running request
is done, so that a load balancer can see readiness go before the socket does.
"""

import asyncio
import contextlib
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
from gateway.engines.fleet import Fleet, ServedModel
from gateway.engines.opening import locate, open_engine, prepare_environment
from gateway.engines.types import Opener
from gateway.observability.figures import Figures
from gateway.settings import Settings

log = logging.getLogger(__name__)

# What uvicorn waits for after our own drain; what is still open then is cut.
CUT_AFTER_S = 1
KEEP_ALIVE_S = 75
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


def listener(app: FastAPI, settings: Settings) -> Listener:
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",  # that it listens is told by the console
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=CUT_AFTER_S,
    )
    return Listener(config)


def build_fleet(settings: Settings, console: Console, opener: Opener = open_engine) -> Fleet:
    """The models of the settings, located (built if need be), not yet loaded.

    Raises:
        ProfileError: a profile or its model is not usable, or two have the same name.
    """
    models: list[ServedModel] = []
    for name in settings.profiles:
        profile = load(name, settings.profiles_dir)
        if any(profile.served_as == model.name for model in models):
            raise ProfileError(f"two profiles serve the name '{profile.served_as}'")
        with console.building(name) as progress:
            location: Path | str = locate(profile, progress)
        models.append(ServedModel(profile, location, opener, settings))
    prepare_environment([model.location for model in models])
    return Fleet(models, settings)


class Service:
    """One gateway process, from sockets to shutdown."""

    def __init__(self, settings: Settings, console: Console, fleet: Fleet) -> None:
        self.settings = settings
        self.console = console
        self.fleet = fleet
        figures = Figures()
        self.sockets = [
            bind(settings.host, settings.port),
            bind(settings.admin_host, settings.admin_port),
        ]
        self.listeners = [
            listener(create_app(settings, fleet, figures), settings),
            listener(create_admin_app(settings, fleet, figures), settings),
        ]
        self.stop = asyncio.Event()

    async def run(self) -> None:
        """Until SIGTERM or Ctrl-C. Raises what kept an engine from starting."""
        self._install_signals()
        serving = [
            asyncio.create_task(server.serve(sockets=[sock]))
            for server, sock in zip(self.listeners, self.sockets, strict=True)
        ]
        try:
            await self._start()
            await self.stop.wait()
            self.console.say("stopping: running requests may finish, new ones get 503")
            if not await self.fleet.drain(self.settings.drain_timeout_s):
                log.warning("%d requests cut off at the drain limit", self.fleet.in_flight())
        finally:
            for server in self.listeners:
                server.should_exit = True
            await asyncio.gather(*serving, return_exceptions=True)
            await self.fleet.close()
        self.console.say("stopped")

    async def _start(self) -> None:
        """Load the engines; a signal meanwhile ends it, since a load cannot be drained."""
        ports = [sock.getsockname()[1] for sock in self.sockets]
        starting = asyncio.create_task(self._open_fleet())
        stopped = asyncio.create_task(self.stop.wait())
        await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not starting.done():
            self.console.say("stopped before the engine was up")
            # The load runs in a thread and can't be cancelled; the engine processes exit with us.
            os._exit(0)
        await starting
        self.console.ready(self.settings, self.fleet, *ports)

    async def _open_fleet(self) -> None:
        with self.console.starting() as tell:
            await self.fleet.start(tell)

    def _install_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        """The first asks for a drain, the second ends it."""
        if self.stop.is_set():
            self.console.say("stopping now")
            os._exit(EXIT_FORCED)
        self.stop.set()
