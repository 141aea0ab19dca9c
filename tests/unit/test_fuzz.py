"""Schemathesis over the native routes: whatever their description allows or forbids, no answer is a 5xx.

A real listener over a scripted engine, so hundreds of bodies per route cost seconds. The real engine, and
vLLM's own description of `/v1/*`, have `tests/service/test_fuzz.py`.
"""

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest
from schemathesis import GenerationMode

from gateway.serve import bind, listener
from tests.fuzz import MODES, fuzz, operations
from tests.scripted import PATIENCE_S, ScriptedEngine, make_gateway

EXAMPLES = 60
NATIVE = {
    operation.label: operation
    for operation in operations(make_gateway(ScriptedEngine()).app.openapi())
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    gateway = make_gateway(ScriptedEngine("scripted"), header_timeout_s=PATIENCE_S)
    sock = bind("127.0.0.1", 0)
    server = listener(gateway.app, gateway.settings)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[sock])), daemon=True)
    thread.start()
    deadline = time.monotonic() + PATIENCE_S
    while not server.started:
        assert thread.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    server.should_exit = True
    thread.join(PATIENCE_S)


# Where there is nothing to spoil there is only a good request.
ASKED = [
    (label, mode)
    for label, operation in NATIVE.items()
    for mode in MODES
    if len(operation.body) or mode is GenerationMode.POSITIVE
]


@pytest.mark.parametrize(("label", "mode"), ASKED)
def test_no_body_makes_a_native_route_fail(url: str, label: str, mode: GenerationMode) -> None:
    told = fuzz(NATIVE[label], mode, url, EXAMPLES)

    assert told


def test_the_description_has_every_native_route() -> None:
    assert {"POST /generate", "POST /thinking", "POST /batch_generate"} <= set(NATIVE)
