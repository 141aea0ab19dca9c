"""A model folder that is to be quantised: what it holds, whether it can be, and in what groups."""

import json
import re
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine_config.build.cache import ModelCacheError

# auto-round makes the two formats of its own, llm-compressor those of compressed-tensors.
TARGETS = ("gptq-int4", "awq-int4", "int8", "int4")
GROUP_SIZES = (128, 64, 32)
# Of outputs, in vLLM's CPU kernel of 4-bit weights: kernels/linear/mixed_precision/cpu.py
KERNEL_MULTIPLE = 32
# Never quantised: two-dimensional weights that are looked up, or that make the logits.
NOT_LINEAR = re.compile(r"embed|lm_head|norm|(^|\.)wte\.|(^|\.)wpe\.")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
# What a tokenizer and its users read. Copied as it is.
COPIED = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.tiktoken",
    "chat_template*",
    "generation_config.json",
    "LICENSE*",
)


class QuantizeError(ModelCacheError):
    """A checkpoint cannot be quantised: the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Source:
    """A full-precision model on this machine, and where it came from."""

    name: str  # as the user gave it
    folder: Path
    revision: str = ""  # of the hub, 40 hexadecimal digits

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))


def check(source: Source) -> None:
    """See that it is a whole dense text model that nobody quantised before.

    Raises:
        QuantizeError: it is not.
    """
    folder = source.folder
    if not (folder / "config.json").is_file():
        raise QuantizeError(f"{folder} is not a model folder (no config.json)")
    if not [*folder.glob("*.safetensors")]:
        raise QuantizeError(f"{folder} has no *.safetensors; other formats are not read")
    if not any(folder.glob("tokenizer*")) and not any(folder.glob("vocab.*")):
        raise QuantizeError(f"{folder} has no tokenizer, so nothing can be calibrated")
    config = _config(folder)
    if method := config.get("quantization_config"):
        raise QuantizeError(
            f"{source.name} is quantised already ({method.get('quant_method', 'somehow')}); "
            "start from the full-precision model"
        )
    architecture = next(iter(config.get("architectures") or ()), "")
    if not architecture.endswith("ForCausalLM"):
        raise QuantizeError(
            f"{source.name} is {architecture or 'of no named architecture'}; "
            "text models (...ForCausalLM) can be quantised"
        )
    if any(config.get(key) for key in EXPERTS):
        raise QuantizeError(f"{architecture} is a mixture of experts; dense models only, so far")


def linear_shapes(folder: Path) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of every layer that is quantised, from the headers of the weight files.

    Raises:
        QuantizeError: a file is cut or no safetensors file, or there is no such layer.
    """
    shapes = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, entry in _header(path).items():
            shape = entry.get("shape", ())
            if name.endswith(".weight") and len(shape) == 2 and not NOT_LINEAR.search(name):
                shapes[name.removesuffix(".weight")] = (shape[0], shape[1])
    if not shapes:
        raise QuantizeError(f"{folder} has no linear layer to quantise")
    return shapes


def choose_group_size(
    shapes: dict[str, tuple[int, int]], target: str, wanted: int | None = None
) -> int | None:
    """Inputs that share a scale: the largest usual size that divides every layer. None for int8.

    Raises:
        QuantizeError: no size fits, or the wanted one does not.
    """
    if target == "int8":
        if wanted is not None:
            raise QuantizeError("int8 has one scale per output channel; --group-size is for int4")
        return None
    if wanted is not None and wanted not in GROUP_SIZES:
        raise QuantizeError(f"--group-size {wanted}: it is one of {_or(GROUP_SIZES)}")
    for layer, (outputs, _) in shapes.items():
        if outputs % KERNEL_MULTIPLE:
            raise QuantizeError(
                f"{layer} has {outputs} outputs, and 4-bit kernels want a multiple of "
                f"{KERNEL_MULTIPLE}; --to int8 has no such limit"
            )
    sizes = GROUP_SIZES if wanted is None else (wanted,)
    for size in sizes:
        if all(inputs % size == 0 for _, inputs in shapes.values()):
            return size
    layer, inputs = next(
        (layer, inputs) for layer, (_, inputs) in shapes.items() if inputs % sizes[-1]
    )
    raise QuantizeError(
        f"{layer} has {inputs} inputs, which no group of {_or(sizes)} divides; "
        "--to int8 needs no groups"
    )


def copy_companions(folder: Path, target: Path) -> None:
    """Copy tokenizer, chat template, generation config and licence unchanged."""
    for pattern in COPIED:
        for path in folder.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, target / path.name)
    if (templates := folder / "additional_chat_templates").is_dir():
        shutil.copytree(templates, target / templates.name)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise QuantizeError(f"{folder / 'config.json'} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise QuantizeError(f"{folder / 'config.json'} is not a JSON object")
    return config


def _header(path: Path) -> dict[str, Any]:
    # Eight bytes of length, then that much JSON. Format: huggingface/safetensors, README.md
    with path.open("rb") as file:
        try:
            (length,) = struct.unpack("<Q", file.read(8))
            raw = file.read(length)
            header: dict[str, Any] = json.loads(raw if len(raw) == length else b"")
        except (struct.error, ValueError, OverflowError, MemoryError) as error:
            raise QuantizeError(f"{path} is cut off or no safetensors file") from error
    return header


def _or(sizes: tuple[int, ...]) -> str:
    *first, last = map(str, sizes)
    return f"{', '.join(first)} or {last}" if first else last
