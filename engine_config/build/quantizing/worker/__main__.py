"""One job: fetch a model from the hub, or quantise a folder and measure what came of it."""

import importlib
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .events import Pipe, Refused


def main() -> None:
    pipe = Pipe()
    job = pipe.job()
    pipe.progress("loading the tools", 0.0)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        pipe.tell(result=download(job) if job["action"] == "download" else quantise(job, pipe))
    except Refused as refusal:
        pipe.tell(refused=str(refusal))
        raise SystemExit(3) from refusal


def download(job: dict[str, Any]) -> dict[str, Any]:
    return {"folder": part("hub").snapshot(job["repo"], job["revision"])}


def quantise(job: dict[str, Any], pipe: Pipe) -> dict[str, Any]:
    made: dict[str, Any] = part("make").make(job, pipe)
    made["quality"] = part("measure").measure(Path(job["source"]), Path(job["out"]), job, pipe)
    made["tools"] = {name: version(name) for name in job["tools"]}
    return made


def part(name: str) -> Any:
    """A module of this package, imported when it is wanted: torch and the tools take seconds."""
    return importlib.import_module(f".{name}", __package__)


if __name__ == "__main__":
    main()
