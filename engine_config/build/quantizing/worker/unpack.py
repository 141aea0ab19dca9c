"""Weights of a quantised checkpoint as ordinary matrices, from the bytes on disk.

Written from the formats, not with the tools that wrote them: so a mistake in packing is seen as
bad quality instead of being undone by the same mistake.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

BITS, PER_WORD = 4, 8
# AWQ interleaves the eight values of a 32-bit word (AutoAWQ, awq/utils/packing_utils.py).
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
GPTQ_ZERO = 8  # symmetric: 4-bit values stand for -8 to 7

Tensors = dict[str, torch.Tensor]


def read(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the checkpoint by its name."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                yield name, file.get_tensor(name)


def unpack(folder: Path, target: str) -> tuple[Tensors, list[str]]:
    """The state dict that a quantised checkpoint stands for, and which layers are quantised."""
    tensors = dict(read(folder))
    make = {"gptq-int4": gptq, "awq-int4": awq, "int8": int8, "int4": packed}[target]
    marks = {"gptq-int4": "qweight", "awq-int4": "qweight", "int8": "weight_scale"}
    mark = "." + marks.get(target, "weight_packed")
    layers = sorted(name.removesuffix(mark) for name in tensors if name.endswith(mark))
    weights = {f"{layer}.weight": make(_parts(tensors, layer)) for layer in layers}
    inside = tuple(f"{layer}." for layer in layers)
    # A bias lies beside the packed weight under the layer's name and stays what it is.
    plain = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith(inside) or name.endswith(".bias")
    }
    return plain | weights, layers


def gptq(part: Tensors) -> torch.Tensor:
    """Packed along the inputs: qweight (in / 8, out), scales (groups, out)."""
    words, scales = part["qweight"], part["scales"]
    values = _nibbles(words).permute(0, 2, 1).reshape(-1, words.shape[1])
    group = values.shape[0] // scales.shape[0]
    return ((values - GPTQ_ZERO) * scales.float().repeat_interleave(group, 0)).t().contiguous()


def awq(part: Tensors) -> torch.Tensor:
    """Packed along the outputs and interleaved: qweight (in, out / 8), qzeros (groups, out / 8)."""
    values, zeros = (
        _nibbles(part[name])[..., AWQ_ORDER].flatten(1) for name in ("qweight", "qzeros")
    )
    group = values.shape[0] // zeros.shape[0]
    scales = part["scales"].float().repeat_interleave(group, 0)
    return ((values - zeros.repeat_interleave(group, 0)) * scales).t().contiguous()


def packed(part: Tensors) -> torch.Tensor:
    """compressed-tensors `pack-quantized`: weight_packed (out, in / 8), weight_scale (out, groups)."""
    rows, columns = (int(size) for size in part["weight_shape"])
    values = _nibbles(part["weight_packed"]).flatten(1)[:rows, :columns] - GPTQ_ZERO
    scales = part["weight_scale"].float()
    return values * scales.repeat_interleave(columns // scales.shape[1], 1)


def int8(part: Tensors) -> torch.Tensor:
    """One scale for each output: weight (out, in), weight_scale (out, 1)."""
    return part["weight"].float() * part["weight_scale"].float()


def _nibbles(words: torch.Tensor) -> torch.Tensor:
    """The eight 4-bit values of each 32-bit word as a new last dimension, lowest bits first."""
    shifts = torch.arange(0, BITS * PER_WORD, BITS, dtype=torch.int32)
    return (words.unsqueeze(-1) >> shifts) & 0xF


def _parts(tensors: Tensors, layer: str) -> Tensors:
    prefix = f"{layer}."
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
