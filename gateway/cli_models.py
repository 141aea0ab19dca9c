"""`gateway models`: build, quantise and check the models that a profile can name."""

import signal
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console as Rich
from rich.table import Table

from engine_config.build import cache, card, registry, sources
from engine_config.build.cache import Origin, Workspace, part
from engine_config.build.checkpoint import TARGETS
from engine_config.build.quantize import Options, quantize
from gateway.console import Console

models = typer.Typer(
    help="Models that are built from packages, without a hub, and quantised ones.",
    no_args_is_help=True,
)

Force = Annotated[bool, typer.Option("--force", help="Build anew, whatever is there.")]


@models.command("list")
def list_models() -> None:
    """What can be built, and what is there already."""
    table = Table("model", "what", "where")
    for name, recipe in registry.BUILDERS.items():
        folder = registry.model_dir(name)
        table.add_row(name, recipe.title, str(folder) if folder.is_dir() else "not built")
    Rich().print(table)


@models.command("build")
def build_model(name: str, force: Force = False) -> None:
    """Build a model into the cache folder ($GATEWAY_CACHE_DIR); quantised ones from their base."""
    with Console().working(f"building {name}") as progress:
        folder = registry.build(name, progress, force=force)
    typer.echo(folder)


@models.command("verify")
def verify_model(
    name: Annotated[str, typer.Argument(help="A built model, or the folder of a quantised one.")],
) -> None:
    """Compare every file with its checksum."""
    if name in registry.BUILDERS or not Path(name).is_dir():
        folder = registry.verify(name)
    else:
        folder = Path(name)
        cache.verify(folder)
    typer.echo(f"{folder}: good")


@models.command("quantize")
def quantize_model(  # noqa: PLR0913 - each one is a command-line option
    source: Annotated[
        str,
        typer.Argument(
            help="A name from `gateway models list`, a model folder, or a Hugging Face id."
        ),
    ],
    to: Annotated[str, typer.Option("--to", help=f"One of: {', '.join(TARGETS)}.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to write: absent or empty.")],
    revision: Annotated[
        str | None, typer.Option(help="Of a Hugging Face id: the commit, 40 hexadecimal digits.")
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Plain text, or JSON lines with `text` or `messages`. Default: the shipped text."
        ),
    ] = None,
    samples: Annotated[int, typer.Option(help="Pieces of the text to calibrate with.")] = 32,
    seq_len: Annotated[int, typer.Option(help="Tokens of a piece.")] = 256,
    iterations: Annotated[
        int, typer.Option(help="Tuning steps of auto-round (gptq-int4, awq-int4); 200 is thorough.")
    ] = 20,
    group_size: Annotated[
        int | None,
        typer.Option(help="128, 64 or 32. Default: the largest that divides every layer."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a model that is there.")] = False,
) -> None:
    """Make a quantised checkpoint, with a card that says how and what it cost in quality.

    The first run installs llm-compressor and auto-round into an environment of their own (1.5 GB).
    No GPU is needed. More on it: docs/quantizing.md.
    """
    options = Options(to, group_size, calibration, samples, seq_len, iterations)
    options.check()
    cache.require_free(out, force)
    signal.signal(signal.SIGTERM, stop)
    with Console().working(f"quantising {source} to {to}") as progress:
        found = sources.resolve(source, revision, part(progress, 0.0, 0.1))
        command = f"gateway models quantize {source} --to {to} --out {out} --force"
        origin = Origin(
            f"{source} {to}", 1, {"model": source, "target": to}, (), 2 * found.bytes, command
        )

        def fill(workspace: Workspace) -> None:
            quantize(found, options, workspace, part(progress, 0.1, 0.95))

        folder = cache.publish_at(out, origin, fill, progress, force)
    report(folder)


def stop(number: int, frame: FrameType | None) -> None:
    """End as Ctrl-C does: by an exception, so that worker and half a folder go too."""
    raise SystemExit(128 + number)


def report(folder: Path) -> None:
    """Where it is and what it cost, in three lines."""
    made = card.read(folder)
    quality = made["quality"]
    typer.echo(folder)
    typer.echo(
        f"{made['source']['bytes'] / 1e6:.0f} MB -> {made['bytes'] / 1e6:.0f} MB in "
        f"{made['seconds']['total']:.0f} s; perplexity {quality['perplexity_source']:.2f} -> "
        f"{quality['perplexity_quantized']:.2f}; same next token {quality['token_agreement']:.1%}"
    )
    typer.echo(f"card: {folder / 'README.md'}; serve it: docs/quantizing.md")
