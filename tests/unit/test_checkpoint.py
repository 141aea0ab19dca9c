"""Which folders can be quantised, and in what groups."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from engine_config.build.checkpoint import (
    TARGETS,
    QuantizeError,
    Source,
    check,
    choose_group_size,
    copy_companions,
    linear_shapes,
)
from engine_config.build.quantize import Options

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}


def weights(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file of which only the header is true."""
    entries = {
        name: {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]}
        for name, shape in shapes.items()
    }
    header = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    shapes = {
        "model.embed_tokens.weight": (1000, 96),
        "model.layers.0.input_layernorm.weight": (96,),
        "model.layers.0.mlp.up_proj.weight": (256, 96),
        "model.layers.0.mlp.down_proj.weight": (96, 256),
        "lm_head.weight": (1000, 96),
    }
    weights(folder / "model.safetensors", {name: shapes[name] for name in shapes})
    return folder


def change(folder: Path, **values: Any) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | values))


def test_only_the_linear_layers_between_embedding_and_head_are_quantised(folder: Path) -> None:
    assert linear_shapes(folder) == {
        "model.layers.0.mlp.up_proj": (256, 96),
        "model.layers.0.mlp.down_proj": (96, 256),
    }


def test_a_whole_model_passes(folder: Path) -> None:
    check(Source("mine", folder))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match=r"not a model folder \(no config\.json\)"):
        check(Source("mine", tmp_path))


@pytest.mark.parametrize(
    ("missing", "said"),
    [("model.safetensors", r"no \*\.safetensors"), ("tokenizer.json", "no tokenizer")],
)
def test_half_a_model_is_refused(folder: Path, missing: str, said: str) -> None:
    (folder / missing).unlink()

    with pytest.raises(QuantizeError, match=said):
        check(Source("mine", folder))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"quantization_config": {"quant_method": "awq"}}, r"quantised already \(awq\)"),
        ({"architectures": ["WhisperForConditionalGeneration"]}, "Whisper.*text models"),
        ({"architectures": None}, "of no named architecture"),
        ({"num_experts": 8}, "mixture of experts"),
    ],
)
def test_what_cannot_be_quantised_is_named(folder: Path, values: dict[str, Any], said: str) -> None:
    change(folder, **values)

    with pytest.raises(QuantizeError, match=said):
        check(Source("mine", folder))


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_broken_config_is_a_sentence(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)

    with pytest.raises(QuantizeError, match=r"config\.json is not"):
        check(Source("mine", folder))


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, struct.pack("<Q", 99) + b"{}"])
def test_a_cut_weight_file_is_named(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)

    with pytest.raises(QuantizeError, match=r"model\.safetensors is cut off"):
        linear_shapes(folder)


@pytest.mark.parametrize(
    ("inputs", "size"),
    [((4096, 11008), 128), ((576, 1536), 64), ((64, 128), 64), ((96, 256), 32)],
)
def test_the_largest_group_that_divides_every_layer_is_chosen(
    inputs: tuple[int, ...], size: int
) -> None:
    shapes = {f"layer{index}": (64, wide) for index, wide in enumerate(inputs)}

    assert choose_group_size(shapes, "gptq-int4") == size
    assert choose_group_size(shapes, "awq-int4", 32) == 32


def test_int8_has_no_groups() -> None:
    assert choose_group_size({"layer": (7, 13)}, "int8") is None
    with pytest.raises(QuantizeError, match="--group-size is for int4"):
        choose_group_size({"layer": (64, 64)}, "int8", 32)


@pytest.mark.parametrize(
    ("shape", "wanted", "said"),
    [
        ((64, 80), None, "layer has 80 inputs, which no group of 128, 64 or 32 divides"),
        ((64, 576), 128, "layer has 576 inputs, which no group of 128 divides"),
        ((70, 64), None, "layer has 70 outputs.*multiple of 32.*--to int8"),
        ((64, 64), 50, "--group-size 50: it is one of 128, 64 or 32"),
    ],
)
def test_a_layer_that_fits_no_group_is_named(
    shape: tuple[int, int], wanted: int | None, said: str
) -> None:
    with pytest.raises(QuantizeError, match=said):
        choose_group_size({"layer": shape}, "int4", wanted)


def test_tokenizer_template_and_generation_config_are_copied_unchanged(
    folder: Path, tmp_path: Path
) -> None:
    for name in ("chat_template.jinja", "generation_config.json", "tokenizer_config.json"):
        (folder / name).write_text(name)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("tools")
    target = tmp_path / "out"
    target.mkdir()

    copy_companions(folder, target)

    copied = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert copied == {
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
        "additional_chat_templates/tools.jinja",
    }
    assert (target / "chat_template.jinja").read_text() == "chat_template.jinja"


@pytest.mark.parametrize("target", TARGETS)
def test_the_defaults_are_good_for_every_format(target: str) -> None:
    Options(target).check()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Options("fp4"), "--to fp4: it is one of gptq-int4, awq-int4, int8, int4"),
        (Options("int8", samples=0), "--samples 0: it is from 1 to 4096"),
        (Options("int8", seq_len=8), "--seq-len 8"),
        (Options("awq-int4", iterations=-1), "--iterations -1"),
    ],
)
def test_an_option_out_of_range_is_named_with_its_limits(options: Options, said: str) -> None:
    with pytest.raises(QuantizeError, match=said):
        options.check()
