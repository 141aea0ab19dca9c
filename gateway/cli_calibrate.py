"""`gateway calibrate` and `gateway questions`: what a confidence of 0.8 is worth for your model."""

import importlib
from pathlib import Path
from typing import Annotated

import typer

DataFile = Annotated[
    Path, typer.Option("--data", help="Questions as JSON lines: id, task, question, answer.")
]
OutFile = Annotated[Path, typer.Option("--out", help="The calibration file to write.")]


def calibrate(  # noqa: PLR0913 - each one is a command-line option
    data: DataFile,
    out: OutFile,
    url: Annotated[str, typer.Option(help="A running gateway.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Default: its first model.")] = None,
    depth: Annotated[int, typer.Option(help="Thinking depth of every question, 0 to 5.")] = 1,
    max_tokens: Annotated[int, typer.Option(help="Thought and answer together.")] = 256,
    concurrency: Annotated[int, typer.Option(help="Questions asked at once.")] = 8,
    seed: Annotated[int, typer.Option(help="Of sampling and of the bootstrap.")] = 1,
    api_key: Annotated[
        str | None, typer.Option(envvar="GATEWAY_API_KEY", help="When the gateway wants one.")
    ] = None,
) -> None:
    """Ask a running gateway known questions and fit its confidence to how often it is right.

    Writes the calibration file, a report beside it and a reliability diagram. Exit status 3: the
    confidence says nothing about correctness here, and no calibration file is written. Can be stopped
    and started again; answers are kept as they come.
    """
    work = importlib.import_module("gateway.calibrate")  # numpy is not for `--help`
    options = work.Options(data, out, url, model, depth, max_tokens, concurrency, seed, api_key)
    raise typer.Exit(work.run(options))


def questions(
    out: OutFile,
    per_task: Annotated[int, typer.Option(help="Questions of each task.")] = 100,
    seed: Annotated[int, typer.Option(help="Same seed, same questions.")] = 1,
) -> None:
    """Make a question set with PyPI's `reasoning-gym`: new, verifiable, easy to hard."""
    count = importlib.import_module("gateway.questions").make(out, per_task, seed)
    typer.echo(f"{out}: {count} questions")
