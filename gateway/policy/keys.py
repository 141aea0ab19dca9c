"""The static key. Many keys with tenants and limits come with `gateway keys`; the check stays here."""

import hashlib
import hmac

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.errors import Unauthorized
from gateway.settings import Settings

# What answers without a key: probes only. Everything else is closed, also what does not exist.
PUBLIC = frozenset({"/health", "/health/live", "/health/ready", "/ping"})


class RequireKey:
    """Asks for the key on every path that is not public.

    Decides on `scope["path"]`, never on a URL built from `Host` (CVE-2026-48746, CVE-2026-48710).
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        key = settings.api_key
        self.digest = hashlib.sha256(key.get_secret_value().encode()).digest() if key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.digest and scope["path"] not in PUBLIC:
            self._check(dict(scope["headers"]))
        await self.app(scope, receive, send)

    def _check(self, headers: dict[bytes, bytes]) -> None:
        """`Authorization: Bearer KEY`, or `x-api-key: KEY` as Anthropic's SDK sends it."""
        scheme, _, bearer = headers.get(b"authorization", b"").partition(b" ")
        given = bearer.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
        if not given:
            raise Unauthorized("a key is required: send 'Authorization: Bearer YOUR_KEY'")
        assert self.digest is not None
        if not hmac.compare_digest(hashlib.sha256(given).digest(), self.digest):
            raise Unauthorized("the key is not valid")
