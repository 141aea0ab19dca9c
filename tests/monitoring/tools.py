"""Prometheus' and Alertmanager's own programs, and the files of monitoring/ as Python reads them."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
MONITORING = ROOT / "monitoring"
RULES, ALERTS = MONITORING / "rules.yml", MONITORING / "alerts.yml"
ALERTMANAGER = MONITORING / "alertmanager.yml"
# promtool runs the tests of a file in about 6 s on a free machine.
PATIENCE_S = 120


def program(*names: str) -> str:
    """The first of these that is installed; Debian calls Alertmanager by another name than its makers."""
    for name in names:
        if found := shutil.which(name):
            return found
    pytest.fail(f"{names[0]} is missing: apt-get install prometheus prometheus-alertmanager")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    name, *rest = command
    return subprocess.run(
        [program(name), *rest], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def rules(path: Path) -> list[dict[str, Any]]:
    """All rules of a file, of all groups."""
    return [rule for group in read(path)["groups"] for rule in group["rules"]]


def metric_names(expr: str) -> set[str]:
    """Names of the metrics in a PromQL expression that the gateway or its engines tell."""
    bare = re.sub(r'"[^"]*"', '""', expr)
    found = re.findall(r"(?<![\w:])(?:gateway_|process_|vllm:)\w+", bare)
    return {name for name in found if not name.startswith("vllm:vllm")}


def anchors(path: Path) -> Iterator[str]:
    """Of a Markdown page's headings, as GitHub makes them."""
    for heading in re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
