"""The `gateway` command."""

import importlib
import logging
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from pydantic import ValidationError
from rich.console import Console as Rich
from rich.table import Table

from engine_config.build import registry
from engine_config.build.cache import ModelCacheError
from engine_config.profile import ProfileError, available, cli_args, load
from gateway import __version__
from gateway.cli_calibrate import calibrate, questions
from gateway.console import Console
from gateway.engines.fleet import EngineStartFailed
from gateway.engines.opening import locate
from gateway.questions import QuestionsError
from gateway.serve import Service, build_fleet
from gateway.settings import Settings

app = typer.Typer(
    help="A reasoning gateway on vLLM: OpenAI-compatible and native APIs, one hop from the engine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
profiles = typer.Typer(help="What can be served, and why it is set up so.", no_args_is_help=True)
models = typer.Typer(
    help="Models that are built from packages, without a hub.", no_args_is_help=True
)
app.add_typer(profiles, name="profiles")
app.add_typer(models, name="models")
app.command("calibrate")(calibrate)
app.command("questions")(questions)

ProfilesDir = Annotated[
    Path | None, typer.Option("--profiles-dir", help="A folder of your own profiles.")
]


def main() -> None:
    """Run the command; what the user can mend is one sentence, not a stack trace."""
    try:
        app()
    except (ProfileError, ModelCacheError, QuestionsError, OSError) as error:
        Console().fail(str(error))
        raise SystemExit(2) from error
    except EngineStartFailed as error:
        Console().fail(str(error))
        raise SystemExit(1) from error
    except ValidationError as error:
        for problem in error.errors():
            where = ".".join(str(part) for part in problem["loc"])
            text = problem["msg"].removeprefix("Value error, ")
            Console().fail(f"GATEWAY_{where.upper()}: {text}" if where else text)
        raise SystemExit(2) from error


@app.command()
def serve(
    profile: Annotated[
        list[str] | None,
        typer.Option("--profile", help="A profile to serve; give it again for more models."),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Bind address (default 127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="Port (default 8000).")] = None,
    admin_port: Annotated[
        int | None, typer.Option(help="Port of the admin listener (default 8001).")
    ] = None,
) -> None:
    """Serve. Everything else is set by GATEWAY_* variables or in .env; see docs/settings.md."""
    given: dict[str, Any] = {
        "profiles": profile,
        "host": host,
        "port": port,
        "admin_port": admin_port,
    }
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    logging.basicConfig(
        level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    for library in ("uvicorn", "vllm"):
        logging.getLogger(library).setLevel(logging.WARNING)
    console = Console()
    fleet = build_fleet(settings, console)
    uvloop.run(_run(settings, console, fleet))


async def _run(settings: Settings, console: Console, fleet: Any) -> None:
    await Service(settings, console, fleet).run()


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


@profiles.command("list")
def list_profiles(profiles_dir: ProfilesDir = None) -> None:
    """All profiles, a line each."""
    table = Table("profile", "model name", "what")
    for name in available(profiles_dir):
        profile = load(name, profiles_dir)
        table.add_row(name, profile.served_as, profile.title)
    Rich().print(table)


@profiles.command("show")
def show_profile(name: str, profiles_dir: ProfilesDir = None) -> None:
    """Each value that differs from vLLM's default, with its reason and source."""
    profile = load(name, profiles_dir)
    rich = Rich()
    rich.print(f"[bold]{profile.name}[/]: {profile.title}")
    rich.print(f"served as {profile.served_as}; model: {profile.model.model_dump()}")
    table = Table("setting", "value", "reason", "source", show_lines=True)
    for key, entry in {**profile.vllm, **profile.environment}.items():
        table.add_row(key, str(entry.value), entry.reason, entry.source)
    rich.print(table)


@profiles.command("args")
def profile_args(name: str, profiles_dir: ProfilesDir = None) -> None:
    """The profile as stock vLLM's command-line arguments, one per line; builds the model if absent."""
    profile = load(name, profiles_dir)
    with Console().building(name) as progress:
        location = locate(profile, progress)
    typer.echo("\n".join(cli_args(profile, location)))


@profiles.command("check")
def check_profile(name: str, profiles_dir: ProfilesDir = None) -> None:
    """Let vLLM check the names and values; loads no model."""
    profile = load(name, profiles_dir)
    adapter = importlib.import_module("gateway.engines.vllm_adapter")
    adapter.parse_args(profile, "model")
    typer.echo(f"{name}: good")


@models.command("list")
def list_models() -> None:
    """What can be built, and what is there already."""
    table = Table("model", "what", "where")
    for name, recipe in registry.BUILDERS.items():
        folder = registry.model_dir(name)
        table.add_row(name, recipe.title, str(folder) if folder.is_dir() else "not built")
    Rich().print(table)


@models.command("build")
def build_model(
    name: str,
    force: Annotated[bool, typer.Option("--force", help="Build anew, whatever is there.")] = False,
) -> None:
    """Build a model into the cache folder ($GATEWAY_CACHE_DIR)."""
    with Console().building(name) as progress:
        folder = registry.build(name, progress, force=force)
    typer.echo(folder)


@models.command("verify")
def verify_model(name: str) -> None:
    """Compare every file with its checksum."""
    folder = registry.verify(name)
    typer.echo(f"{folder}: good")
