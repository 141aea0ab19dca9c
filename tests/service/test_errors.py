"""Bad input gets a clear error in the shape of its API, and the server stays well."""

import contextlib
import json
import socket
from typing import Any

import httpx
import pytest
from starlette.routing import BaseRoute

from gateway.routes.openai import FORWARDED, MODELS
from tests.service.server import DEMO, Gateway

HI = [{"role": "user", "content": "Hi"}]
CHAT = "/v1/chat/completions"
IMAGE = {"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}

# Path, body, status, the field to blame, and what the message must say.
Refusal = tuple[str, dict[str, Any], int, str | None, str]
REFUSED: list[Refusal] = [
    (CHAT, {"messages": HI, "model": "nobody"}, 404, "model", "nobody"),
    (CHAT, {"messages": HI, "n": 5000}, 400, "n", "16"),
    (CHAT, {"messages": HI, "max_tokens": 10**9}, 400, "max_tokens", "131072"),
    (
        CHAT,
        {"messages": HI, "max_completion_tokens": 10**9},
        400,
        "max_completion_tokens",
        "131072",
    ),
    (CHAT, {"messages": HI, "logprobs": True, "top_logprobs": 99}, 400, "top_logprobs", "20"),
    (CHAT, {"messages": HI, "stop": ["x"] * 99}, 400, "stop", "16"),
    (CHAT, {"messages": HI * 3000}, 400, "messages", "2048"),
    (CHAT, {"messages": "Hi"}, 400, "messages", "list"),
    (CHAT, {"messages": HI, "temperature": "hot"}, 400, "temperature", "hot"),
    (CHAT, {"messages": HI, "temperature": -1}, 400, None, "-1"),
    (CHAT, {}, 400, "messages", "required"),
    (CHAT, {"messages": [{"role": "user", "content": [IMAGE]}]}, 400, "messages", "text only"),
    (CHAT, {"messages": HI, "chat_template": "{{ x }}"}, 400, "chat_template", "operator"),
    (
        CHAT,
        {"messages": HI, "chat_template_kwargs": {"tokenize": True}},
        *(400, "chat_template_kwargs", "tokenize"),
    ),
    (CHAT, {"messages": [{"role": "user", "content": "a " * 9000}]}, 400, None, "8192"),
    ("/v1/completions", {"prompt": ["a"] * 99}, 400, "prompt", "64"),
    ("/v1/completions", {"prompt": "a", "prompt_embeds": "eA=="}, 400, "prompt_embeds", "text"),
    ("/v1/completions", {"prompt": "a", "max_tokens": "many"}, 400, "max_tokens", "many"),
    ("/v1/completions", {"prompt": "a", "use_beam_search": True}, 400, "use_beam_search", "engine"),
    (
        "/v1/responses",
        {"input": "a", "max_output_tokens": 10**9},
        400,
        "max_output_tokens",
        "131072",
    ),
    (
        "/v1/responses",
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        *(400, "input", "text only"),
    ),
    ("/generate", {"prompt": "a", "max_tokenz": 3}, 400, "max_tokenz", "unknown field"),
    ("/generate", {"prompt": "a", "n": 5000}, 400, "n", "16"),
    ("/generate", {"prompt": "a", "temperature": 9}, 400, "temperature", "9"),
    ("/generate", {"prompt": ""}, 400, None, "empty"),
    ("/generate", {}, 400, None, "exactly one"),
    ("/generate", {"prompt": "a", "messages": HI}, 400, None, "exactly one"),
    (
        "/generate",
        {"messages": [{"role": "user", "content": [IMAGE]}]},
        400,
        "messages",
        "text only",
    ),
    ("/thinking", {"question": "a", "thinking_depth": 9}, 400, "thinking_depth", "9"),
    ("/thinking", {"question": "a", "thinking_depth": "deep"}, 400, "thinking_depth", "medium"),
    ("/thinking", {"question": "a", "samples": 99}, 400, "samples", "16"),
    ("/batch_generate", {"prompts": ["a"] * 99}, 400, "requests", "64"),
    ("/batch_generate", {"prompts": []}, 400, "prompts", "at least 1"),
    ("/batch_generate", {"prompts": ["a"], "max_tokenz": 1}, 400, "max_tokenz", "unknown field"),
]


def told(response: httpx.Response) -> dict[str, Any]:
    """message, param and request id, whatever the shape; checks the shape on the way."""
    body: dict[str, Any] = response.json()
    if response.request.url.path.startswith("/v1/"):
        assert response.headers["content-type"] == "application/json"
        return {"message": body["error"]["message"], **body["error"]}
    assert response.headers["content-type"] == "application/problem+json"
    assert body["status"] == response.status_code
    assert set(body) >= {"type", "title", "instance", "code"}
    return {"message": body["detail"], **body}


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: f"{case[0]}-{case[3] or case[4]}")
def test_a_refusal_names_field_limit_and_value(http: httpx.Client, case: Refusal) -> None:
    path, body, status, param, says = case

    response = http.post(path, json=body)

    assert response.status_code == status, response.text
    error = told(response)
    assert says in error["message"]
    assert param is None or error["param"] == param
    assert error["request_id"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text


@pytest.mark.parametrize(
    "path", [CHAT, "/v1/responses", "/generate", "/thinking", "/batch_generate"]
)
@pytest.mark.parametrize("body", [b"{", b"", b"[1]", b"null", b'"x"', b"\xff\xfe", b"[" * 10_000])
def test_what_is_no_json_object_is_refused(http: httpx.Client, path: str, body: bytes) -> None:
    response = http.post(path, content=body, headers={"content-type": "application/json"})

    assert response.status_code == 400, response.text
    assert told(response)["message"]


def test_a_deeply_nested_body_is_refused(http: httpx.Client) -> None:
    nested: Any = "x"
    for _ in range(200):
        nested = [nested]

    response = http.post(CHAT, json={"messages": HI, "metadata": nested})

    assert response.status_code == 400 and "64" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "path", ["/nowhere", "/v1/nowhere", "/v1/files", "/V1/models", "/v1//models"]
)
def test_an_unknown_path_is_a_404_in_its_apis_shape(http: httpx.Client, path: str) -> None:
    response = http.get(path)

    assert response.status_code == 404
    assert told(response)["request_id"]


@pytest.mark.parametrize("path", [CHAT, "/generate", "/v1/messages/count_tokens"])
def test_a_wrong_method_is_a_405_that_names_the_right_one(http: httpx.Client, path: str) -> None:
    response = http.get(path)

    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert "POST" in response.text


@pytest.mark.parametrize("path", [CHAT, "/generate"])
def test_a_large_body_is_cut_off_while_it_comes(gateway: Gateway, path: str) -> None:
    """No content-length: the size is counted on the stream, and the rest is not waited for."""
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    block = b"10000\r\n" + b"x" * 65536 + b"\r\n"

    with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as sock:
        sock.sendall(head.encode() + b"transfer-encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError):  # it may be refused before the last block
            for _ in range(65):  # 4 MiB and 64 KiB; the body is never ended
                sock.sendall(block)
        answer = b""
        while b"4194304" not in answer and (piece := sock.recv(65536)):
            answer += piece

    assert answer.startswith(b"HTTP/1.1 413")


def test_a_callers_request_id_is_kept_and_a_dangerous_one_is_not(http: httpx.Client) -> None:
    body = {"prompt": "a", "max_tokens": 1}
    kept = http.post("/generate", json=body, headers={"x-request-id": "order-66"})
    engine = http.post("/v1/completions", json=body, headers={"x-request-id": "order-66"})
    replaced = http.post("/generate", json=body, headers={"x-request-id": "a b<script>"})

    assert kept.headers["x-request-id"] == "order-66"
    assert kept.json()["id"] == "gen-order-66" and engine.json()["id"] == "cmpl-order-66"
    assert replaced.headers["x-request-id"].isalnum()


def test_nothing_else_that_vllm_mounts_exists(
    http: httpx.Client, vllm_routes: list[BaseRoute]
) -> None:
    """Walks every route of vLLM's own app; only the allowlist answers."""
    ours = {*FORWARDED, MODELS, "/health", "/docs", "/openapi.json"}
    walked = 0
    for route in vllm_routes:
        path = getattr(route, "path", "").replace("{", "").replace("}", "")
        if not path or path in ours:
            continue
        for method in getattr(route, "methods", None) or {"GET"}:
            response = http.request(method, path, json={} if method == "POST" else None)
            assert response.status_code == 404, f"{method} {path}: {response.status_code}"
            walked += 1
    assert walked > 15


def test_the_server_is_well_after_all_that(http: httpx.Client) -> None:
    good = http.post(CHAT, json={"messages": HI, "max_tokens": 4, "model": DEMO})

    assert good.status_code == 200
    assert http.get("/health/ready").status_code == 200
    assert json.loads(good.text)["choices"]
