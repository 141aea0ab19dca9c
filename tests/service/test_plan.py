"""A plan of the KV cache is what the engine then has, to the block."""

import json
import re
from pathlib import Path

import pytest

from engine_config.build.registry import model_dir
from engine_config.profile import BuiltModel, load
from gateway.engines.vllm_plan import plan
from tests.service.server import Gateway
from tests.service.test_cli import gateway_command


def place(profile: str) -> Path:
    model = load(profile).model
    assert isinstance(model, BuiltModel)
    return model_dir(model.name)


@pytest.mark.parametrize("profile", ["demo", "nano-qwen3"])
def test_the_engine_has_the_blocks_that_were_planned(gateway: Gateway, profile: str) -> None:
    made = plan(load(profile), place(profile))

    rows = re.findall(r"^vllm:cache_config_info{(.*)} ", gateway.metrics(), re.MULTILINE)

    caches = [dict(re.findall(r'(\w+)="(.*?)"', row)) for row in rows]
    # The metric does not say whose it is; the size that was set does.
    size = str(load(profile).settings()["kv_cache_memory_bytes"])
    (told,) = [cache for cache in caches if cache["kv_cache_memory_bytes"] == size]
    assert int(told["num_gpu_blocks"]) == made.blocks
    assert int(told["kv_cache_size_tokens"]) == made.kv_tokens
    assert int(told["block_size"]) == made.block_size
    whole = made.concurrent[made.max_model_len]
    assert float(told["kv_cache_max_concurrency"]) == pytest.approx(whole, abs=0.005)


def test_the_command_says_what_fits_and_what_does_not() -> None:
    demo = gateway_command("profiles", "plan", "demo", "--json")
    small = gateway_command(
        "profiles", "plan", "qwen3-4b-thinking-bf16", "--gpu-memory", "16", "--context", "40960"
    )
    absent = gateway_command("profiles", "plan", "qwen3-4b-thinking-int8")

    told = json.loads(demo.stdout)
    assert (told["fits"], told["blocks"], told["device"]) == (True, 1456, "cpu")
    shown = " ".join(small.stdout.split())
    assert "It does not fit: 2.00 GB lack for one request of 40,960 tokens" in shown
    assert "max_model_len of 27,408, a card of 24 GB, profile qwen3-4b-thinking-awq-int4" in shown
    assert absent.returncode == 2 and "--gpu-memory 24" in absent.stderr
