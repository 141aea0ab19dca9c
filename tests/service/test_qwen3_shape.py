"""Qwen3-4B's exact shape, from the profile that serves it on a GPU, on this CPU: all but the weights.

It takes a minute and 7 GB. What it says is noise; that it boots, thinks and answers is not.
"""

from collections.abc import Iterator

import httpx
import pytest

from engine_config.build.registry import model_dir
from engine_config.profile import load
from gateway.engines.vllm_plan import footprint_bytes, plan
from tests.service.server import START_S, Gateway

PROFILE = "qwen3-4b-shape-gptq-int4"
MODEL = "qwen3-4b-shape"
# Enough for a thought of a few tokens, the phrase that ends it, and an answer: at 2 to 4 tokens a second.
TOKENS = 72

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shape(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with Gateway(tmp_path_factory.mktemp("shape") / "serve.log", PROFILE) as running:
        yield running


def test_only_what_a_cpu_without_weights_needs_differs_from_the_real_profile() -> None:
    real, cpu, ours = load("qwen3-4b-thinking-gptq-int4"), load("nano-qwen3"), load(PROFILE)

    own = {"load_format", "max_model_len", "kv_cache_memory_bytes"}
    machine = {key for key in cpu.vllm if key not in real.vllm or cpu.vllm[key] != real.vllm[key]}
    differing = {key for key in ours.vllm if ours.vllm[key] != real.vllm.get(key)}
    assert differing <= own | machine, differing
    assert ours.format == real.format and ours.shape == real.shape


def test_it_boots_thinks_and_answers(shape: Gateway) -> None:
    body = {"question": "Why?", "max_tokens": TOKENS, "thinking_depth": 1, "seed": 1}

    answer = httpx.post(f"{shape.url}/thinking", json=body, timeout=START_S)

    told = answer.json()
    assert answer.status_code == 200, told
    assert told["model"] == MODEL and told["answer"].strip()
    assert told["reasoning"]["tokens"] > 0
    assert told["usage"]["completion_tokens"] <= TOKENS


def test_its_cache_and_memory_are_as_planned(shape: Gateway) -> None:
    made = plan(load(PROFILE), model_dir(MODEL))

    engine = shape.engine_process().memory_full_info().pss

    text = shape.metrics()
    assert f'num_gpu_blocks="{made.blocks}"' in text
    assert f'kv_cache_size_tokens="{made.kv_tokens}"' in text
    assert engine < footprint_bytes(load(PROFILE), model_dir(MODEL)) < 1.5 * engine
