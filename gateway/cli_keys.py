"""`gateway keys` writes the keys file; `gateway usage` reads what was used; no gateway need run."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console as Rich
from rich.table import Table

from gateway.accounting.audit import Audit, from_cli
from gateway.accounting.store import COUNTS, GROUPS, UsageError, UsageStore, url_of
from gateway.policy import keyfile
from gateway.policy.keyfile import KeyEntry, KeysFile, KeysFileError, TenantEntry
from gateway.policy.tenant import Priority
from gateway.routes.admin_usage import SPAN, UNITS, since_of
from gateway.settings import Settings

keys = typer.Typer(help="Tenants and their keys, in GATEWAY_KEYS_FILE.", no_args_is_help=True)

File = Annotated[
    Path | None, typer.Option("--file", help="The keys file. Default: GATEWAY_KEYS_FILE.")
]
OPTIONS = (
    "rpm",
    "tpm",
    "max_concurrent",
    "daily_tokens",
    "max_thinking",
    "priority",
    "weight",
    "models",
)


def _path(given: Path | None) -> Path:
    path = given or Settings().keys_file
    if path is None:
        raise KeysFileError("which keys file? Set GATEWAY_KEYS_FILE, or give --file")
    return path


def _read(path: Path) -> KeysFile:
    return keyfile.read(path) if path.exists() else KeysFile()


def _audit(audit: Audit, action: str, key: KeyEntry) -> None:
    kind = "admin" if key.admin else "tenant"
    what = {"action": action, "key_id": key.id, "tenant": key.tenant, "kind": kind, "outcome": "ok"}
    audit.write(from_cli(), what)


def _when(text: str | None) -> datetime | None:
    """`90d` from now, or a date in ISO form; None or `never`: it does not expire."""
    if text is None or text == "never":
        return None
    if span := SPAN.fullmatch(text):
        at = datetime.now(UTC) + timedelta(**{UNITS[span[2]]: int(span[1])})
        return at.replace(microsecond=0)
    try:
        return since_of(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is neither a span as 90d nor a date") from error


@keys.command("create")
def create(  # noqa: PLR0913 - a command's options
    tenant: Annotated[str, typer.Option(help="Whose key it is; made if it is not there yet.")],
    rpm: Annotated[int | None, typer.Option(min=1, help="Requests per minute.")] = None,
    tpm: Annotated[
        int | None, typer.Option(min=1, help="Tokens per minute, prompt and output.")
    ] = None,
    max_thinking: Annotated[
        int | None, typer.Option(min=0, help="Thinking tokens of one request.")
    ] = None,
    max_concurrent: Annotated[int | None, typer.Option(min=1, help="Requests at once.")] = None,
    daily_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens per UTC day.")] = None,
    priority: Annotated[Priority | None, typer.Option(help="Default: normal.")] = None,
    weight: Annotated[
        float | None,
        typer.Option(
            min=0.001, max=1000, help="Share of an engine against other tenants. Default: 1."
        ),
    ] = None,
    models: Annotated[
        str | None, typer.Option(help="Names, comma-separated. Default: all.")
    ] = None,
    expires: Annotated[str | None, typer.Option(help="As 90d, or a date. Default: never.")] = None,
    admin: Annotated[
        bool, typer.Option("--admin", help="For the admin listener; it opens nothing else.")
    ] = False,
    file: File = None,
) -> None:
    """Make a key and print it, once. Limits given are the tenant's, for all its keys; others stay."""
    given = {
        "rpm": rpm,
        "tpm": tpm,
        "max_thinking": max_thinking,
        "max_concurrent": max_concurrent,
        "daily_tokens": daily_tokens,
        "priority": priority,
        "weight": weight,
        "models": None if models is None else tuple(filter(None, models.split(","))),
    }
    limits = {name: value for name, value in given.items() if value is not None}
    if admin and limits:
        raise typer.BadParameter("an admin key has no limits; leave them out")
    path, audit = _path(file), Audit.of(Settings())
    with keyfile.locked(path):
        content = _read(path)
        key, entry = keyfile.new_key(tenant, admin, _when(expires))
        tenants = content.tenants
        if not admin:
            known = tenants.get(tenant, TenantEntry()).model_dump()
            tenants = {**tenants, tenant: TenantEntry(**{**known, **limits})}
        keyfile.write(path, KeysFile(tenants=tenants, keys=(*content.keys, entry)))
    _audit(audit, "key created", entry)
    _show(key, entry)


def _show(key: str, entry: KeyEntry) -> None:
    """The key alone on stdout, so that it can be piped into a secret store."""
    typer.echo(key)
    typer.echo(f"key {entry.id} of {entry.tenant}; it is not shown again", err=True)


@keys.command("list")
def list_keys(file: File = None) -> None:
    """Tenants with their limits, and their keys by id."""
    content = keyfile.read(_path(file))
    now = datetime.now(UTC)
    table = Table("tenant", "key", "kind", "created", "expires", "limits")
    for key in content.keys:
        expires = f"{key.expires:%Y-%m-%d %H:%M}" if key.expires else "never"
        limits = {} if key.admin else content.tenants[key.tenant].model_dump(exclude_defaults=True)
        table.add_row(
            key.tenant,
            key.id,
            "admin" if key.admin else "tenant",
            f"{key.created:%Y-%m-%d}",
            f"{expires} (expired)" if key.expired(now) else expires,
            ", ".join(f"{name} {_plain(limits[name])}" for name in OPTIONS if name in limits),
        )
    Rich().print(table)


def _plain(value: Any) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value)


def _named(content: KeysFile, key_id: str) -> KeyEntry:
    for key in content.keys:
        if key.id == key_id:
            return key
    raise KeysFileError(f"no key {key_id}; `gateway keys list` shows those there are")


@keys.command("revoke")
def revoke(key_id: str, file: File = None) -> None:
    """Take a key away; a running gateway refuses it within seconds."""
    path, audit = _path(file), Audit.of(Settings())
    with keyfile.locked(path):
        content = keyfile.read(path)
        gone = _named(content, key_id)
        left = tuple(key for key in content.keys if key is not gone)
        keyfile.write(path, content.model_copy(update={"keys": left}))
    _audit(audit, "key revoked", gone)
    typer.echo(f"revoked: key {gone.id} of {gone.tenant}", err=True)


@keys.command("rotate")
def rotate(
    key_id: str,
    grace: Annotated[
        str, typer.Option(help="How long the old key still works, as 24h; 0s: not at all.")
    ] = "24h",
    expires: Annotated[str | None, typer.Option(help="Of the new key.")] = None,
    file: File = None,
) -> None:
    """Make a new key in a key's place and print it, once; the old one ends after the grace period."""
    path, audit = _path(file), Audit.of(Settings())
    with keyfile.locked(path):
        content = keyfile.read(path)
        old = _named(content, key_id)
        ends = [end for end in (_when(grace), old.expires) if end is not None]
        ending = old.model_copy(update={"expires": min(ends, default=None)})
        key, entry = keyfile.new_key(old.tenant, old.admin, _when(expires))
        kept = tuple(ending if each is old else each for each in content.keys)
        keyfile.write(path, content.model_copy(update={"keys": (*kept, entry)}))
    _audit(audit, f"key rotated, in place of {old.id}", entry)
    _show(key, entry)


def usage(
    by: Annotated[str, typer.Option(help=f"{', '.join(GROUPS)}.")] = "tenant",
    since: Annotated[str, typer.Option(help="A span as 24h or 7d, or a date.")] = "24h",
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Requests and tokens since then, from the database in GATEWAY_USAGE_URL."""
    if by not in GROUPS:
        raise typer.BadParameter(f"--by takes {', '.join(GROUPS)}")
    url = url_of(Settings())
    if url is None:
        raise UsageError("no usage is kept: GATEWAY_USAGE_URL is off")
    try:
        start = since_of(since)
    except ValueError as error:
        raise typer.BadParameter(
            f"--since {since!r} is neither a span as 24h nor a date"
        ) from error
    store = UsageStore(url)
    try:
        rows = store.summary(by, start)
    finally:
        store.close()
    if as_json:
        typer.echo(json.dumps(rows))
        return
    table = Table(by, "requests", "failed", *(name.replace("_", " ") for name in COUNTS))
    for row in rows:
        table.add_row(
            *(f"{value:,}" if isinstance(value, int) else str(value) for value in row.values())
        )
    Rich().print(table)
