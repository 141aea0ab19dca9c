"""`gateway validate`: asks a running gateway everything once and says what is not as documented."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console as Rich
from rich.markup import escape

from gateway.console import Console
from gateway.settings import Settings
from gateway.validate.report import Report
from gateway.validate.run import Tell, run
from gateway.validate.speed import Plan
from gateway.validate.target import Address, opened


def validate(  # noqa: PLR0913 - each one is a command-line option
    url: Annotated[str, typer.Option(help="The gateway.")] = "http://127.0.0.1:8000",
    key: Annotated[
        str | None,
        typer.Option(
            help="A tenant's key; `ps` shows it. Default: GATEWAY_API_KEY, also from .env."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Default: its first model.")] = None,
    wait: Annotated[float, typer.Option(help="How long it may still be loading, seconds.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="A folder for validation.md and validation.json.")
    ] = None,
    crowd: Annotated[int, typer.Option(min=1, help="Answers asked for at once.")] = 8,
    requests: Annotated[
        int, typer.Option(min=0, help="Streams of the benchmark in all; 0: no benchmark.")
    ] = 12,
    streams: Annotated[int, typer.Option(min=1, help="Of them at once.")] = 4,
    tokens: Annotated[int, typer.Option(min=2, help="Of each, tokens.")] = 32,
) -> None:
    """Check every route, stream, refusal and many at once, and measure a little.

    Exit status 1: something is not as documented. 2: there is nothing to validate.
    """
    plan = Plan(streams, requests, tokens) if requests else None
    with Console().working(f"validating {url}") as tell:
        report = asyncio.run(_run(url, key or _own_key(), (model, wait), (plan, crowd, tell)))
    show(report)
    for path in report.write(out) if out else ():
        typer.echo(f"written: {path}")
    raise typer.Exit(1 if report.failed else 0)


async def _run(
    url: str,
    key: str | None,
    which: tuple[str | None, float],
    how: tuple[Plan | None, int, Tell],
) -> Report:
    async with opened(Address(url), key, *which) as target:
        return await run(target, *how)


def _own_key() -> str | None:
    given = Settings().api_key
    return given.get_secret_value() if given else None


def show(report: Report) -> None:
    """The failures in full, the rest as a count."""
    rich = Rich(highlight=False, soft_wrap=True)
    for each in report.failed:
        rich.print(f"[bold red]fail[/] {each.group} {each.name}: {escape(each.told)}")
    passed = len(report.outcomes) - len(report.failed)
    rich.print(f"{passed} of {len(report.outcomes)} checks passed on {report.model}")
    if speed := report.speed:
        rich.print(
            f"first token p50 {speed.ttft_p50_s:.3f} s, between pieces p50 {speed.itl_p50_s:.3f} s, "
            f"{speed.tokens_per_second:.0f} tokens/s with {speed.streams} streams"
        )
