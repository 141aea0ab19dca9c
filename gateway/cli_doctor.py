"""`gateway doctor`: looks at machine, settings, models and services; loads nothing, changes nothing."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console as Rich
from rich.markup import escape

from engine_config.hardware import here
from gateway.doctor.finding import Finding, Level, fail, good, worst
from gateway.doctor.machine import machine
from gateway.doctor.models import models
from gateway.doctor.place import place
from gateway.doctor.services import services
from gateway.settings import Settings, complaints

STYLES = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
    checksums: Annotated[
        bool, typer.Option("--checksums", help="Read every byte of built models, too.")
    ] = False,
    profile: Annotated[
        list[str] | None,
        typer.Option("--profile", help="In place of GATEWAY_PROFILES; may be given again."),
    ] = None,
    tls: Annotated[
        list[str] | None,
        typer.Option("--tls", help="HOST or HOST:PORT whose certificate to look at: your proxy."),
    ] = None,
) -> None:
    """Would the gateway start and serve here? A line for each thing, with a remedy. Exit status 1: no."""
    findings = list(diagnose(profile or (), checksums, tls or ()))
    if as_json:
        body = {"status": worst(findings), "findings": [asdict(each) for each in findings]}
        typer.echo(json.dumps(body, indent=2))
    else:
        show(findings)
    raise typer.Exit(1 if worst(findings) is Level.FAIL else 0)


def diagnose(profiles: Sequence[str], checksums: bool, tls: Sequence[str]) -> Iterator[Finding]:
    """All findings, in the order in which a start would meet them. Seconds at most."""
    hardware = here()
    yield from machine(hardware)
    try:
        settings = Settings.of(**({"profiles": tuple(profiles)} if profiles else {}))
    except ValidationError as error:
        for line in complaints(error):
            yield fail("settings", line, "docs/settings.md has each; then run the doctor again.")
        return
    yield good("settings", "valid")
    yield from place(settings)
    yield from models(settings, hardware, checksums)
    yield from services(settings, tls)


def show(findings: Sequence[Finding]) -> None:
    rich = Rich(highlight=False, soft_wrap=True)
    width = max(len(each.name) for each in findings)
    for each in findings:
        style = STYLES[each.level]
        line = f"[{style}]{each.level:<5}[/]{escape(each.name):<{width}}  {escape(each.told)}"
        rich.print(line)
        if each.remedy:
            rich.print(f"{'':<5}{'':<{width}}  -> {escape(each.remedy)}")
    counts = [f"{sum(each.level is level for each in findings)} {level}" for level in Level]
    rich.print(", ".join(counts))
