"""`gateway serve` in a process of its own, over scripted engines: how it starts and ends, without a model.

    python -m tests.scripted_serve PROFILE ...

What a profile does is in its name; `Serving` is for the test, the rest runs in the process.
"""

import asyncio
import functools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine_config.profile import Profile
from gateway import cli, serve
from tests.ports import free_ports
from tests.scripted import Script, ScriptedEngine
from tests.service.server import PATIENCE_S, wait_for

NAMES = ("plain", "hangup", "endless", "remote")  # `remote` is another profile of plain's model


def locate(profile: Profile, tell: Callable[[str, float], None]) -> Path:
    if profile.name == "remote":
        threading.Event().wait()  # a download that never ends
    if profile.name == "hangup":
        os.kill(os.getpid(), signal.SIGHUP)
    return Path("nowhere")


async def opener(profile: Profile, location: Path | str, cores: str | None = None) -> Any:
    if profile.name == "endless":
        await asyncio.Event().wait()
    engine, gate = ScriptedEngine(profile.served_as), asyncio.Event()
    engine.script = lambda job: Script(["half", " and whole"], gate=gate, gate_at=1)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, gate.set)
    return engine


def main(*profiles: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serve, "locate", locate)
        patch.setattr(cli, "build_fleet", functools.partial(serve.build_fleet, opener=opener))
        cli.serve(list(profiles))


class Serving:
    """Such a process; `with Serving(folder, "plain") as serving`. It is ended by its pid."""

    def __init__(self, folder: Path, *profiles: str) -> None:
        self.profiles, self.log = profiles, folder / "serve.log"
        port, admin_port = free_ports(2)
        self.url, self.admin_url = (f"http://127.0.0.1:{each}" for each in (port, admin_port))
        for name in NAMES:
            served_as = "plain" if name == "remote" else name
            text = f"name: {name}\ntitle: Scripted.\nserved_as: {served_as}\n"
            text += "model: {kind: folder, path: nowhere}\n"
            (folder / f"{name}.yaml").write_text(text)
        settings = {
            "profiles_dir": folder,
            "state_dir": folder,
            "port": port,
            "admin_port": admin_port,
        }
        settings |= {"usage_url": "off", "audit_log": "off", "header_timeout_s": PATIENCE_S}
        self.env = {f"GATEWAY_{name.upper()}": str(value) for name, value in settings.items()}

    def __enter__(self) -> "Serving":
        command = [sys.executable, "-m", "tests.scripted_serve", *self.profiles]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env={**os.environ, **self.env}, stdout=log, stderr=log
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def state(self, model: str) -> str | None:
        """Of a model; None while nobody listens."""
        assert self.process.poll() is None, f"it ended:\n{self.log.read_text()}"
        try:
            health = httpx.get(f"{self.url}/health", timeout=PATIENCE_S).json()
        except httpx.TransportError:
            return None
        return next(str(each["state"]) for each in health["models"] if each["name"] == model)

    def reaches(self, model: str, state: str) -> None:
        wait_for(lambda: self.state(model) == state, PATIENCE_S, f"{model} {state}")

    def ended(self) -> int:
        """Its exit status, when it has ended by itself."""
        return self.process.wait(PATIENCE_S)


if __name__ == "__main__":
    main(*sys.argv[1:])
