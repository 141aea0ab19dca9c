"""What came of it: a row per check, the figures, as Markdown and as JSON."""

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gateway.validate.speed import Speed

NAME = "validation"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One check. `told`: the reason if it failed."""

    group: str
    name: str
    passed: bool
    told: str
    seconds: float


@dataclass(slots=True)
class Report:
    """All of a run."""

    url: str
    model: str
    keyed: bool  # whether a key was sent
    outcomes: list[Outcome] = field(default_factory=list)
    speed: Speed | None = None
    time: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def failed(self) -> list[Outcome]:
        return [each for each in self.outcomes if not each.passed]

    def as_json(self) -> dict[str, Any]:
        return {
            "time": self.time.isoformat(timespec="seconds"),
            "url": self.url,
            "model": self.model,
            "key_sent": self.keyed,
            "passed": not self.failed,
            "counts": {"total": len(self.outcomes), "failed": len(self.failed)},
            "checks": [asdict(each) for each in self.outcomes],
            "benchmark": self.speed.as_json() if self.speed else None,
        }

    def as_markdown(self) -> str:
        verdict = f"{len(self.failed)} of {len(self.outcomes)} checks failed"
        lines = [
            f"# Validation of {self.url}",
            "",
            f"{self.time:%Y-%m-%d %H:%M} UTC, model `{self.model}`, "
            f"{'with' if self.keyed else 'without'} a key: "
            + (verdict if self.failed else f"all {len(self.outcomes)} checks passed")
            + ".",
            "",
            "| Group | Check | Result | Seconds | Detail |",
            "|---|---|---|---|---|",
            *(_row(each) for each in self.outcomes),
        ]
        if self.speed is not None:
            lines += ["", "## Benchmark", "", *_figures(self.speed)]
        return "\n".join([*lines, ""])

    def write(self, folder: Path) -> list[Path]:
        """`validation.md` and `validation.json` in the folder, which is made. Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        markdown, data = folder / f"{NAME}.md", folder / f"{NAME}.json"
        markdown.write_text(self.as_markdown(), encoding="utf-8")
        data.write_text(json.dumps(self.as_json(), indent=2) + "\n", encoding="utf-8")
        return [markdown, data]


def _row(each: Outcome) -> str:
    told = each.told.replace("|", "\\|").replace("\n", " ")
    result = "pass" if each.passed else "**FAIL**"
    return f"| {each.group} | {each.name} | {result} | {each.seconds:.2f} | {told} |"


def _figures(speed: Speed) -> list[str]:
    return [
        f"{speed.requests} streamed completions, {speed.streams} at once, {speed.tokens} tokens in "
        f"{speed.seconds} s. A short look, not a measurement to decide by.",
        "",
        "| Figure | p50 | p95 |",
        "|---|---|---|",
        f"| time to the first token, s | {speed.ttft_p50_s} | {speed.ttft_p95_s} |",
        f"| between two pieces, s | {speed.itl_p50_s} | {speed.itl_p95_s} |",
        "",
        f"Throughput: {speed.tokens_per_second} tokens/s.",
    ]
