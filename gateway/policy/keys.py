"""The key check: who calls, and whether that kind of key opens this listener."""

from typing import Literal

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.errors import PermissionDenied, Unauthorized
from gateway.observability.spans import trace_of
from gateway.policy.keyring import Identity, Keyring, expired
from gateway.policy.oidc import Tokens, looks_like_token
from gateway.policy.salt import SALTED_FOR
from gateway.policy.tenant import ANYBODY
from gateway.settings import Settings
from gateway.web import ADMIN_FILES, PUBLIC_FILES

# What answers without a key: probes, and the files of the pages, which hold nothing of anybody. Everything
# else is closed, also what does not exist.
PROBES = frozenset({"/health", "/health/live", "/health/ready", "/ping"})
PUBLIC = PROBES | PUBLIC_FILES.keys() | ADMIN_FILES.keys()
METRICS = "/metrics"


class RequireKey:
    """Asks for a key on every path that is not public, and says whose it is.

    Decides on `scope["path"]`, never on a URL built from `Host` (CVE-2026-48746, CVE-2026-48710).
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        keyring: Keyring,
        listener: Literal["public", "admin"] = "public",
    ) -> None:
        self.app = app
        self.settings = settings
        self.keyring = keyring
        self.admin = listener == "admin"
        self.tokens = Tokens(settings, keyring) if settings.jwt_issuer else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._open(scope["path"]):
            notes = scope["gateway.exchange"].notes
            tenant = ANYBODY
            with trace_of(notes).child("auth"):
                if self.keyring.closed:
                    tenant = (await self._identity(dict(scope["headers"]), scope)).tenant
                    SALTED_FOR.set(tenant.name)  # each request runs in a context of its own
            scope["gateway.tenant"] = notes["tenant"] = tenant
        await self.app(scope, receive, send)

    def _open(self, path: str) -> bool:
        return path in PUBLIC or (self.admin and path == METRICS and self.settings.metrics_open)

    async def _identity(self, headers: dict[bytes, bytes], scope: Scope) -> Identity:
        given = _presented(headers)
        if not given:
            raise Unauthorized("a key is required: send 'Authorization: Bearer YOUR_KEY'")
        identity = self.keyring.find(given)
        if identity is None and self.tokens is not None and looks_like_token(given):
            identity = await self.tokens.find(given)
        if identity is None:
            raise Unauthorized("the key is not valid")
        if expired(identity):
            raise Unauthorized("the key has expired")
        if not (identity.admin if self.admin else identity.api):
            # Noted all the same: the audit log tells who tried.
            scope["gateway.exchange"].notes["tenant"] = identity.tenant
            kind = "an admin key" if self.admin else "a tenant's key"
            raise PermissionDenied(f"this listener takes {kind}; yours is of the other kind")
        return identity


def _presented(headers: dict[bytes, bytes]) -> bytes:
    """`Authorization: Bearer KEY`, or `x-api-key: KEY` as Anthropic's SDK sends it."""
    scheme, _, bearer = headers.get(b"authorization", b"").partition(b" ")
    return bearer.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
