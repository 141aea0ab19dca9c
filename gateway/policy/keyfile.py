"""The keys file: tenants, their limits, and the SHA-256 of each key. YAML, or JSON, which YAML includes.

A key is 256 random bits, so its plain SHA-256 cannot be guessed back: slow hashes are for passwords, which
people choose. The file may be read by others without opening anything (and a Kubernetes Secret is a file).
"""

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from gateway.policy.tenant import Limits, Priority, Tenant

PREFIXES = {
    False: "tg",
    True: "tga",
}  # tenant's, admin's: secret scanners and people tell them apart
SECRET_BYTES = 32
DEFAULT_TENANT = "default"  # of the static key, and of nobody where no key is asked for

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Count = Annotated[int, Field(ge=1)]


class KeysFileError(Exception):
    """The keys file cannot be used; the message says where and why, and holds no secret."""


class TenantEntry(BaseModel):
    """What a tenant may use, all its keys together. What is left out is not limited."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rpm: Count | None = None
    tpm: Count | None = None
    max_concurrent: Count | None = None
    daily_tokens: Count | None = None
    max_thinking: Annotated[int, Field(ge=0)] | None = None
    priority: Priority = "normal"
    models: tuple[str, ...] = ()
    weight: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] = 1.0

    def tenant(self, name: str, key_id: str) -> Tenant:
        limits = Limits(
            self.rpm, self.tpm, self.max_concurrent, self.daily_tokens, self.max_thinking
        )
        models = frozenset(self.models)
        return Tenant(name, key_id, limits, self.priority, models, self.weight)


class KeyEntry(BaseModel):
    """A key, by its hash. An admin key's `tenant` is only a name for the audit log."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Name
    tenant: Name
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    admin: bool = False
    created: AwareDatetime
    expires: AwareDatetime | None = None

    def expired(self, now: datetime) -> bool:
        return self.expires is not None and now >= self.expires


class KeysFile(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    tenants: dict[Name, TenantEntry] = Field(default_factory=dict)
    keys: tuple[KeyEntry, ...] = ()

    @model_validator(mode="after")
    def agree(self) -> "KeysFile":
        for key in self.keys:
            if not key.admin and key.tenant not in self.tenants:
                raise ValueError(f"key {key.id} is of tenant '{key.tenant}', which is not listed")
        for what in ("id", "sha256"):
            values = [getattr(key, what) for key in self.keys]
            if len(set(values)) < len(values):
                raise ValueError(f"two keys have the same {what}")
        return self


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def new_key(tenant: str, admin: bool, expires: datetime | None) -> tuple[str, KeyEntry]:
    """A fresh key, to be shown once, and its entry."""
    key_id = secrets.token_hex(4)
    key = f"{PREFIXES[admin]}-{key_id}-{secrets.token_urlsafe(SECRET_BYTES)}"
    created = datetime.now(UTC).replace(microsecond=0)
    entry = KeyEntry(
        id=key_id,
        tenant=tenant,
        sha256=digest(key),
        admin=admin,
        created=created,
        expires=expires,
    )
    return key, entry


def read(path: Path) -> KeysFile:
    """What the file says.

    Raises:
        KeysFileError: it cannot be read, is no YAML, or has something that does not fit.
    """
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
        return KeysFile.model_validate(given or {})
    except (OSError, UnicodeDecodeError) as error:
        raise KeysFileError(f"keys file {path}: {error}") from error
    except yaml.YAMLError as error:
        # Not the error's own text: it quotes the line.
        mark = getattr(error, "problem_mark", None)
        where = f" near line {mark.line + 1}" if mark else ""
        raise KeysFileError(f"keys file {path} is not YAML{where}") from error
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        told = first["msg"].removeprefix("Value error, ")
        raise KeysFileError(f"keys file {path}: {where}: {told}") from error


def write(path: Path, content: KeysFile) -> None:
    """Put the file in place whole or not at all, for its owner only."""
    data = content.model_dump(mode="json", exclude_none=True)
    text = (
        json.dumps(data, indent=2)
        if path.suffix == ".json"
        else yaml.safe_dump(data, sort_keys=False)
    )
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # made with 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself survives a power cut
    finally:
        os.close(folder)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Held while the file is read, changed and written: two writers would lose one's keys."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path.with_name(f".{path.name}.lock"), os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
