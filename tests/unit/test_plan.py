"""What fits: sizes of weights, and the arithmetic of a plan on made-up cards."""

import importlib
import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from engine_config import shape
from engine_config.profile import GB, Profile, ProfileError, available, load

# Qwen3-4B: 36 layers, keys and values, 8 heads of 128, two bytes each.
PER_TOKEN = 36 * 2 * 8 * 128 * 2
THINKING = [name for name in available() if name.startswith("qwen3-4b-thinking")]
ON_CARDS = [(name, card) for name in THINKING for card in load(name).cards]
CONFIG = {
    "model_type": "llama",
    "dtype": "bfloat16",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
}


@pytest.fixture(scope="module")
def planner() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's own, at its import
        return importlib.import_module("gateway.engines.vllm_plan")


def value(given: object) -> dict[str, Any]:
    return {"value": given, "reason": "A reason why.", "source": "a test"}


def qwen(**settings: Any) -> Profile:
    content = {
        "name": "mine",
        "title": "A profile of mine.",
        "served_as": "my-model",
        "model": {"kind": "folder", "path": "/nowhere"},
        "format": "bf16",
        "shape": "qwen3-4b-thinking",
        "vllm": {key: value(given) for key, given in settings.items()},
    }
    return Profile.model_validate(content)


def folder(path: Path, **changes: Any) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIG | changes))
    return path


@pytest.mark.parametrize(
    ("name", "format_", "expected"),
    [
        # 4,022,468,096 parameters, as the hub counts them, of two bytes.
        ("qwen3-4b-thinking", "bf16", 8_044_936_192),
        ("qwen3-0.6b", "bf16", 1_192_099_840),
        # "vram_weights_gb = 0.763" in public scripts that deploy Qwen3-0.6B-GPTQ-Int8.
        ("qwen3-0.6b", "gptq-int8", 763_166_720),
    ],
)
def test_weights_are_computed_as_they_are_published(name: str, format_: str, expected: int) -> None:
    known = shape.read(shape.SHAPES / f"{name}.json")

    assert shape.weight_bytes(known, format_) == expected


def test_each_format_is_smaller_than_the_one_before() -> None:
    known = shape.read(shape.SHAPES / "qwen3-4b-thinking.json")
    order = ("bf16", "gptq-int8", "int8", "fp8", "gptq-int4", "awq-int4", "int4")

    sizes = [shape.weight_bytes(known, format_) for format_ in order]

    assert sizes == sorted(sizes, reverse=True) and set(order) == set(shape.LINEAR)
    assert shape.weight_bytes(known, "int4", 64) > shape.weight_bytes(known, "int4", 128)


def test_a_shape_is_read_from_the_models_folder_and_weights_from_its_files(tmp_path: Path) -> None:
    place = folder(tmp_path / "model")
    (place / "a.safetensors").write_bytes(b"x" * 70)
    (place / "b.safetensors").write_bytes(b"x" * 30)

    found = shape.shape_of(qwen(), place)

    assert (found.head_dim, found.num_key_value_heads) == (16, 4)
    assert shape.weights_of(qwen(), place, found).bytes == 100
    assert shape.shape_of(qwen(), "nowhere").num_hidden_layers == 36


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layer_types": ["full_attention", "sliding_attention"]}, "only models whose every layer"),
        ({"vocab_size": "many"}, "not the shape of a model"),
        ({"hidden_size": None}, "not the shape of a model"),
    ],
)
def test_what_cannot_be_planned_is_told(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ProfileError, match=words):
        shape.shape_of(qwen(), folder(tmp_path / "model", **changes))


def test_a_profile_without_shape_or_with_an_unknown_format_is_told(tmp_path: Path) -> None:
    nameless = qwen().model_copy(update={"shape": None})
    odd = qwen().model_copy(update={"format": "int3"})

    with pytest.raises(ProfileError, match="names no `shape`"):
        shape.shape_of(nameless, "nowhere")
    with pytest.raises(ProfileError, match="format 'int3': its size is not known; known are bf16"):
        shape.weights_of(odd, "nowhere", shape.shape_of(odd, "nowhere"))


def test_the_cache_is_what_utilisation_leaves(planner: Any) -> None:
    made = planner.plan(qwen(gpu_memory_utilization=0.5, max_model_len=4096), "nowhere", 40 * GB)

    assert made.budget == 20 * GB and made.total == made.budget
    assert made.kv_cache == 20 * GB - made.weights - made.activations - made.process
    assert made.bytes_per_token == PER_TOKEN == 147_456
    assert made.blocks == made.kv_cache // (16 * PER_TOKEN)
    assert made.concurrent[4096] == pytest.approx(made.blocks / 256, abs=0.01)


@pytest.mark.parametrize(("name", "card"), ON_CARDS)
def test_every_card_of_the_thinking_model_holds_its_longest_request(
    planner: Any, name: str, card: int
) -> None:
    made = planner.plan(load(name), "nowhere", card * GB)

    assert made.fits and made.card == card, made
    assert made.concurrent[made.max_model_len] > 1.1  # a margin for what is only estimated


def test_the_reasons_of_the_thinking_model_say_what_the_plan_says(planner: Any) -> None:
    for card, low, high in ((16, 6, 15), (24, 18, 27), (40, 42, 51), (80, 101, 110)):
        bf16, int4 = (
            planner.plan(load(f"qwen3-4b-thinking-{format_}"), "nowhere", card * GB)
            for format_ in ("bf16", "int4")
        )
        reason = load("qwen3-4b-thinking-bf16").cards[card]["max_num_seqs"].reason

        assert (int(bf16.concurrent[4096]), int(int4.concurrent[4096])) == (low, high)
        assert f"holds {low} (bf16) to {high} (int4)" in reason.replace("  ", " ")


def test_what_does_not_fit_says_by_how_much_and_what_would(planner: Any) -> None:
    profile = load("qwen3-4b-thinking-bf16")
    others = [(load(name), "nowhere") for name in THINKING]

    made = planner.plan(profile, "nowhere", 16 * GB, context=40_960)
    remedies = planner.remedies(profile, "nowhere", made, others)

    assert not made.fits
    block = 16 * PER_TOKEN
    assert made.missing == 40_960 * PER_TOKEN + block - made.kv_cache
    assert remedies[:2] == [f"max_model_len of {made.longest:,}", "a card of 24 GB"]
    assert "profile qwen3-4b-thinking-int8" in remedies
    assert "profile qwen3-4b-thinking-bf16" not in remedies
    assert planner.plan(profile, "nowhere", 16 * GB, context=made.longest).fits


def test_weights_that_do_not_fit_leave_no_cache(planner: Any) -> None:
    made = planner.plan(load("qwen3-4b-thinking-bf16"), "nowhere", 8 * GB)

    assert (made.kv_cache, made.blocks, made.longest, made.fits) == (0, 0, 0, False)
    assert planner.remedies(load("qwen3-4b-thinking-bf16"), "nowhere", made, ())[0] == (
        "a card of 24 GB"
    )


def test_an_eight_bit_cache_holds_twice_as_much(planner: Any) -> None:
    full, half = (
        planner.plan(qwen(kv_cache_dtype=kind, max_model_len=4096), "nowhere", 24 * GB)
        for kind in ("auto", "fp8")
    )

    assert half.bytes_per_token * 2 == full.bytes_per_token
    assert half.blocks == pytest.approx(2 * full.blocks, abs=1)


def test_a_footprint_on_the_cpu_is_all_that_an_engine_takes(planner: Any) -> None:
    profile = load("qwen3-4b-shape-gptq-int4")

    made = planner.plan(profile, "nowhere")
    footprint = planner.footprint_bytes(profile, "nowhere")

    assert footprint == made.total
    # EngineCore took 6.37 GB and the gateway grew by 0.45 when this was measured.
    assert 6.4 * GB < footprint < 8 * GB


def test_a_footprint_on_a_gpu_is_what_vllm_may_use(
    planner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hardware = importlib.import_module("engine_config.hardware")
    machine = hardware.Hardware(8, 2**35, "AVX2", (hardware.Gpu("X", 24 * GB, (8, 9)),), False)
    monkeypatch.setattr(planner, "here", lambda: machine)

    assert planner.footprint_bytes(load("qwen3-4b-thinking-int8"), "nowhere") == 0.9 * 24 * GB
