"""Commands that talk to a running gateway's admin listener: switch, operations, adapters, reload."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console as Rich
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from gateway.settings import Settings

POLL_S = 0.5
SHORT_S = 30

AdminUrl = Annotated[
    str | None,
    typer.Option(
        "--admin-url",
        help="Admin listener of the gateway, as http://127.0.0.1:8001. Default: by GATEWAY_ADMIN_HOST "
        "and GATEWAY_ADMIN_PORT, from the environment or .env, as is the key.",
    ),
]

Level = Annotated[str, typer.Argument(help="DEBUG, INFO, WARNING or ERROR.")]

operations = typer.Typer(help="Switches that run, and the last hundred.", no_args_is_help=True)
adapters = typer.Typer(help="LoRA adapters of a running model.", no_args_is_help=True)


class AdminError(Exception):
    """The gateway refused, or cannot be reached; the message says what to do."""


@contextmanager
def _admin(given: str | None) -> Iterator[httpx.Client]:
    settings = Settings()
    host = f"[{settings.admin_host}]" if ":" in settings.admin_host else settings.admin_host
    url = given or f"http://{host}:{settings.admin_port}"
    headers = {"content-type": "application/json"}
    if key := settings.admin_key or settings.api_key:
        headers["authorization"] = f"Bearer {key.get_secret_value()}"
    with httpx.Client(base_url=url, headers=headers, timeout=SHORT_S) as client:
        try:
            yield client
        except httpx.TransportError as error:
            raise AdminError(
                f"{url} does not answer ({error}). Is the gateway running? Its start screen names "
                "the admin listener; give it with --admin-url"
            ) from error


def _call(client: httpx.Client, method: str, path: str, **options: Any) -> dict[str, Any]:
    response = client.request(method, path, **options)
    try:
        body: dict[str, Any] = response.json()
    except ValueError as error:
        raise AdminError(
            f"{client.base_url} answered {response.status_code}, but not as a gateway's admin listener does"
        ) from error
    if response.is_error:
        raise AdminError(f"{response.status_code}: {body.get('detail', response.text)}")
    return body


def switch(
    name: Annotated[str, typer.Argument(help="The model's name, as in /v1/models.")],
    profile: Annotated[str, typer.Argument(help="The profile that shall serve it.")],
    way: Annotated[
        str, typer.Option(help="auto, blue_green, park or in_place; see docs/switching.md.")
    ] = "auto",
    wait: Annotated[
        bool, typer.Option(help="Watch it to its end; Ctrl-C leaves it running.")
    ] = True,
    admin_url: AdminUrl = None,
) -> None:
    """Put another profile in the place of the one that serves a model, without a failed request."""
    with _admin(admin_url) as client:
        body = {"profile": profile, "way": way}
        begun = _call(client, "POST", f"/admin/models/{name}/switch", json=body)
        typer.echo(f"{begun['id']}: {name}: {begun['from_profile']} -> {profile}")
        if not wait:
            return
        ended = _watch(client, begun["id"])
    _report(ended)
    if ended["state"] != "succeeded":
        raise typer.Exit(1)


def _watch(client: httpx.Client, operation_id: str) -> dict[str, Any]:
    """Show the phases until the operation ends."""
    rich = Rich(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    seen = ""
    with Progress(*columns, console=rich, transient=True) as progress:
        task = progress.add_task("queued", total=None)
        while True:
            body = _call(client, "GET", f"/admin/operations/{operation_id}")
            if body["state"] != "running":
                return body
            if body["phase"] != seen:
                seen = body["phase"]
                progress.reset(task)
                if not rich.is_terminal:
                    typer.echo(_line(body), err=True)
            progress.update(task, description=escape(_line(body)))
            time.sleep(POLL_S)


def _line(body: dict[str, Any]) -> str:
    """The phase in words."""
    text = str(body["phase"]).replace("_", " ")
    if body["way"]:
        text = f"{body['way']}: {text}"
    if body["phase_detail"]:
        text += f": {body['phase_detail']}"
    if body["phase_expected_s"]:
        text += f" (usually {body['phase_expected_s']:.0f} s)"
    return text


def _report(body: dict[str, Any]) -> None:
    """How it ended, phase by phase."""
    spent = ", ".join(
        f"{phase} {seconds:.1f} s" for phase, seconds in body["phase_seconds"].items()
    )
    typer.echo(f"{body['state']}: {body['way'] or 'no way taken'} ({body['why'] or '-'}); {spent}")
    for note in body["notes"]:
        typer.echo(f"note: {note}")
    if body["error"]:
        typer.echo(f"error: {body['error']}")


@operations.command("list")
def list_operations(admin_url: AdminUrl = None) -> None:
    """A line each, the newest first."""
    with _admin(admin_url) as client:
        rows = _call(client, "GET", "/admin/operations")["data"]
    for row in rows:
        change = f"{row['model']}: {row['from_profile']} -> {row['to_profile']}"
        how = row["phase"] if row["state"] == "running" else row["state"]
        typer.echo(
            f"{row['id']}  {change}  {row['way'] or '-'}  {how}  {row['error'] or ''}".rstrip()
        )
    if not rows:
        typer.echo("none since the gateway started")


@operations.command("watch")
def watch_operation(operation_id: str, admin_url: AdminUrl = None) -> None:
    """Follow a running switch to its end."""
    with _admin(admin_url) as client:
        ended = _watch(client, operation_id)
    _report(ended)
    if ended["state"] != "succeeded":
        raise typer.Exit(1)


@operations.command("cancel")
def cancel_operation(operation_id: str, admin_url: AdminUrl = None) -> None:
    """Call a switch off; returns when everything is as it was."""
    with _admin(admin_url) as client:
        path = f"/admin/operations/{operation_id}/cancel"
        _report(_call(client, "POST", path, timeout=None))


@adapters.command("list")
def list_adapters(model: str, admin_url: AdminUrl = None) -> None:
    """Which are loaded, and which may be."""
    with _admin(admin_url) as client:
        body = _call(client, "GET", f"/admin/models/{model}/adapters")
    typer.echo(f"loaded: {', '.join(body['adapters']) or 'none'}")
    typer.echo(f"available: {', '.join(body['available']) or 'none'}")


@adapters.command("load")
def load_adapter(model: str, adapter: str, admin_url: AdminUrl = None) -> None:
    """Load a subfolder of GATEWAY_ADAPTERS_DIR; its name is then a model."""
    with _admin(admin_url) as client:
        path = f"/admin/models/{model}/adapters"
        body = _call(client, "POST", path, json={"adapter": adapter}, timeout=None)
    typer.echo(f"loaded: {', '.join(body['adapters'])}")


@adapters.command("unload")
def unload_adapter(model: str, adapter: str, admin_url: AdminUrl = None) -> None:
    """Forget an adapter; requests that use it finish."""
    with _admin(admin_url) as client:
        body = _call(client, "DELETE", f"/admin/models/{model}/adapters/{adapter}", timeout=None)
    typer.echo(f"loaded: {', '.join(body['adapters']) or 'none'}")


def log_level(level: Level, admin_url: AdminUrl = None) -> None:
    """Log more or less, until the next reload or restart: DEBUG, INFO, WARNING or ERROR."""
    with _admin(admin_url) as client:
        body = _call(client, "PUT", "/admin/log_level", json={"level": level.upper()})
    typer.echo(f"the log level is {body['level']}")


def reload(admin_url: AdminUrl = None) -> None:
    """Let the gateway read settings and profiles anew, as SIGHUP does."""
    with _admin(admin_url) as client:
        body = _call(client, "POST", "/admin/reload")
    for line in body["changed"]:
        typer.echo(f"changed: {line}")
    for entry in body["refused"]:
        typer.echo(f"refused: {entry['name']}: {entry['reason']}")
    if not body["changed"] and not body["refused"]:
        typer.echo("nothing differs")
