"""The model card: complete for programs, readable for people."""

import json
from pathlib import Path
from typing import Any

from engine_config.build import card
from engine_config.build.checkpoint import Source
from engine_config.build.texts import Calibration
from engine_config.fingerprint import fingerprint

PART = {
    "tokens": 100,
    "perplexity_source": 10.0,
    "perplexity_quantized": 11.5,
    "token_agreement": 0.875,
}
CALIBRATION = Calibration("mine.txt", "c" * 64, ["a", "b"])


def made() -> dict[str, Any]:
    return {
        "recipe": {"tool": "auto-round", "iterations": 20},
        "seconds": 12.34,
        "tools": {"torch": "2.13.0+cpu"},
        "quality": PART | {"parts": {"english": dict(PART)}, "dtype": "float32"},
    }


def written(tmp_path: Path, target: str, group_size: int | None) -> dict[str, Any]:
    source, folder = tmp_path / "source", tmp_path / "made"
    for path in (source, folder):
        path.mkdir()
        config = {"quantization_config": {"quant_method": "gptq"}} if path == folder else {}
        (path / "config.json").write_text(json.dumps(config))
    (source / "model.safetensors").write_bytes(b"x" * 4_000_000)
    (folder / "model.safetensors").write_bytes(b"x" * 1_000_000)
    facts = card.Facts(Source("me/model", source, "a" * 40), target, group_size, 7, 20.06)
    card.write(folder, facts, made(), CALIBRATION, "d" * 64)
    return card.read(folder)


def test_the_card_says_from_what_how_with_what_and_at_what_cost(tmp_path: Path) -> None:
    content = written(tmp_path, "gptq-int4", 64)

    assert content["source"] == {
        "name": "me/model",
        "revision": "a" * 40,
        "sha256": fingerprint(tmp_path / "source"),
        "bytes": 4_000_000,
    }
    assert (content["quant_method"], content["group_size"]) == ("gptq", 64)
    assert content["calibration"] == {"name": "mine.txt", "sha256": "c" * 64, "passages": 2}
    assert content["tools"].keys() == {"torch", "python"}
    assert content["seconds"] == {"quantize": 12.3, "total": 20.1}
    assert content["bytes"] == 1_000_000
    assert content["quality"]["token_agreement"] == 0.875
    assert content["quality"]["heldout_sha256"] == "d" * 64
    assert "in float32" in content["quality"]["how"] and "int8" not in content["quality"]["how"]


def test_the_readme_says_the_same_in_words(tmp_path: Path) -> None:
    written(tmp_path, "gptq-int4", 64)

    text = (tmp_path / "made" / "README.md").read_text(encoding="utf-8")

    assert text.startswith("# me/model, quantised to gptq-int4\n")
    assert f"me/model at {'a' * 40}" in text
    assert "| Group size | 64 |" in text
    assert "4.0 MB before, 1.0 MB now" in text
    assert "| english | 100 | 10.00 | 11.50 | 87.5% |" in text
    assert "| all | 100 | 10.00 | 11.50 | 87.5% |" in text


def test_rounded_activations_are_said_to_be_measured_too(tmp_path: Path) -> None:
    content = written(tmp_path, "int8", None)

    text = (tmp_path / "made" / "README.md").read_text(encoding="utf-8")
    assert "activations rounded to int8 per token" in content["quality"]["how"]
    assert "none: one scale per output channel" in text
