"""Which names a listener may be called by."""

import ipaddress
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.errors import PermissionDenied
from gateway.policy.keyring import Keyring

Trusted = Callable[[], tuple[str, ...]]  # read at each request, since a reload may change it


class KnownHost:
    """Refuses a `Host` that is not `trusted`; probes are answered under any name.

    With no trusted names any will do where a key is asked for. Without a key only this machine may call; but
    a web page may have its own name point here, and its browser then sends that name in `Host` (DNS
    rebinding). An address or `localhost` cannot be pointed.
    """

    def __init__(
        self,
        app: ASGIApp,
        keyring: Keyring,
        trusted: Trusted = lambda: (),
        open_paths: frozenset[str] = frozenset(),
    ) -> None:
        self.app = app
        self.keyring = keyring
        self.trusted = trusted
        self.open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self.open_paths:
            self._check(dict(scope["headers"]).get(b"host", b"").decode("latin-1"))
        await self.app(scope, receive, send)

    def _check(self, given: str) -> None:
        name = _name(given)
        if trusted := self.trusted():
            if not any(_matches(name, each) for each in trusted):
                raise PermissionDenied(
                    f"this listener is not called {given[:200]!r} (setting GATEWAY_TRUSTED_HOSTS)"
                )
        elif not self.keyring.closed and not _ours(name):
            raise PermissionDenied(
                f"without a key this listener answers to an address or localhost, not to {given[:200]!r}"
            )


def _name(host: str) -> str:
    """Without port and brackets, in small letters."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    return name.removeprefix("[").removesuffix("]").lower()


def _matches(name: str, trusted: str) -> bool:
    """`*.example.com` is every name below it, not itself."""
    if trusted.startswith("*."):
        return name.endswith(trusted[1:].lower()) and len(name) >= len(trusted)
    return name == trusted.lower()


def _ours(name: str) -> bool:
    """An address or localhost; or none at all (HTTP/1.0)."""
    if name in ("", "localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
