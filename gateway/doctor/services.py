"""What the gateway depends on over a socket: Redis, the usage database, certificates."""

import socket
import ssl
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy.engine import URL

from gateway.accounting.store import UsageError, UsageStore, shown, url_of
from gateway.doctor.finding import Finding, fail, good, warn
from gateway.settings import Settings
from gateway.tls import Certificate, CertificateError

ASK_S = 3.0
HTTP, HTTPS = 80, 443
REDIS_TLS = 6379
SOON = timedelta(days=21)


def services(settings: Settings, tls: Sequence[str]) -> Iterator[Finding]:
    """`tls`: addresses of more certificates, as HOST or HOST:PORT (the proxy in front)."""
    yield redis(settings)
    yield usage(settings)
    yield traces(settings)
    yield from listener(settings)
    for host, port in [*_own_tls(settings), *map(_address, tls)]:
        yield certificate(host, port)


def redis(settings: Settings) -> Finding:
    if settings.redis_url is None:
        return good("redis", "not used: limits are counted in this process")
    client = Redis.from_url(
        settings.redis_url.get_secret_value(), socket_timeout=ASK_S, socket_connect_timeout=ASK_S
    )
    try:
        client.ping()
    except RedisError as error:
        # Its class and not its text: that may have the URL and its password in it.
        told = f"does not answer ({type(error).__name__})"
        remedy = "Start it, or mend GATEWAY_REDIS_URL; what happens without it: docs/tenants.md."
        make = fail if settings.redis_away == "refuse" else warn
        return make("redis", told, remedy)
    finally:
        client.close()
    return good("redis", "answers")


def usage(settings: Settings) -> Finding:
    """Opened as the gateway opens it; an SQLite file that is not there is not made."""
    try:
        url = url_of(settings)
    except UsageError as error:
        return fail("usage database", str(error), "Mend GATEWAY_USAGE_URL.")
    if url is None:
        return good("usage database", "off")
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        return good("usage database", f"{shown(url)}, made with the first request")
    return opened(url)


def opened(url: URL) -> Finding:
    store = UsageStore(url)
    try:
        store.summary("tenant", datetime.now(UTC))
    except UsageError as error:
        remedy = "Start it, or mend GATEWAY_USAGE_URL. Meanwhile rows wait in memory."
        return warn("usage database", str(error), remedy)
    finally:
        store.close()
    return good("usage database", f"{shown(url)} answers")


def traces(settings: Settings) -> Finding:
    """Whether somebody listens where traces go; what it understands only a trace can tell."""
    if settings.trace_endpoint is None:
        return good("traces", "off")
    parts = urlsplit(settings.trace_endpoint)
    port = parts.port or (HTTPS if parts.scheme == "https" else HTTP)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=ASK_S).close()
    except OSError as error:
        remedy = "Start the collector, or mend GATEWAY_TRACE_ENDPOINT; no request fails meanwhile."
        return warn("traces", f"{parts.hostname}:{port} does not answer: {error}", remedy)
    return good("traces", f"{parts.hostname}:{port} answers")


def listener(settings: Settings) -> Iterator[Finding]:
    """The pair of the public listener, loaded as the gateway loads it; nothing without one."""
    name = "certificate of the public listener"
    try:
        pair = Certificate.of(settings, CollectorRegistry())
    except CertificateError as error:
        yield fail(name, str(error), "Mend GATEWAY_TLS_CERT and GATEWAY_TLS_KEY.")
        return
    if pair is not None:
        yield end(name, pair.ends, datetime.now(UTC))


def _own_tls(settings: Settings) -> Iterator[tuple[str, int]]:
    redis_url = settings.redis_url.get_secret_value() if settings.redis_url else ""
    for url, scheme, port in (
        (settings.jwt_jwks_url or "", "https", HTTPS),
        (redis_url, "rediss", REDIS_TLS),
    ):
        parts = urlsplit(url)
        if parts.scheme == scheme and parts.hostname:
            yield parts.hostname, parts.port or port


def _address(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    return parts.hostname or text, parts.port or HTTPS


def certificate(host: str, port: int) -> Finding:
    """By the trust of this machine, as any client of ours would check it."""
    name = f"certificate of {host}:{port}"
    context = ssl.create_default_context()
    try:
        with (
            socket.create_connection((host, port), timeout=ASK_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as wrapped,
        ):
            told = wrapped.getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        return fail(name, error.verify_message, "Renew it, or trust its issuer (SSL_CERT_FILE).")
    except OSError as error:
        return fail(name, f"cannot be had: {error}", "Is the server running, and the name right?")
    return dates(name, str(told["notAfter"]), datetime.now(UTC))


def dates(name: str, not_after: str, now: datetime) -> Finding:
    """`not_after` as OpenSSL prints it."""
    return end(name, datetime.fromtimestamp(ssl.cert_time_to_seconds(not_after), UTC), now)


def end(name: str, ends: datetime, now: datetime) -> Finding:
    told = f"valid until {ends:%Y-%m-%d}"
    if ends <= now:
        return fail(name, told, "Renew it: no caller takes it any more.")
    if ends - now < SOON:
        return warn(name, told, "Renew it now; see why its renewal did not come by itself.")
    return good(name, told)
