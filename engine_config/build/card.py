"""The model card: `quantization_card.json` for programs, README.md for people."""

import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine_config.build import toolbox
from engine_config.build.cache import write_json
from engine_config.build.checkpoint import Source
from engine_config.build.texts import Calibration
from engine_config.fingerprint import fingerprint

CARD = "quantization_card.json"
CARD_FORMAT = 1

FORMATS = {
    "gptq-int4": "GPTQ format, 4-bit symmetric weights, no desc_act",
    "awq-int4": "AWQ format, 4-bit asymmetric weights",
    "int8": "compressed-tensors W8A8: int8 weights per output channel, int8 activations per token",
    "int4": "compressed-tensors W4A16 (pack-quantized), 4-bit symmetric weights",
}
HOW = (
    "Both models in transformers on the CPU, in {dtype}. The quantised weights were read back from "
    "the files of this folder{activations}. Perplexity and the likeliest next token at {tokens} "
    "positions of the project's held-out text, in windows of which each starts anew; nothing was "
    "calibrated with that text."
)
ROUNDED = ", and activations rounded to int8 per token as the engine does"


@dataclass(frozen=True, slots=True)
class Facts:
    """What the gateway's side knows of a run."""

    source: Source
    target: str
    group_size: int | None
    layers: int  # quantised ones
    seconds: float  # all of it, without installing the tools where they were there


def write(
    folder: Path, facts: Facts, made: dict[str, Any], calibration: Calibration, heldout: str
) -> None:
    """Write both files. `made` is the worker's result, `heldout` the hash of the held-out text."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    quality = made["quality"]
    dtype = quality.pop("dtype")
    how = HOW.format(
        dtype=dtype,
        tokens=quality["tokens"],
        activations=ROUNDED if facts.target == "int8" else "",
    )
    content = {
        "format": CARD_FORMAT,
        "source": {
            "name": facts.source.name,
            "revision": facts.source.revision or None,
            "sha256": fingerprint(facts.source.folder),
            "bytes": facts.source.bytes,
        },
        "target": facts.target,
        "quant_method": config["quantization_config"]["quant_method"],
        "group_size": facts.group_size,
        "quantized_layers": facts.layers,
        "not_quantized": ["embeddings", "norms", "lm_head"],
        "recipe": made["recipe"],
        "calibration": {
            "name": calibration.name,
            "sha256": calibration.sha256,
            "passages": len(calibration.passages),
        },
        "tools": made["tools"] | {"python": platform.python_version()},
        "tools_lock_sha256": toolbox.lock_hash(),
        "seconds": {"quantize": round(made["seconds"], 1), "total": round(facts.seconds, 1)},
        "bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        "quality": quality | {"heldout_sha256": heldout, "how": how},
    }
    write_json(folder / CARD, content)
    (folder / "README.md").write_text(readme(content), encoding="utf-8")


def read(folder: Path) -> dict[str, Any]:
    """The card of a checkpoint made here."""
    card: dict[str, Any] = json.loads((folder / CARD).read_text(encoding="utf-8"))
    return card


def readme(card: dict[str, Any]) -> str:
    """The card in words and tables."""
    source, quality = card["source"], card["quality"]
    rows = {
        "Format": FORMATS[card["target"]],
        "Made from": source["name"] + (f" at {source['revision']}" if source["revision"] else ""),
        "Fingerprint of the source (sha256)": f"`{source['sha256']}`",
        "Group size": card["group_size"] or "none: one scale per output channel",
        "Quantised": f"{card['quantized_layers']} linear layers; not "
        + ", ".join(card["not_quantized"]),
        "Recipe": ", ".join(f"{key} {value}" for key, value in card["recipe"].items()),
        "Calibrated with": f"{card['calibration']['name']} (sha256 "
        f"`{card['calibration']['sha256'][:16]}`)",
        "Tools": ", ".join(f"{name} {version}" for name, version in card["tools"].items()),
        "Weights": f"{source['bytes'] / 1e6:.1f} MB before, {card['bytes'] / 1e6:.1f} MB now",
        "Time": f"{card['seconds']['total']:.0f} s",
    }
    lines = [f"# {source['name']}, quantised to {card['target']}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    lines += ["", "## What it cost", ""]
    lines += ["| Text | Tokens | Perplexity before | Perplexity now | Same next token |"]
    lines += ["|---|---|---|---|---|"]
    lines += [quality_row(kind, part) for kind, part in [*quality["parts"].items()]]
    lines += [quality_row("all", quality), "", quality["how"], ""]
    lines += ["Tokenizer, chat template and generation config are the source's, unchanged.", ""]
    return "\n".join(lines)


def quality_row(kind: str, part: dict[str, Any]) -> str:
    return (
        f"| {kind} | {part['tokens']} | {part['perplexity_source']:.2f} | "
        f"{part['perplexity_quantized']:.2f} | {part['token_agreement']:.1%} |"
    )
