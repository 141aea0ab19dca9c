"""TLS on the public listener: the operator's certificate, read anew on reload, its end in the metrics."""

import asyncio
import datetime
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway.observability.figures import Figures
from gateway.serve import bind, listener
from gateway.tls import Certificate, CertificateError
from tests.scripted import PATIENCE_S, ScriptedEngine, make_gateway, make_settings


def write_pair(
    folder: Path, ends: datetime.datetime, password: bytes | None = None
) -> x509.Certificate:
    """cert.pem and key.pem of localhost, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(ends - datetime.timedelta(days=30))
        .not_valid_after(ends)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    hidden = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    form = serialization.PrivateFormat.PKCS8
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, hidden))
    return made


def later(days: int) -> datetime.datetime:
    now = datetime.datetime.now(datetime.UTC)
    return now.replace(microsecond=0) + datetime.timedelta(days=days)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Path]:
    write_pair(tmp_path, later(10))
    yield tmp_path


def certificate(folder: Path, figures: Figures) -> Certificate:
    settings = make_settings(tls_cert=folder / "cert.pem", tls_key=folder / "key.pem")
    made = Certificate.of(settings, figures.registry)
    assert made is not None
    return made


async def served_by(port: int, trusted: Path) -> str:
    """The serial number that the listener shows, and a request over it answered."""
    context = ssl.create_default_context(cafile=str(trusted))
    async with httpx.AsyncClient(
        verify=context, base_url=f"https://localhost:{port}", timeout=PATIENCE_S
    ) as client:
        assert (await client.get("/health/live")).status_code == 200
    _, writer = await asyncio.open_connection("localhost", port, ssl=context)
    shown = writer.get_extra_info("peercert")["serialNumber"]
    writer.transport.abort()
    return str(shown)


async def test_the_listener_speaks_tls_and_a_reload_changes_the_certificate(pair: Path) -> None:
    gateway = make_gateway(ScriptedEngine())
    cert = certificate(pair, gateway.figures)
    sock = bind("127.0.0.1", 0)
    server = listener(gateway.app, gateway.settings, cert)
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    async with asyncio.timeout(PATIENCE_S):
        while not server.started:  # noqa: ASYNC110 - uvicorn tells nobody
            await asyncio.sleep(0.01)
    port = sock.getsockname()[1]

    before = await served_by(port, pair / "cert.pem")
    fresh = write_pair(pair, later(20))
    changed = cert.reread()
    after = await served_by(port, pair / "cert.pem")

    server.should_exit = server.force_exit = True
    await serving
    assert changed and before != after
    assert int(after, 16) == fresh.serial_number
    assert (
        gateway.figures.registry.get_sample_value("gateway_certificate_not_after_timestamp_seconds")
        == fresh.not_valid_after_utc.timestamp()
    )


@pytest.mark.parametrize("broken", ["cert.pem", "key.pem"])
def test_a_broken_file_changes_nothing(pair: Path, broken: str) -> None:
    cert = certificate(pair, Figures())
    serial = cert.serial
    (pair / broken).write_text("nonsense")

    with pytest.raises(CertificateError, match=broken):
        cert.reread()

    assert cert.serial == serial


def test_another_certificates_key_is_refused(
    pair: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other")
    write_pair(other, later(10))
    (pair / "key.pem").write_bytes((other / "key.pem").read_bytes())

    with pytest.raises(CertificateError):
        certificate(pair, Figures())


def test_a_key_with_a_password_is_refused_instead_of_asked_for(pair: Path) -> None:
    write_pair(pair, later(10), password=b"secret")

    with pytest.raises(CertificateError):
        certificate(pair, Figures())


def test_one_of_the_two_alone_is_refused(pair: Path) -> None:
    with pytest.raises(ValueError, match="go together"):
        make_settings(tls_cert=pair / "cert.pem")


def test_without_them_it_is_plain() -> None:
    assert Certificate.of(make_settings(), Figures().registry) is None
