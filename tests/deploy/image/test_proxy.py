"""The Caddyfile of the Compose stack, with the real Caddy: TLS, and streams that come as they are made."""

import contextlib
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from tests.deploy.tools import COMPOSE

START_S = 20
STREAM_S = 20
POLL_S = 0.05
LARGER_THAN_THE_LIMIT = b"x" * (4 * 1024 * 1024 + 1024)


class Upstream(ThreadingHTTPServer):
    """Streams an event, and the second only when it is told that the first has arrived."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.arrived = threading.Event()


class Handler(BaseHTTPRequestHandler):
    server: Upstream
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.chunk(b"data: first\n\n")
        if self.server.arrived.wait(STREAM_S):
            self.chunk(b"data: second\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the output is pytest's."""


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    server = Upstream()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def proxied(upstream: Upstream, tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of the proxy that trusts its CA and nothing else."""
    environment = {
        **os.environ,
        "SITE": "localhost",
        "UPSTREAM": f"127.0.0.1:{upstream.server_address[1]}",
        "XDG_DATA_HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path),
    }
    tool = Path(os.environ["DEPLOY_TOOLS"]) / "bin/caddy"
    command = [str(tool), "run", "--adapter", "caddyfile", "--config", str(COMPOSE / "Caddyfile")]
    with (tmp_path / "caddy.log").open("w") as log:
        caddy = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            root = tmp_path / "caddy/pki/authorities/local/root.crt"
            context = wait_certified(caddy, root)
            with httpx.Client(base_url="https://localhost", verify=context, timeout=60) as client:
                yield client
        finally:
            caddy.terminate()
            caddy.wait()


def wait_certified(process: subprocess.Popen[bytes], root: Path) -> ssl.SSLContext:
    """Until it has made its CA and a certificate; then what trusts that CA."""
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):  # ssl.SSLError is one
            context = ssl.create_default_context(cafile=str(root))
            with (
                socket.create_connection(("127.0.0.1", 443), 1) as plain,
                context.wrap_socket(plain, server_hostname="localhost"),
            ):
                return context
        time.sleep(POLL_S)
    raise AssertionError("Caddy does not listen")


def test_a_token_goes_through_before_the_next_is_made(
    proxied: httpx.Client, upstream: Upstream
) -> None:
    with proxied.stream("POST", "/v1/chat/completions", json={"stream": True}) as response:
        lines = (line for line in response.iter_lines() if line)
        assert next(lines) == "data: first"
        upstream.arrived.set()
        assert list(lines) == ["data: second"]
        assert "strict-transport-security" in response.headers
        assert "server" not in response.headers or response.headers["server"] != "Caddy"


def test_a_body_over_the_gateways_limit_stops_at_the_proxy(proxied: httpx.Client) -> None:
    answer = proxied.post("/v1/chat/completions", content=LARGER_THAN_THE_LIMIT)
    assert answer.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE


def test_plain_http_is_sent_to_tls(proxied: httpx.Client) -> None:
    answer = httpx.get("http://localhost/health", follow_redirects=False)
    assert answer.status_code == httpx.codes.PERMANENT_REDIRECT
    assert answer.headers["location"].startswith("https://localhost")
