"""Life and death: drain, no orphans, engine death and hanging, open binding refused."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from engine_config.profile import SHIPPED
from tests.ports import free_port
from tests.service.server import NANO, PATIENCE_S, START_S, Gateway, alive, wait_for

# More than a test waits for, where the request must not end by itself.
ENDLESS = 30_000
# Half a minute: it ends, but not before the test has come to its next line.
LONG = 6000
STREAM = {"prompt": "Go", "max_tokens": 2000, "temperature": 1, "stream": True}


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Gateway]:
    """A gateway of the test's own, to be hurt; hangs are seen within ten seconds."""
    log = tmp_path / "serve.log"
    settings = {"engine_hang_s": 10, "rebuild_backoff_s": 0, "drain_timeout_s": PATIENCE_S}
    with Gateway(log, "nano-qwen3", **settings) as gateway:
        yield gateway


class Caller(threading.Thread):
    """A streaming request in the background; `first` is set with its first event."""

    def __init__(self, gateway: Gateway, path: str = "/generate", **changes: Any) -> None:
        super().__init__(daemon=True)
        self.url, self.body = f"{gateway.url}{path}", {**STREAM, **changes}
        self.first = threading.Event()
        self.text = ""
        self.error: Exception | None = None
        self.start()
        assert self.first.wait(PATIENCE_S), "no first event"

    def run(self) -> None:
        try:
            with httpx.stream("POST", self.url, json=self.body, timeout=PATIENCE_S) as response:
                for text in response.iter_text():
                    self.text += text
                    self.first.set()
        except httpx.TransportError as error:
            self.error = error


def test_sigterm_lets_running_requests_finish_and_leaves_nothing(own: Gateway) -> None:
    family = own.family()
    caller = Caller(own, max_tokens=LONG)

    own.signal(signal.SIGTERM)
    wait_for(lambda: own.ready_status() == 503, PATIENCE_S, "readiness gone while draining")
    refused = httpx.post(f"{own.url}/generate", json={"prompt": "a"}, timeout=PATIENCE_S)
    caller.join(PATIENCE_S)

    assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
    assert caller.error is None and caller.text.endswith("data: [DONE]\n\n")
    assert "generate.completed" in caller.text
    assert own.process.wait(timeout=PATIENCE_S) == 0, own.log.read_text()
    wait_for(lambda: not alive(family), PATIENCE_S, f"still there: {family}")


def test_the_drain_is_bounded(tmp_path: Path) -> None:
    with Gateway(tmp_path / "serve.log", "nano-qwen3", drain_timeout_s=0.5) as gateway:
        family = gateway.family()
        Caller(gateway, max_tokens=ENDLESS)

        gateway.signal(signal.SIGTERM)

        assert gateway.process.wait(timeout=60) == 0  # the stream alone would last longer
        wait_for(lambda: not alive(family), PATIENCE_S, f"still there: {family}")


def test_no_engine_process_outlives_a_kill_9_of_the_gateway(own: Gateway) -> None:
    family = own.family()
    assert own.engine_process() in family

    own.signal(signal.SIGKILL)
    own.process.wait(timeout=PATIENCE_S)

    wait_for(lambda: not alive(family), PATIENCE_S, f"still there: {family}")


def test_ctrl_c_drains_although_the_terminal_signals_the_whole_group(own: Gateway) -> None:
    caller, family = Caller(own), own.family()

    os.killpg(own.process.pid, signal.SIGINT)  # what a terminal does
    caller.join(PATIENCE_S)

    assert caller.error is None and caller.text.endswith("data: [DONE]\n\n")
    assert own.process.wait(timeout=PATIENCE_S) == 0
    wait_for(lambda: not alive(family), PATIENCE_S, f"still there: {family}")


def test_a_killed_engine_is_told_and_rebuilt(own: Gateway) -> None:
    native = Caller(own, max_tokens=ENDLESS)
    chat = Caller(
        own,
        "/v1/chat/completions",
        messages=[{"role": "user", "content": "Go"}],
        prompt=None,
        max_tokens=ENDLESS,
    )
    plain: list[httpx.Response] = []
    body = {"messages": [{"role": "user", "content": "Go"}], "max_tokens": ENDLESS}
    url = f"{own.url}/v1/chat/completions"
    waiting = threading.Thread(
        target=lambda: plain.append(httpx.post(url, json=body, timeout=PATIENCE_S))
    )
    waiting.start()
    wait_for(
        lambda: own.metric("vllm:num_requests_running", NANO) == 3, PATIENCE_S, "three running"
    )

    own.engine_process().send_signal(signal.SIGKILL)
    for thread in (native, chat, waiting):
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "a request hangs on the dead engine"

    assert "generate.failed" in native.text and "engine_unavailable" in native.text
    assert '"error"' in chat.text
    assert plain[0].status_code == 503 and int(plain[0].headers["retry-after"]) >= 1
    wait_for(lambda: own.ready_status() == 503, PATIENCE_S, "not ready")
    refused = httpx.post(f"{own.url}/generate", json={"prompt": "a"}, timeout=PATIENCE_S)
    assert refused.status_code == 503 and "retry-after" in refused.headers
    assert httpx.get(f"{own.url}/health/live", timeout=PATIENCE_S).status_code == 200
    own.wait_ready()
    assert (
        httpx.post(f"{own.url}/generate", json={"prompt": "a"}, timeout=PATIENCE_S).status_code
        == 200
    )
    assert httpx.get(f"{own.url}/health", timeout=PATIENCE_S).json()["models"][0]["restarts"] == 1


def test_a_hung_engine_is_not_ready_and_is_replaced_when_it_stays_so(own: Gateway) -> None:
    caller, core = Caller(own, max_tokens=LONG), own.engine_process()

    core.suspend()
    wait_for(lambda: own.ready_status() == 503, PATIENCE_S, "seen as hung")
    state = httpx.get(f"{own.url}/health", timeout=PATIENCE_S).json()["models"][0]["state"]
    core.resume()
    wait_for(lambda: own.ready_status() == 200, PATIENCE_S, "ready again when it goes on")
    caller.join(PATIENCE_S)
    later = Caller(own, max_tokens=ENDLESS)
    core.suspend()
    wait_for(
        lambda: not core.is_running() or core.status() == psutil.STATUS_ZOMBIE, PATIENCE_S, "killed"
    )
    later.join(PATIENCE_S)
    own.wait_ready()

    assert state == "hung"
    assert "generate.completed" in caller.text
    assert "engine_unavailable" in later.text
    assert own.engine_process().pid != core.pid


def command(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "gateway", *args]
    env = {**os.environ, **environment}
    return subprocess.run(
        line, capture_output=True, text=True, env=env, timeout=START_S, check=False
    )


def test_binding_beyond_loopback_without_a_key_is_refused_with_the_remedy() -> None:
    done = command("serve", "--host", "0.0.0.0", "--port", str(free_port()))

    assert done.returncode == 2
    assert "GATEWAY_API_KEY" in done.stderr and "Traceback" not in done.stderr


def test_an_engine_that_cannot_start_ends_the_gateway_with_the_reason(tmp_path: Path) -> None:
    shipped = (SHIPPED / "nano-qwen3.yaml").read_text().replace("268435456", "4096")
    (tmp_path / "tiny.yaml").write_text(shipped.replace("name: nano-qwen3\n", "name: tiny\n", 1))

    done = command(
        "serve", "--profile=tiny", "--port", str(free_port()), GATEWAY_PROFILES_DIR=str(tmp_path)
    )

    assert done.returncode == 1, done.stderr
    assert "the engine of nano-qwen3 (profile tiny) did not start" in done.stderr
    assert "No available memory for the cache blocks" in done.stderr


def test_mistakes_at_start_are_one_sentence() -> None:
    unknown = command("serve", "--profile", "nobody")
    typo = command("serve", GATEWAY_PROT="1")
    taken = free_port()
    with psutil.Popen(
        [sys.executable, "-m", "http.server", str(taken), "--bind", "127.0.0.1"]
    ) as squatter:
        wait_for(lambda: squatter.net_connections(), PATIENCE_S, "port taken")
        clash = command("serve", "--profile", "nano-qwen3", "--port", str(taken))
        squatter.kill()

    assert "nobody" in unknown.stderr and "demo" in unknown.stderr
    assert "GATEWAY_PROT" in typo.stderr
    assert str(taken) in clash.stderr
    assert {unknown.returncode, typo.returncode, clash.returncode} == {2}
    assert not any("Traceback" in done.stderr for done in (unknown, typo, clash))


def test_what_an_engine_gave_up_when_it_was_told_to_end_is_no_answer(own: Gateway) -> None:
    """As at the limit of a switch's drain: it says of all that runs that it is finished."""
    path = "/v1/completions"
    streams = [Caller(own, each, max_tokens=ENDLESS) for each in ("/generate", path)]
    plain: list[httpx.Response] = []

    def ask(url: str) -> None:
        body = {"prompt": "Go", "max_tokens": ENDLESS}
        plain.append(httpx.post(url, json=body, timeout=PATIENCE_S))

    waiting = [threading.Thread(target=ask, args=(own.url + each,)) for each in ("/generate", path)]
    for thread in waiting:
        thread.start()
    wait_for(lambda: own.metric("vllm:num_requests_running", NANO) == 4, PATIENCE_S, "four running")

    own.engine_process().send_signal(signal.SIGTERM)
    for each in (*streams, *waiting):
        each.join(PATIENCE_S)
        assert not each.is_alive(), "a request hangs on the engine that ended"

    assert [each.status_code for each in plain] == [503, 503]
    assert all(int(each.headers["retry-after"]) >= 1 for each in plain)
    assert "generate.failed" in streams[0].text and "generate.completed" not in streams[0].text
    assert '"error"' in streams[1].text

    def counted() -> list[tuple[str, str]]:
        return re.findall(
            rf'^gateway_requests_total{{(.*route="{path}".*)}} (\S+)$', own.metrics(), re.MULTILINE
        )

    wait_for(lambda: [count for _, count in counted()] == ["2.0"], PATIENCE_S, "both counted")
    assert 'outcome="server_error"' in counted()[0][0]
