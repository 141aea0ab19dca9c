"""Ports, the keys file, and the folders that are written to."""

import os
import shutil
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx

from engine_config.build.cache import cache_root
from engine_config.hardware import GIB
from gateway.doctor.finding import Finding, fail, good, warn
from gateway.policy import keyfile
from gateway.policy.keyfile import KeysFile, KeysFileError
from gateway.serve import bind
from gateway.settings import Settings

ASK_S = 2.0
SOON = timedelta(days=14)
ROOM = GIB  # usage rows and the audit log of months
NO_ROOM = GIB // 10
OTHERS = stat.S_IRWXG | stat.S_IRWXO
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def place(settings: Settings) -> Iterator[Finding]:
    scheme = "https" if settings.tls_cert else "http"
    yield port("port", settings.host, settings.port, scheme)
    yield port("admin port", settings.admin_host, settings.admin_port)
    yield from keys(settings, datetime.now(UTC))
    yield folder("state folder", settings.state, "GATEWAY_STATE_DIR")
    yield folder("model cache", cache_root(), "GATEWAY_CACHE_DIR")


def port(name: str, host: str, number: int, scheme: str = "http") -> Finding:
    where = f"{host}:{number}"
    try:
        bind(host, number).close()
    except OSError as error:
        if told := _gateway_there(host, number, scheme):
            remedy = "Nothing to do if that is the one; a second one needs another port."
            return warn(name, f"{where}: {told}", remedy)
        remedy = f"`ss -ltnp 'sport = :{number}'` says who has it; or choose another port."
        return fail(name, f"{where}: {error.__cause__ or error}", remedy)
    return good(name, f"{where} is free")


def _gateway_there(host: str, number: int, scheme: str) -> str | None:
    """What a gateway that already listens there says of itself."""
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    base = f"{scheme}://[{here}]:{number}" if ":" in here else f"{scheme}://{here}:{number}"
    try:
        # Its certificate is for the name callers use, not for this address; nothing secret is sent.
        body = httpx.get(f"{base}/health/live", timeout=ASK_S, verify=False)
    except httpx.HTTPError:
        return None
    return "a gateway answers there" if "x-request-id" in body.headers else None


def keys(settings: Settings, now: datetime) -> Iterator[Finding]:
    path = settings.keys_file
    if path is None:
        how = (
            "one key for all callers" if settings.api_key else "none, so only this machine may call"
        )
        yield good("keys", how)
        return
    try:
        content = keyfile.read(path)
    except KeysFileError as error:
        yield fail("keys", str(error), "Mend it, or begin anew: `gateway keys create --help`.")
        return
    yield key_mode(path, os.geteuid())
    yield key_dates(content, now)


def key_mode(path: Path, user: int) -> Finding:
    """Others who write it make keys; others who read it learn names and digests, no key.

    Of somebody else's file a group may read: so `user` (this process's) reads what Kubernetes mounts.
    """
    status = path.stat()
    mode = stat.S_IMODE(status.st_mode)
    told = f"{path} has mode {mode:04o}"
    remedy = f"chmod 600 {path}"
    if status.st_uid != user:
        remedy = f"Its owner: chmod 440 {path}; a mounted Secret: defaultMode 0440 and an fsGroup."
        mode &= ~stat.S_IRGRP
    if mode & OTHERS_WRITE:
        return fail("keys file", f"{told}: others can add keys", remedy)
    if mode & OTHERS:
        return warn("keys file", f"{told}: others can read it", remedy)
    return good("keys file", told)


def key_dates(content: KeysFile, now: datetime) -> Finding:
    usable = [key for key in content.keys if not key.expired(now)]
    if not usable:
        return fail("keys", "none in it is valid", "Make one: `gateway keys create --tenant NAME`.")
    soon = [key.id for key in usable if key.expires is not None and key.expires - now < SOON]
    if soon:
        told = f"{len(usable)} valid; {', '.join(soon)} ends within {SOON.days} days"
        return warn("keys", told, "Replace it: `gateway keys rotate ID`.")
    return good("keys", f"{len(usable)} valid, {len(content.keys) - len(usable)} expired")


def folder(name: str, path: Path, variable: str) -> Finding:
    """Writable, or can be made; and how much room its disk has."""
    there = next(each for each in (path, *path.parents) if each.exists())
    remedy = f"Make {there} writable for this user, or set {variable}."
    if not there.is_dir():
        return fail(name, f"{there} is no folder", f"Remove it, or set {variable}.")
    if not os.access(there, os.W_OK | os.X_OK):
        return fail(name, f"{there} cannot be written", remedy)
    free = shutil.disk_usage(there).free
    told = f"{path}, {free / GIB:.1f} GiB free"
    if free < NO_ROOM:
        return fail(name, told, f"Make room, or set {variable} to a folder on another disk.")
    if free < ROOM:
        return warn(name, told, f"Make room, or set {variable} to a folder on another disk.")
    return good(name, told)
