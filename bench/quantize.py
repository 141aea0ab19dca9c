"""What quantising costs: time, size and quality of one model in every format, on this machine.

    python -m bench.quantize --source smollm2-135m --out bench/results/quantize-demo.json

Runs `gateway models quantize` once per format, one after another, each into a folder that is thrown
away, and writes one JSON object. The tools are installed first, so that no run pays for it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.environment import environment
from engine_config.build import card, registry, toolbox
from engine_config.build.checkpoint import TARGETS


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="bench.quantize", description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="smollm2-135m", help="as for `gateway models quantize`")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    args = parser.parse_args()
    where = environment()
    toolbox.ensure(quiet)
    if args.source in registry.BUILDERS:
        registry.ensure(args.source, quiet)
    result = {
        "command": " ".join(["python -m bench.quantize", *sys.argv[1:]]),
        "environment": where,
        "source": args.source,
        "formats": {target: run(args.source, target) for target in TARGETS},
    }
    args.out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def run(source: str, target: str) -> dict[str, Any]:
    """Quantise once and return what the card says, and the seconds of the whole command."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model"
        line = [sys.executable, "-m", "gateway", "models", "quantize", source]
        start = time.monotonic()
        subprocess.run([*line, "--to", target, "--out", str(out)], check=True)
        seconds = time.monotonic() - start
        made = card.read(out)
    kept = ("group_size", "recipe", "tools", "seconds", "bytes", "quality")
    return {key: made[key] for key in kept} | {
        "source_bytes": made["source"]["bytes"],
        "command_seconds": round(seconds, 1),
    }


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table, and the sentence that says where it comes from."""
    lines = [
        "| | Seconds | Weights | Perplexity | Same next token | Group |",
        "|---|---|---|---|---|---|",
    ]
    for target, row in result["formats"].items():
        quality = row["quality"]
        lines.append(
            f"| `{target}` | {row['command_seconds']:.0f} | {row['bytes'] / 1e6:.0f} MB | "
            f"{quality['perplexity_quantized']:.2f} | {quality['token_agreement']:.1%} | "
            f"{row['group_size'] or 'none'} |"
        )
    first, where = next(iter(result["formats"].values())), result["environment"]
    return "\n".join(lines) + (
        f"\n\nThe source has {first['source_bytes'] / 1e6:.0f} MB and a perplexity of "
        f"{first['quality']['perplexity_source']:.2f} on the same {first['quality']['tokens']} tokens. "
        f"{where['cores']} cores of {where['cpu']}, load average {where['load_average_1m']} before the "
        f"run; commit {where['commit'][:7]}, {where['date'][:10]}:\n"
        f"`{result['command']}`,\nin [quantize-demo.json](../bench/results/quantize-demo.json)."
    )


def quiet(text: str, fraction: float) -> None:
    """No progress: the commands show their own."""


if __name__ == "__main__":
    main()
