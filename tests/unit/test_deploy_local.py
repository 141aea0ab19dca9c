"""A process on this machine: which one is ours, and asked by TLS where it speaks that."""

import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from gateway.deploy import local
from gateway.deploy.config import DeployError, Deployment, Local, Scalar
from gateway.deploy.steps import Validated
from gateway.doctor import place
from gateway.doctor.finding import Level
from tests.ports import free_port
from tests.unit.test_tls import later, write_pair

ROOT = Path(__file__).parents[2]
# Becomes a process with the arguments `gateway serve`, as ours has them, and waits for its end.
WAITS = """#!/bin/sh
read told < {fifo}
exec {python} -c "import sys; open(sys.argv[3], 'w').close(); sys.stdin.read()" gateway serve {fifo} < {end}
"""


class Ready(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path.startswith("/health/") else 404)
        self.send_header("x-request-id", "of the test")
        self.send_header("content-length", "0")
        self.end_headers()


@pytest.fixture
def tls_port(tmp_path: Path) -> Iterator[int]:
    """A listener that is ready, by TLS only, with a certificate nobody trusts."""
    write_pair(tmp_path, later(10))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with ThreadingHTTPServer(("127.0.0.1", 0), Ready) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.mark.parametrize(
    ("cert", "host", "status"),
    [
        ("/keys/cert.pem", "0.0.0.0", 0),
        ("/keys/cert.pem", "", 0),
        ("/keys/cert.pem", "127.0.0.2", 1),
        ("", "", 1),
    ],
)
def test_the_images_health_check_asks_where_the_gateway_listens_and_by_tls_where_it_is_set(
    tls_port: int, cert: str, host: str, status: int
) -> None:
    settings = {"GATEWAY_PORT": str(tls_port), "GATEWAY_HOST": host, "GATEWAY_TLS_CERT": cert}
    environment = {**os.environ, **settings}
    script = ROOT / "deploy/docker/healthcheck.py"

    assert subprocess.call([sys.executable, str(script)], env=environment) == status


def test_the_doctor_knows_a_gateway_that_speaks_tls(tls_port: int) -> None:
    found = place.port("port", "127.0.0.1", tls_port, "https")

    assert found.level is Level.WARN and "a gateway answers there" in found.told
    assert place.port("port", "127.0.0.1", tls_port).level is Level.FAIL


def test_a_local_one_with_tls_is_waited_for_by_https(tmp_path: Path, tls_port: int) -> None:
    cert = str(tmp_path / "cert.pem")
    here = local.Place(tmp_path, Deployment(settings={"port": tls_port, "tls_cert": cert}))
    waits = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        here.await_ready(here.url, waits)
    finally:
        waits.communicate(b"\n")

    assert here.url == f"https://127.0.0.1:{tls_port}"


def test_who_answers_is_not_ours_if_ours_has_ended(tmp_path: Path, tls_port: int) -> None:
    here = local.Place(tmp_path, Deployment(settings={"port": tls_port, "tls_cert": "cert.pem"}))
    here.log.write_text("cannot listen", encoding="utf-8")
    ended = subprocess.Popen(["true"])
    ended.wait()

    with pytest.raises(DeployError, match=r"it ended at its start; .*cannot listen"):
        here.await_ready(here.url, ended)


def test_an_address_that_another_has_is_refused(tmp_path: Path, tls_port: int) -> None:
    """Somebody else's gateway there would be found ready, and validated."""
    taken = local.Stopped(local.Place(tmp_path, Deployment(settings={"port": tls_port})))
    free = local.Stopped(local.Place(tmp_path, Deployment(settings={"port": free_port()})))

    with pytest.raises(DeployError, match=f"another process listens at .*:{tls_port}"):
        taken.do()
    assert free.do() == "nothing ran"


@pytest.mark.parametrize("same_port", [False, True])
def test_another_port_that_somebody_has_is_refused_before_the_old_one_is_stopped(
    tmp_path: Path, tls_port: int, same_port: bool
) -> None:
    """On the same port the old one itself answers, perhaps by another name or without TLS."""
    here = local.Place(tmp_path, Deployment(settings={"port": tls_port, "tls_cert": "cert.pem"}))
    old_port = tls_port if same_port else free_port()
    here.env_file.write_text(f"GATEWAY_PORT={old_port}\n", encoding="utf-8")
    os.mkfifo(tmp_path / "fifo")
    here.script.write_text(f"#!/bin/sh\nread told < {tmp_path}/fifo\n", encoding="utf-8")
    here.script.chmod(0o700)
    started = here.start()
    try:
        with pytest.raises(DeployError, match="another process listens"):
            local.Stopped(here).do()
        assert (here.running() is None) is same_port
    finally:
        started.kill()
        started.wait()


def test_the_old_one_drains_by_its_own_time_limit(tmp_path: Path) -> None:
    here = local.Place(tmp_path, Deployment(settings={"drain_timeout_s": 5}))
    default = here.drain_s()
    here.env_file.write_text("GATEWAY_DRAIN_TIMEOUT_S='120'\n", encoding="utf-8")

    assert (default, here.drain_s()) == (30, 120)
    here.env_file.write_text("GATEWAY_DRAIN_TIMEOUT_S=soon\n", encoding="utf-8")
    with pytest.raises(DeployError, match="no number of seconds: soon"):
        here.drain_s()


def test_a_doctor_that_hangs_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "DOCTOR_S", 0.001)

    with pytest.raises(DeployError, match="gateway doctor did not end within"):
        local.Examined(local.Place(tmp_path, Deployment())).do()


def test_a_local_one_is_called_by_a_name_that_is_trusted(tmp_path: Path) -> None:
    settings: dict[str, Scalar] = {"trusted_hosts": "api.example.com"}
    last = local.steps(Deployment(settings=settings, local=Local(folder=tmp_path)))[-1]

    assert isinstance(last, Validated) and last.address.host == "api.example.com"


def test_it_is_ours_as_the_shell_and_as_what_that_becomes(tmp_path: Path) -> None:
    here = local.Place(tmp_path, Deployment())
    fifo, end = tmp_path / "fifo", tmp_path / "end"
    for path in (fifo, end):
        os.mkfifo(path)
    here.script.write_text(WAITS.format(fifo=fifo, python=sys.executable, end=end))
    here.script.chmod(0o700)
    started = here.start()
    try:
        assert here.running() == psutil.Process(started.pid), "while the shell reads"
        fifo.write_text("go on\n")
        with end.open("w"):
            fifo.read_text()  # it is the other program now
            assert here.running() == psutil.Process(started.pid)
            here.stop()
    finally:
        started.kill()
        started.wait()

    assert here.running() is None and not here.pid_file.exists()


def test_one_that_ends_at_its_start_is_told_with_its_log(tmp_path: Path) -> None:
    here = local.Place(tmp_path, Deployment(settings={"port": free_port()}))
    here.script.write_text("#!/bin/sh\necho no room\nexit 3\n")
    here.script.chmod(0o700)

    with pytest.raises(DeployError, match=r"it ended at its start; .*no room"):
        here.await_ready(here.url, here.start())


@pytest.mark.parametrize("words", [("serve",), ("gateway", "serve")])
def test_another_serve_elsewhere_is_not_stopped(tmp_path: Path, words: tuple[str, ...]) -> None:
    """A pid file that is left over may name a process that only looks alike."""
    here = local.Place(tmp_path / "here", Deployment())
    here.folder.mkdir()
    command = [sys.executable, "-c", "input()", *words]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=tmp_path)
    here.pid_file.write_text(str(other.pid))
    here.stop()

    other.communicate(b"\n")

    assert other.returncode == 0
