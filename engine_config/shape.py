"""The shape of a model, and how many bytes its weights are in a format. No vLLM, no torch."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from engine_config.inherit import ProfileError
from engine_config.profile import Profile

SHAPES = Path(__file__).parent / "shapes"
GROUP = 128  # weights that share a scale, where nothing says otherwise: what GPTQ's and AWQ's authors use
FULL_ATTENTION = "full_attention"
QK_NORM = {"qwen3"}  # model types with a norm on each head's query and key


class Shape(BaseModel):
    """The part of a Hugging Face config.json that decides about memory."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    model_type: str
    dtype: str = Field(default="bfloat16", alias="torch_dtype")
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int = 0
    max_position_embeddings: int
    tie_word_embeddings: bool = False
    layer_types: tuple[str, ...] = ()
    quantization_config: dict[str, Any] | None = None

    @property
    def embedding_parameters(self) -> int:
        """Embedding and, where it is not the same, output layer. No format here quantises them."""
        return self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)

    @property
    def norm_parameters(self) -> int:
        heads = 2 * self.head_dim if self.model_type in QK_NORM else 0
        return self.num_hidden_layers * (2 * self.hidden_size + heads) + self.hidden_size

    def matrices(self) -> Iterator[tuple[int, int]]:
        """Rows and columns of each linear layer of one block, as (output, input)."""
        wide, narrow = (
            heads * self.head_dim for heads in (self.num_attention_heads, self.num_key_value_heads)
        )
        yield wide, self.hidden_size
        yield narrow, self.hidden_size
        yield narrow, self.hidden_size
        yield self.hidden_size, wide
        yield self.intermediate_size, self.hidden_size
        yield self.intermediate_size, self.hidden_size
        yield self.hidden_size, self.intermediate_size


@dataclass(frozen=True, slots=True)
class Weights:
    """How large a model's weights are, and how that is known."""

    bytes: int
    source: str


def shape_of(profile: Profile, location: Path | str) -> Shape:
    """The shape of a profile's model: from its folder, else from the shape the profile names.

    Raises:
        ProfileError: neither is there, or it is a model whose memory is not computed like this.
    """
    if isinstance(location, Path) and (location / "config.json").is_file():
        return read(location / "config.json")
    return shipped(profile)


def shipped(profile: Profile) -> Shape:
    """The shape that the profile names.

    Raises:
        ProfileError: it names none, or one that is not there.
    """
    if profile.shape is None:
        raise ProfileError(
            f"profile {profile.name}: the model is not in a folder here, and the profile names no "
            "`shape`, so there is nothing to compute with"
        )
    return read(SHAPES / f"{profile.shape}.json")


def read(path: Path) -> Shape:
    """A shape from a config.json or a file of engine_config/shapes.

    Raises:
        ProfileError: no such file, a field is missing, or not every layer attends to all tokens.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        given = {"torch_dtype": raw.get("dtype", "bfloat16"), **raw}
        heads = raw["num_attention_heads"]
        given.setdefault("num_key_value_heads", heads)
        given["head_dim"] = raw.get("head_dim") or raw["hidden_size"] // heads
        shape = Shape.model_validate(given)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProfileError(f"{path}: not the shape of a model: {error}") from error
    if any(kind != FULL_ATTENTION for kind in shape.layer_types):
        raise ProfileError(f"{path}: only models whose every layer is {FULL_ATTENTION} are planned")
    return shape


def weights_of(profile: Profile, location: Path | str, shape: Shape) -> Weights:
    """The files' size where the model is in a folder with weights, else computed."""
    files = sorted(location.glob("*.safetensors")) if isinstance(location, Path) else []
    if files:
        total = sum(path.stat().st_size for path in files)
        return Weights(total, f"the files in {location}")
    format_ = profile.format or "bf16"
    group = int((shape.quantization_config or {}).get("group_size") or GROUP)
    return Weights(weight_bytes(shape, format_, group), f"computed from the shape, as {format_}")


def weight_bytes(shape: Shape, format_: str, group: int = GROUP) -> int:
    """Bytes of all weights on the device. Embedding, output layer and norms stay 16-bit in all formats.

    Raises:
        ProfileError: a format whose storage is not known here.
    """
    if format_ not in LINEAR:
        raise ProfileError(
            f"format '{format_}': its size is not known; known are {', '.join(LINEAR)}"
        )
    size = LINEAR[format_]
    block = sum(size(rows, columns, group) for rows, columns in shape.matrices())
    rest = 2 * (shape.embedding_parameters + shape.norm_parameters)
    return shape.num_hidden_layers * block + rest


def cpu_copy_bytes(shape: Shape, format_: str) -> int:
    """What an engine on the CPU keeps twice at most: kernels want their own order of every matrix.

    It is the output layer, beside the embedding it is tied to, and the memory of the linear layers' old
    order, which stays with the process. EngineCore's PSS less weights, KV cache and 0.72 GB of the process
    itself was 2.44 GB with qwen3-4b-shape-gptq-int4, where this is 2.67; 0.94 with Qwen3-0.6B's shape in
    bf16 (1.19); 0.16 with demo-int8 (0.16); 0.06 with demo (0.27).
    """
    embedding = 0 if shape.tie_word_embeddings else shape.embedding_parameters // 2
    return weight_bytes(shape, format_) - 2 * (embedding + shape.norm_parameters)


def _groups(rows: int, columns: int, group: int) -> int:
    return rows * -(-columns // group)


Size = Callable[[int, int, int], int]
# Bytes of one linear layer of (rows, columns). Scales are 16-bit but for int8's and fp8's (32-bit), of
# which a matrix has one per row or one per 128 x 128 block; GPTQ keeps a 32-bit group index per column.
LINEAR: dict[str, Size] = {
    "bf16": lambda rows, columns, _: 2 * rows * columns,
    "int8": lambda rows, columns, _: rows * columns + 4 * rows,
    "fp8": lambda rows, columns, _: rows * columns + 4 * -(-rows // 128) * -(-columns // 128),
    "gptq-int8": lambda rows, columns, group: (
        rows * columns + 3 * _groups(rows, columns, group) + 4 * columns
    ),
    "gptq-int4": lambda rows, columns, group: (
        rows * columns // 2 + 5 * _groups(rows, columns, group) // 2 + 4 * columns
    ),
    "awq-int4": lambda rows, columns, group: (
        rows * columns // 2 + 5 * _groups(rows, columns, group) // 2
    ),
    "int4": lambda rows, columns, group: rows * columns // 2 + 2 * _groups(rows, columns, group),
}
