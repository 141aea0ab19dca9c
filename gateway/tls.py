"""The public listener's certificate: used, read anew on reload, and its end told to the metrics.

The admin listener has none: it is for this machine, or a network that is the operator's own.
"""

import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import uvicorn
from cryptography import x509
from prometheus_client import CollectorRegistry, Gauge

from gateway.settings import Settings


class CertificateError(Exception):
    """The certificate or its key cannot be used; the message says which and why."""


def expiry_gauge(registry: CollectorRegistry) -> Gauge:
    return Gauge(
        "gateway_certificate_not_after_timestamp_seconds",
        "When the public listener's certificate ends, as a Unix time; only with TLS.",
        registry=registry,
    )


class Certificate:
    """A context for the listener, made once; what is loaded into it counts from the next connection on."""

    def __init__(self, cert: Path, key: Path, registry: CollectorRegistry) -> None:
        self.cert = cert
        self.key = key
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        self.serial = 0
        self.ends = datetime.min.replace(tzinfo=UTC)
        self.expires = expiry_gauge(registry)
        self.reread()

    @classmethod
    def of(cls, settings: Settings, registry: CollectorRegistry) -> "Certificate | None":
        """None: plain HTTP.

        Raises:
            CertificateError: it cannot be used.
        """
        if settings.tls_cert is None or settings.tls_key is None:
            return None
        return cls(settings.tls_cert, settings.tls_key, registry)

    def reread(self) -> bool:
        """Take what is in the files now; whether it is another certificate.

        Raises:
            CertificateError: it cannot be used; the one before stays.
        """
        try:
            found = x509.load_pem_x509_certificate(self.cert.read_bytes())
            # In a context of its own first: half a change in the one in use could not be taken back.
            for context in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self.context):
                # Without a password OpenSSL would ask the terminal for one.
                context.load_cert_chain(self.cert, self.key, password="")
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise CertificateError(f"{self.cert} with {self.key}: {error}") from error
        changed = found.serial_number != self.serial
        self.serial = found.serial_number
        self.ends = found.not_valid_after_utc
        self.expires.set(self.ends.timestamp())
        return changed

    def use(self, config: uvicorn.Config) -> None:
        """uvicorn asks for a context once, and gets this one."""
        config.ssl_context_factory = self._context

    def _context(
        self, config: uvicorn.Config, default: Callable[[], ssl.SSLContext]
    ) -> ssl.SSLContext:
        return self.context
