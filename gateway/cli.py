"""The `gateway` command."""

import os
import signal
import sys
from typing import Annotated, Any

import typer
import uvloop
from pydantic import ValidationError

from engine_config.build.cache import ModelCacheError
from engine_config.fitting import suggestion
from engine_config.hardware import here
from engine_config.profile import ProfileError, available, load
from gateway import __version__, cli_admin
from gateway.accounting.store import UsageError
from gateway.cli_calibrate import calibrate, questions
from gateway.cli_deploy import deploy
from gateway.cli_doctor import doctor
from gateway.cli_keys import keys, usage
from gateway.cli_models import models
from gateway.cli_profiles import profiles
from gateway.cli_validate import validate
from gateway.console import Console
from gateway.deploy.config import DeployError
from gateway.engines.catalogue import Catalogue
from gateway.engines.fleet import EngineStartFailed, Fleet
from gateway.observability import logs
from gateway.policy.keyfile import KeysFileError
from gateway.questions import QuestionsError
from gateway.serve import Service, build_fleet
from gateway.settings import Settings, complaints
from gateway.tls import CertificateError
from gateway.validate.target import TargetError

app = typer.Typer(
    help="A reasoning gateway on vLLM: OpenAI-compatible and native APIs, one hop from the engine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(profiles, name="profiles")
app.add_typer(models, name="models")
app.command("doctor")(doctor)
app.command("validate")(validate)
app.command("deploy")(deploy)
app.command("calibrate")(calibrate)
app.command("questions")(questions)
app.add_typer(keys, name="keys")
app.command("usage")(usage)
app.command("switch")(cli_admin.switch)
app.command("reload")(cli_admin.reload)
app.command("log-level")(cli_admin.log_level)
app.add_typer(cli_admin.operations, name="operations")
app.add_typer(cli_admin.adapters, name="adapters")

USERS_ERRORS = (
    ProfileError,
    ModelCacheError,
    QuestionsError,
    KeysFileError,
    UsageError,
    CertificateError,
    TargetError,
    OSError,
)


def main() -> None:
    """Run the command; what the user can mend is one sentence, not a stack trace."""
    try:
        app()
    except USERS_ERRORS as error:
        Console().fail(str(error))
        raise SystemExit(2) from error
    except (EngineStartFailed, cli_admin.AdminError, DeployError) as error:
        Console().fail(str(error))
        raise SystemExit(1) from error
    except ValidationError as error:
        for line in complaints(error):
            Console().fail(line)
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
    # Until there is a loop to reload in, what `systemctl reload` sends would end the process.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    given: dict[str, Any] = {
        "profiles": profile,
        "host": host,
        "port": port,
        "admin_port": admin_port,
    }
    settings = Settings.of(**{name: value for name, value in given.items() if value is not None})
    logs.configure(settings)
    console = Console()
    console.say(suggestion(map(load, available()), here()))
    fleet, catalogue = build_fleet(settings, console)
    uvloop.run(_run(settings, console, fleet, catalogue))


async def _run(settings: Settings, console: Console, fleet: Fleet, catalogue: Catalogue) -> None:
    await Service(settings, console, fleet, catalogue).run()
    # A download or a load that was called off sits in a thread that nobody can cancel, and Python waits for
    # threads. All that must be written is written.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)
