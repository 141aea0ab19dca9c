"""A result file of bench.compare as a Markdown table: the README quotes it word for word.

python -m bench.render bench/results/FILE.json
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Figure in the file: (words in the table, digits behind the point).
ROWS = {
    "tok_s": ("throughput, tokens/s", 1),
    "ttft_p50_ms": ("TTFT p50, ms", 1),
    "ttft_p99_ms": ("TTFT p99, ms", 1),
    "tpot_p50_ms": ("TPOT p50, ms", 2),
    "front_cpu_s_per_1k": ("API process, CPU s per 1,000 tokens", 3),
    "tree_cpu_s_per_1k": ("with the engine, CPU s per 1,000 tokens", 3),
    "front_rss_mb": ("API process, RSS in MB", 0),
    "front_private_mb": ("API process, private memory in MB", 0),
}


def table(result: Mapping[str, Any]) -> str:
    """One row per number of streams and figure; no line break at the end."""
    a, b = result["sides"]["a"]["name"], result["sides"]["b"]["name"]
    lines = [
        f"| Streams | Figure (median) | {a} | {b} | {a} / {b}: median (min to max) |",
        "|---:|---|---:|---:|---:|",
    ]
    for row in result["summary"]:
        lines += _rows(row)
    return "\n".join(lines)


def _rows(row: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, (words, digits) in ROWS.items():
        if figure := row["figures"][name]:
            ratio = (
                f"{figure['ratio']:.2f} ({figure['ratio_min']:.2f} to {figure['ratio_max']:.2f})"
            )
            values = f"{figure['a']:,.{digits}f} | {figure['b']:,.{digits}f}"
            lines.append(f"| {row['streams']} | {words} | {values} | {ratio} |")
    if any(row["errors"].values()):
        counts = " | ".join(str(count) for count in row["errors"].values())
        lines.append(f"| {row['streams']} | **failed requests, all rounds** | {counts} | |")
    return lines


def source(result: Mapping[str, Any]) -> str:
    """One sentence: on what machine and with what the table was measured."""
    place, asked = result["environment"], result["arguments"]
    return (
        f"{place['vllm']}, {place['cpu']}, {place['cores']} cores, {place['date'][:10]}, commit "
        f"{place['commit'][:10]}; profile `{asked['profile']}`, {asked['rounds']} rounds, "
        f"{asked['prompt_tokens']}-word prompts, {asked['max_tokens']} tokens per answer."
    )


def main() -> None:
    """The command: the table, then where it comes from."""
    parser = argparse.ArgumentParser(prog="bench.render", description="A result file as a table.")
    parser.add_argument("file", type=Path)
    result = json.loads(parser.parse_args().file.read_text(encoding="utf-8"))
    sys.stdout.write(f"{table(result)}\n\n{source(result)}\n")


if __name__ == "__main__":
    main()
