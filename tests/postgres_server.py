"""A real PostgreSQL for tests: started, killed, brought back, ended by its pid."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ports import free_port

START_S = 120
POLL_S = 0.05
PLACES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin")


def program(name: str) -> str:
    """On the path, or where distributions put it. Fails the test if it is nowhere."""
    if found := shutil.which(name):
        return found
    for pattern in PLACES:
        if places := sorted(Path("/").glob(f"{pattern[1:]}/{name}")):
            return str(places[-1])
    pytest.fail(f"{name} is missing: apt-get install postgresql")


class PostgresServer:
    """Keeps what it has over a kill. Root may not run it, so then it is the user `postgres`'s."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"postgresql://tester:secret-word@127.0.0.1:{self.port}/postgres"
        self.user = "postgres" if os.geteuid() == 0 else None
        self.process: subprocess.Popen[bytes] | None = None

    def make(self) -> None:
        password = self.folder / "password"
        password.write_text("secret-word")
        if self.user:
            for path in (self.folder, password):
                shutil.chown(path, self.user)
        command = [program("initdb"), "-D", str(self.folder / "data"), "-U", "tester", "-N"]
        command += ["-A", "scram-sha-256", f"--pwfile={password}"]
        subprocess.run(command, user=self.user, check=True, capture_output=True, cwd="/")

    def start(self) -> None:
        command = [program("postgres"), "-D", str(self.folder / "data"), "-p", str(self.port)]
        command += ["-c", "listen_addresses=127.0.0.1", "-k", str(self.folder), "-F"]
        self.process = subprocess.Popen(
            command,
            user=self.user,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
        )
        deadline = time.monotonic() + START_S
        while not self._answers():
            assert self.process.poll() is None, "postgres ended at its start"
            assert time.monotonic() < deadline, "postgres does not answer"
            time.sleep(POLL_S)

    def _answers(self) -> bool:
        ready = [program("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return subprocess.run(ready, check=False).returncode == 0
        return False

    def kill(self) -> None:
        """At once, as a power cut; it recovers at its next start."""
        if self.process is not None:
            self.process.send_signal(3)  # SIGQUIT: "immediate shutdown"; its children end with it
            self.process.wait()
            self.process = None


@contextlib.contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        server = PostgresServer(Path(folder))
        server.make()
        server.start()
        try:
            yield server
        finally:
            server.kill()
