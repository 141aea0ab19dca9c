"""Tokens of an OpenID Connect issuer as keys: PyJWT checks them, a claim names the tenant.

The issuer's keys are fetched off the event loop and kept; an unknown key id asks for them again at most
twice a minute (PyJWT's cooldown), so made-up tokens cannot make us ask for ever.
"""

import asyncio
import hashlib
import logging
import re
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import jwt
from jwt import PyJWK, PyJWKClient
from jwt.exceptions import (
    PyJWKClientConnectionError,
    PyJWKClientError,
    PyJWKSetError,
    PyJWTError,
)

from gateway.errors import DependencyUnavailable, Unauthorized
from gateway.policy.keyring import Identity, Keyring
from gateway.settings import Settings

log = logging.getLogger(__name__)

FETCH_S = 3.0
AWAY_S = 5.0  # after a failed fetch: nobody asks again for so long
LEEWAY_S = 30  # of clocks that differ
CACHED = 4096
REQUIRED = ("exp", "iss", "aud")
MAX_TOKEN_BYTES = 16 * 1024
THREADS = 2
# What PyJWT raises for an issuer that is away, or says what are no keys (a proxy's page, an empty set).
NO_KEYS = (PyJWKClientConnectionError, PyJWKSetError, OSError, ValueError)
UNFIT = re.compile(r"[^!-~]")  # for a log line and a database


def looks_like_token(key: bytes) -> bool:
    return key.startswith(b"eyJ") and key.count(b".") == 2 and len(key) <= MAX_TOKEN_BYTES


class Tokens:
    """Checks tokens; a good one is remembered by the SHA-256 of all of it until it expires.

    Never by a part of it: two tokens of one issuer begin alike (CVE-2026-35030).
    """

    def __init__(self, settings: Settings, keyring: Keyring) -> None:
        self.settings = settings
        self.keyring = keyring
        self._good: OrderedDict[bytes, dict[str, Any]] = OrderedDict()
        self._away_until = 0.0
        url = settings.jwt_jwks_url or ""
        self._keys = PyJWKClient(url, timeout=FETCH_S)
        # Its own: an issuer that hangs must not take the threads of everything else.
        self._threads = ThreadPoolExecutor(THREADS, "tokens")

    async def find(self, token: bytes) -> Identity:
        """Whose token it is.

        Raises:
            Unauthorized: not good, or its tenant is not in the keys file.
            DependencyUnavailable: the issuer's keys cannot be had now.
        """
        name = hashlib.sha256(token).digest()
        claims = self._good.get(name)
        if claims is None or time.time() >= claims["exp"] + LEEWAY_S:
            self._good.pop(name, None)
            claims = await self._checked(token.decode("latin-1"))
            self._good[name] = claims
            if len(self._good) > CACHED:
                self._good.popitem(last=False)
        return self._identity(claims)

    async def _checked(self, token: str) -> dict[str, Any]:
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, self._decode, token)
        except PyJWKClientConnectionError as error:
            raise DependencyUnavailable("tokens cannot be checked now", AWAY_S) from error
        except PyJWTError as error:
            # Its class says enough for a caller; its text may quote the token.
            raise Unauthorized(f"the token is not valid ({type(error).__name__})") from error

    def _signing_key(self, token: str) -> PyJWK:
        """Raises PyJWTError for a token that names no key of the issuer's; if there are none to be had,
        PyJWKClientConnectionError."""
        wanted: Any = jwt.get_unverified_header(token).get("kid")
        if time.monotonic() < self._away_until:
            raise PyJWKClientConnectionError("not tried again yet")
        try:
            try:
                self._keys.get_signing_keys()  # those that are known, mostly
            except PyJWKClientError as error:  # no object, or without a key for signatures
                raise PyJWKSetError(str(error)) from error
            return self._keys.get_signing_key(wanted)
        except NO_KEYS as error:
            self._away_until = time.monotonic() + AWAY_S
            log.error(
                "the issuer's keys cannot be had from %s (%s)",
                self.settings.jwt_jwks_url,
                type(error).__name__,
            )
            raise PyJWKClientConnectionError("the issuer has no keys for us") from error

    def _decode(self, token: str) -> dict[str, Any]:
        settings = self.settings
        claims: dict[str, Any] = jwt.decode(
            token,
            self._signing_key(token),
            algorithms=list(settings.jwt_algorithms),
            audience=settings.jwt_audience,
            issuer=settings.jwt_issuer,
            leeway=LEEWAY_S,
            options={"require": list(REQUIRED)},
        )
        return claims

    def _identity(self, claims: dict[str, Any]) -> Identity:
        claim = self.settings.jwt_tenant_claim
        name = claims.get(claim)
        if not isinstance(name, str) or name not in self.keyring.content.tenants:
            raise Unauthorized(f"the token's '{claim}' names no tenant of this server")
        key_id = f"jwt:{UNFIT.sub('?', str(claims.get('sub', '')))[:64]}"
        expires = datetime.fromtimestamp(claims["exp"] + LEEWAY_S, UTC)
        return Identity(self.keyring.tenant(name, key_id), expires=expires)
