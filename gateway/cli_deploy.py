"""`gateway deploy`: all of a deployment in one command, or nothing of it."""

import enum
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from gateway.console import Console
from gateway.deploy import containers, local
from gateway.deploy.config import DeployError, Deployment, read
from gateway.deploy.steps import NotUndone, Step, carry_out


class Kind(enum.StrEnum):
    LOCAL = "local"
    COMPOSE = "compose"
    HELM = "helm"


TARGETS: dict[Kind, Callable[[Deployment], list[Step]]] = {
    Kind.LOCAL: local.steps,
    Kind.COMPOSE: containers.compose,
    Kind.HELM: containers.helm,
}


def deploy(
    target: Annotated[Kind, typer.Option(help="Where: a process here, Docker Compose, Helm.")],
    config: Annotated[Path, typer.Option(help="The file; docs/deployment_guide.md has its form.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; touch nothing.")
    ] = False,
) -> None:
    """Check, write the configuration, deploy, validate, report. What fails is rolled back: exit status 1."""
    steps = TARGETS[target](read(config))
    if dry_run:
        for number, step in enumerate(steps, 1):
            typer.echo(f"{number}. {step.plan}")
        return
    console = Console()
    try:
        carry_out(steps, console.say)
    except NotUndone:
        console.fail("rolled back in part only: see to what is named last, because:")
        raise
    except DeployError:
        console.fail("rolled back: everything is as it was before, because:")
        raise
    console.say(f"deployed: {target}")
