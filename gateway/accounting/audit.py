"""The audit log: what admins did, which keys changed, what was reloaded. A JSON line each.

Lines are written at once and in place: an admin's action is rare, and its line must not be lost with the
process. A log that cannot be written is reported and does not stop the action.
"""

import getpass
import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.asgi import Exchange
from gateway.policy.tenant import ANYBODY, Tenant
from gateway.settings import Settings

log = logging.getLogger(__name__)

FILE = "audit.jsonl"
MAX_ASKED = 2048  # characters of a request's body
REFUSED = (401, 403)


class Audit:
    """Appends lines; `path` None: nowhere."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.failing = False

    @classmethod
    def of(cls, settings: Settings) -> "Audit":
        given = settings.audit_log
        if given == Path("off"):
            return cls(None)
        return cls(settings.state / FILE if given is None else given.expanduser())

    def write(self, who: str, what: dict[str, Any]) -> None:
        """`who` is a key's id, or how somebody else came: `signal`, `file`, `cli:USER`."""
        if self.path is None:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "who": who, **what}, ensure_ascii=False) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(handle, line.encode())  # one call: lines of two processes do not mix
            finally:
                os.close(handle)
        except OSError as error:
            if not self.failing:
                log.error("the audit log %s cannot be written: %s", self.path, error.strerror)
            self.failing = True
            return
        self.failing = False

    def observe(self, exchange: Exchange) -> None:
        """A request on the admin listener: each change, and each attempt without the right key."""
        if exchange.method in ("GET", "HEAD") and exchange.status not in REFUSED:
            return
        tenant: Tenant = exchange.notes.get("tenant", ANYBODY)
        what = {
            "action": f"{exchange.method} {exchange.path}",
            "asked": exchange.notes.get("asked", ""),
            "status": exchange.status,
            "outcome": "ok" if 0 < exchange.status < 400 else "refused",
            "request_id": exchange.request_id,
        }
        self.write(tenant.key_id, what)


class NoteAsked:
    """Keeps what an admin's request asked for, for the audit log. Admin bodies hold no secrets."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["gateway.json"] is not None:
            asked = json.dumps(scope["gateway.json"], ensure_ascii=False)
            scope["gateway.exchange"].notes["asked"] = asked[:MAX_ASKED]
        await self.app(scope, receive, send)


def from_cli() -> str:
    """Who runs a command."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # a container's user has no name
        return f"cli:{os.getuid()}"
