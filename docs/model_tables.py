"""The tables of docs/models.md, computed by what the tables are about: profiles and plans."""

import importlib
import warnings
from collections.abc import Iterator
from typing import Any

from engine_config.fitting import known_bytes
from engine_config.profile import GB, BuiltModel, FolderModel, Profile, available, load

FORMATS = ("bf16", "int8", "gptq-int4", "awq-int4", "int4")
THINKING = "qwen3-4b-thinking"
# Lengths of a request; the last column of each row is the profile's own longest.
LENGTHS = (4096, 16_384, 32_768)

Row = tuple[str, ...]


def profile_rows() -> Iterator[Row]:
    """Head and rows: every shipped profile."""
    yield "Profile", "Model name", "Format", "Weights, GB", "For", "Where the model comes from"
    for name in available():
        profile = load(name)
        built = isinstance(profile.model, BuiltModel)
        size = "" if built else f"{known_bytes(profile) / GB:.2f}"
        yield (
            f"`{name}`",
            f"`{profile.served_as}`",
            profile.format or "",
            size,
            _device(profile),
            _origin(profile),
        )


def _device(profile: Profile) -> str:
    if profile.device or not profile.cards:
        return {"gpu": "GPU", "cpu": "CPU", None: "CPU"}[profile.device]
    return "GPU of " + ", ".join(str(card) for card in sorted(profile.cards)) + " GB"


def _origin(profile: Profile) -> str:
    model = profile.model
    if isinstance(model, BuiltModel):
        return "built here from packages"
    if isinstance(model, FolderModel):
        return "a folder that you make with `gateway models quantize`"
    return f"[{model.repo}](https://huggingface.co/{model.repo}/tree/{model.revision})"


def plan_rows() -> Iterator[Row]:
    """Head and rows: Qwen3-4B-Thinking in each format on each card."""
    yield (
        "Card, GB",
        "Format",
        "Weights, GB",
        "KV cache, GB",
        "Tokens in it",
        "`max_model_len`",
        *(f"at {length:,}" for length in LENGTHS),
        "at `max_model_len`",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's own, at its import
        planner = importlib.import_module("gateway.engines.vllm_plan")
    for card in sorted(load(f"{THINKING}-bf16").cards):
        for format_ in FORMATS:
            made = planner.plan(load(f"{THINKING}-{format_}"), THINKING, card * GB)
            yield _plan_row(card, format_, made)


def _plan_row(card: int, format_: str, made: Any) -> Row:
    counts = (made.concurrent.get(length) for length in (*LENGTHS, made.max_model_len))
    return (
        str(card),
        format_,
        f"{made.weights / GB:.1f}",
        f"{made.kv_cache / GB:.1f}",
        f"{made.kv_tokens:,}",
        f"{made.max_model_len:,}",
        *("" if count is None else f"{min(count, made.max_num_seqs):.1f}" for count in counts),
    )


SIZING = ("bf16", "awq-int4")


def sizing_rows() -> Iterator[Row]:
    """Head and rows: of `plan_rows` what decides about a card."""
    for card, format_, weights, cache, _, longest, *counts in plan_rows():
        if format_ in ("Format", *SIZING):
            yield card, format_, weights, cache, longest, *counts[:-1]
