"""How much a quantised checkpoint differs from its source, on a text neither was made with."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from .events import Pipe, Refused
from .text import encode, windows
from .unpack import unpack

SMALL = 1_000_000_000  # parameters; a larger model is measured in its own dtype, for the memory


@dataclass
class Reading:
    """What a model made of one text, over all predicted positions."""

    loss: float = 0.0  # sum over positions, nats
    tokens: list[torch.Tensor] = field(default_factory=list)  # the likeliest next one, per window


def measure(source: Path, made: Path, job: dict[str, Any], pipe: Pipe) -> dict[str, Any]:
    """Perplexity of both and the share of positions where both choose the same next token.

    The quantised weights are read back from the files in `made`. Of a format that also quantises
    activations, those are rounded as the engine rounds them.
    """
    pipe.progress("measuring the source", 0.7)
    tokenizer = AutoTokenizer.from_pretrained(source)
    texts = {kind: encode(tokenizer, passages) for kind, passages in job["heldout"].items()}
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto").eval()
    if model.num_parameters() < SMALL:
        model = model.float()
    length = job["heldout_seq_len"]
    before = {kind: read(model, windows(ids, length)) for kind, ids in texts.items()}
    pipe.progress("reading the checkpoint back", 0.8)
    put_in(model, made, job["target"])
    pipe.progress("measuring the checkpoint", 0.85)
    after = {kind: read(model, windows(ids, length)) for kind, ids in texts.items()}
    parts = {kind: compare([before[kind]], [after[kind]]) for kind in texts}
    total = compare([*before.values()], [*after.values()])
    return total | {"parts": parts, "dtype": str(model.dtype).removeprefix("torch.")}


def read(model: Any, batch: list[list[int]]) -> Reading:
    """Run windows of token ids through the model."""
    reading = Reading()
    for ids in batch:
        tokens = torch.tensor([ids])
        with torch.inference_mode():
            logits = model(tokens, use_cache=False).logits[0, :-1].float()
        reading.loss += torch.nn.functional.cross_entropy(
            logits, tokens[0, 1:], reduction="sum"
        ).item()
        reading.tokens.append(logits.argmax(-1))
    return reading


def compare(before: list[Reading], after: list[Reading]) -> dict[str, Any]:
    ours = torch.cat([tokens for reading in after for tokens in reading.tokens])
    theirs = torch.cat([tokens for reading in before for tokens in reading.tokens])
    count = len(theirs)
    return {
        "tokens": count,
        "perplexity_source": math.exp(sum(reading.loss for reading in before) / count),
        "perplexity_quantized": math.exp(sum(reading.loss for reading in after) / count),
        "token_agreement": (ours == theirs).float().mean().item(),
    }


def put_in(model: Any, folder: Path, target: str) -> None:
    """Give the model the weights that the quantised checkpoint stands for.

    Raises:
        Refused: the checkpoint is not of this architecture as transformers knows it.
    """
    weights, layers = unpack(folder, target)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or any(not name.startswith("lm_head") for name in missing):
        raise Refused(
            f"{type(model).__name__} cannot be measured: of the checkpoint's weights "
            f"{(missing + unexpected)[0]} has no counterpart. Dense text models are supported."
        )
    if target == "int8":
        for layer in layers:
            model.get_submodule(layer).register_forward_pre_hook(round_activations)


def round_activations(layer: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """Symmetric int8 with one scale per token, as vLLM does it at run time."""
    (values,) = inputs
    scale = values.abs().amax(-1, keepdim=True).clamp(min=1e-10) / 127
    return ((values / scale).round().clamp(-128, 127) * scale,)
