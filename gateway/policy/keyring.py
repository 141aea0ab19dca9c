"""Which key is whose. Holds what the keys file says, and takes over a new version of it while it runs."""

import asyncio
import hashlib
import hmac
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gateway.policy import keyfile
from gateway.policy.keyfile import DEFAULT_TENANT, KeyEntry, KeysFile, KeysFileError, TenantEntry
from gateway.policy.tenant import Tenant
from gateway.settings import Settings

log = logging.getLogger(__name__)

POLL_S = 2.0
Stamp = tuple[int, ...] | None  # of a version of the file; None: there is no file
UNREAD: Stamp = (-1,)  # no file's stamp
STATIC = "static"  # id of the key in GATEWAY_API_KEY
Told = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Identity:
    """What a key turned out to be, and which listeners it opens."""

    tenant: Tenant
    api: bool = True
    admin: bool = False
    expires: datetime | None = None


class Keyring:
    """Looked up by the SHA-256 of the whole key; everything that is not in it is refused."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.content = KeysFile()
        self.identities: dict[bytes, Identity] = {}
        self.has_admin = False
        self.told: Told = lambda changes: None  # of each change, for the audit log
        self._seen: Stamp = None

    def load(self) -> None:
        """Read the file of the settings; a start without a readable one would lock everybody out.

        Raises:
            KeysFileError: it cannot be used; what was in force stays.
        """
        self.adopt(*self.read(self.settings))

    @staticmethod
    def read(settings: Settings) -> tuple[KeysFile, Stamp]:
        """What those settings' file says, and which version that is or a later one; without one no keys.

        Raises:
            KeysFileError: it cannot be used.
        """
        stamp = _stamp(settings.keys_file)
        return KeysFile() if settings.keys_file is None else keyfile.read(settings.keys_file), stamp

    def adopt(self, content: KeysFile, stamp: Stamp) -> list[str]:
        """Take it over by one assignment; returns what is new and gone, by key id.

        With the `stamp` of that version, so that the watch sees one that came meanwhile: an older one may be
        taken over behind it, by whoever was reading when the file changed.
        """
        self._seen = stamp
        changes = _changes(self.content, content)
        entries = {bytes.fromhex(key.sha256): _identity(key, content) for key in content.keys}
        self.content, self.identities = content, entries
        self.has_admin = any(key.admin for key in content.keys)
        return changes

    async def watch(self) -> None:
        """Look whether the file changed; runs until it is cancelled. A broken one changes nothing."""
        while True:
            await asyncio.sleep(POLL_S)
            try:
                await self.poll()
            except Exception:  # whatever it was: a watch that ended would leave revoked keys valid
                self._seen = UNREAD
                log.exception("the keys file could not be taken over; it is tried again")

    async def poll(self) -> None:
        """Take over the file if it is another one than before."""
        stamp = await asyncio.to_thread(_stamp, self.settings.keys_file)
        if stamp == self._seen:
            return
        self._seen = stamp  # of a broken one, too: it is told once
        try:
            changes = self.adopt(*await asyncio.to_thread(self.read, self.settings))
        except KeysFileError as error:
            log.error("the keys in force stay as they are: %s", error)
            self.told({"action": "keys file refused", "outcome": str(error)})
            return
        log.warning("keys file read anew: %s", "; ".join(changes) or "nothing differs")
        self.told({"action": "keys file read", "changes": changes, "outcome": "ok"})

    @property
    def closed(self) -> bool:
        """A key is asked for."""
        settings = self.settings
        return bool(settings.api_key or settings.keys_file or settings.jwt_issuer)

    def find(self, key: bytes) -> Identity | None:
        """Whose key it is, expired or not; None: nobody's."""
        given = hashlib.sha256(key).digest()
        static = self.settings.api_key
        if static is not None:
            wanted = hashlib.sha256(static.get_secret_value().encode()).digest()
            if hmac.compare_digest(given, wanted):
                # Whoever has it was everything before there were kinds of keys; an admin key ends that.
                tenant = self.tenant(DEFAULT_TENANT, STATIC)
                return Identity(tenant, admin=not self.has_admin)
        # A dictionary's time could tell how a digest begins; nobody can choose what theirs begins with.
        return self.identities.get(given)

    def tenant(self, name: str, key_id: str) -> Tenant:
        """The tenant of that name with its limits; unknown ones have none."""
        return self.content.tenants.get(name, TenantEntry()).tenant(name, key_id)


def _identity(key: KeyEntry, content: KeysFile) -> Identity:
    entry = TenantEntry() if key.admin else content.tenants[key.tenant]
    tenant = entry.tenant(key.tenant, key.id)
    return Identity(tenant, api=not key.admin, admin=key.admin, expires=key.expires)


def expired(identity: Identity) -> bool:
    return identity.expires is not None and datetime.now(UTC) >= identity.expires


def _stamp(path: Path | None) -> Stamp:
    """Tells one version of a file from the next; a Secret's mount swaps a link, so the inode counts."""
    if path is None:
        return None
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_ino, found.st_size


def _changes(before: KeysFile, after: KeysFile) -> list[str]:
    old, new = ({key.id: key for key in content.keys} for content in (before, after))
    lines = [f"key {name} of {new[name].tenant} is new" for name in sorted(new.keys() - old)]
    lines += [f"key {name} of {old[name].tenant} is gone" for name in sorted(old.keys() - new)]
    lines += [
        f"key {name} of {new[name].tenant} is changed"
        for name in sorted(new.keys() & old)
        if new[name] != old[name]
    ]
    tenants = before.tenants.keys() | after.tenants
    lines += [
        f"tenant {name} is changed"
        for name in sorted(tenants)
        if before.tenants.get(name) != after.tenants.get(name)
    ]
    return lines
