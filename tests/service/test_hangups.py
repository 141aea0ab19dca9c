"""A caller that hangs up frees its KV blocks: before the first token, mid-stream, in a plain answer."""

import contextlib
import json
import socket
from typing import Any

import pytest

from tests.service.server import DEMO, NANO, PATIENCE_S, Gateway, wait_for

# A request that was not aborted would still run then: it has far more work.
FREED_S = 30
LONG = {"max_tokens": 6000, "ignore_eos": True, "temperature": 1}
ENDLESS = 30_000  # of the model of random weights, which is quick
LONG_PROMPT = "word " * 1500

# Where a route takes no `ignore_eos`, the model of random weights goes on: it never ends a text by itself.
STREAMS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Go"}], **LONG}),
    "completions": ("/v1/completions", {"prompt": "Go", **LONG}),
    "messages": (
        "/v1/messages",
        {"messages": [{"role": "user", "content": "Go"}], "max_tokens": ENDLESS, "model": NANO},
    ),
    "responses": ("/v1/responses", {"input": "Go", "max_output_tokens": ENDLESS, "model": NANO}),
    "generate": ("/generate", {"prompt": "Go", "max_tokens": ENDLESS, "model": NANO}),
    "thinking": ("/thinking", {"question": "Go", "max_tokens": ENDLESS, "model": NANO}),
    "batch": ("/batch_generate", {"prompts": ["Go"] * 4, "max_tokens": ENDLESS, "model": NANO}),
}


@contextlib.contextmanager
def call(gateway: Gateway, path: str, body: dict[str, Any], **headers: str) -> Any:
    """A raw request; the socket closes without a word at the end of the block."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    head += "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE_S) as sock:
        sock.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        yield sock


def busy(gateway: Gateway, model: str) -> bool:
    return gateway.metric("vllm:num_requests_running", model) > 0


@pytest.mark.parametrize("moment", ["plain", "mid-stream"])
@pytest.mark.parametrize("name", STREAMS)
def test_hanging_up_frees_the_engine(gateway: Gateway, name: str, moment: str) -> None:
    path, body = STREAMS[name]
    model = body.setdefault("model", DEMO)
    wait_for(lambda: gateway.idle(model), PATIENCE_S, "idle before")

    with call(gateway, path, {**body, "stream": moment == "mid-stream"}) as sock:
        wait_for(lambda: busy(gateway, model), PATIENCE_S, "running")
        if moment == "mid-stream" and name != "batch":
            assert sock.recv(4096).startswith(b"HTTP/1.1 200")

    wait_for(lambda: gateway.idle(model), FREED_S, "idle after the caller left")


def test_hanging_up_before_the_first_token_frees_the_engine(gateway: Gateway) -> None:
    """A long prompt in front of many: the caller leaves while it is prefilled or waits."""
    messages = [{"role": "user", "content": LONG_PROMPT}]
    body = {"messages": messages, "model": DEMO, "stream": True, **LONG}
    with contextlib.ExitStack() as calls:
        for number in range(4):
            messages[0]["content"] = f"{number} {LONG_PROMPT}"
            calls.enter_context(call(gateway, "/v1/chat/completions", body))
        wait_for(lambda: busy(gateway, DEMO), PATIENCE_S, "running")

    wait_for(lambda: gateway.idle(DEMO), 2 * FREED_S, "idle after the callers left")
