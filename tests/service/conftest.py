"""One gateway with both models for the whole session; starting an engine takes 20 s."""

from collections.abc import Iterator

import anthropic
import httpx
import openai
import pytest
from starlette.routing import BaseRoute
from vllm.entrypoints.launchers.app import build_app

from engine_config import profile
from gateway.engines.vllm_start import parse_args
from tests.service.server import Gateway


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    log = tmp_path_factory.mktemp("gateway") / "serve.log"
    with Gateway(log, "demo", "nano-qwen3") as running:
        yield running


@pytest.fixture(scope="session")
def http(gateway: Gateway) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway.url, timeout=120) as client:
        yield client


@pytest.fixture(scope="session")
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def claude(gateway: Gateway) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=gateway.url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def vllm_routes() -> list[BaseRoute]:
    """Every route that vLLM's own app has for a generating model."""
    args = parse_args(profile.load("demo"), "model")
    return list(build_app(args, ("generate",), None).routes)
