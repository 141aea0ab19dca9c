"""Each finding of `gateway doctor`: good where it is good, and with a remedy where it is not."""

import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from engine_config.hardware import GIB, Gpu, Hardware
from engine_config.profile import FolderModel, HubModel, load
from gateway.doctor import machine, models, place, services
from gateway.doctor.finding import Finding, Level, fail, good, warn, worst
from gateway.policy import keyfile
from gateway.policy.keyfile import KeysFile, TenantEntry, new_key
from tests.ports import free_port, free_ports
from tests.redis_server import redis_server
from tests.scripted import make_settings
from tests.unit.test_tls import later, write_pair

CPU = Hardware(cores=4, memory_bytes=24 * GIB, vectors="AVX-512")
CARD = Gpu("NVIDIA L4", 24 * 10**9, (8, 9))
ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 11, 25, tzinfo=UTC)


def doctor(folder: Path, *args: str, **settings: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    own = {"GATEWAY_STATE_DIR": str(folder / "state"), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "gateway", "doctor", *args],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=folder,
        env={**kept, **own, **settings},
    )


def findings(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in json.loads(done.stdout)["findings"]}


def own_ports() -> dict[str, str]:
    port, admin_port = free_ports(2)
    return {"GATEWAY_PORT": str(port), "GATEWAY_ADMIN_PORT": str(admin_port)}


def test_a_machine_that_can_serve_is_told_so(tmp_path: Path) -> None:
    done = doctor(tmp_path, "--json", **own_ports())
    told = findings(done)

    assert done.returncode == 0, done.stdout
    assert {"python", "vllm", "torch", "settings", "port", "model of demo", "redis"} <= {*told}
    assert all(each["remedy"] for each in told.values() if each["level"] != "ok")
    assert not (tmp_path / "state").exists(), "the doctor made something"


def test_a_taken_port_and_a_bad_profile_fail_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = doctor(
            tmp_path, "--json", "--profile", "nothing", **{**own_ports(), "GATEWAY_PORT": port}
        )
    told = findings(done)

    assert done.returncode == 1
    assert told["port"]["level"] == "fail" and port in told["port"]["remedy"]
    assert told["profile nothing"]["level"] == "fail"
    assert told["admin port"]["level"] == "ok"


def test_settings_that_are_refused_are_named_and_end_it(tmp_path: Path) -> None:
    done = doctor(tmp_path, GATEWAY_PROT="9000")

    assert done.returncode == 1
    assert "GATEWAY_PROT" in done.stdout and "docs/settings.md" in done.stdout


def test_the_gravest_finding_decides() -> None:
    told = [good("a", "x"), fail("b", "x", "y"), warn("c", "x", "y")]

    assert (worst(told), worst(told[::2]), worst([])) == (Level.FAIL, Level.WARN, Level.OK)


@pytest.mark.parametrize(
    ("finding", "level"),
    [
        (machine.python((3, 10)), Level.FAIL),
        (machine.python((3, 14)), Level.FAIL),
        (machine.python((3, 13)), Level.OK),
        (machine.torch(["torch==2.13.0"], "2.13.0+cpu"), Level.OK),
        (machine.torch(["torch==2.13.0"], "2.12.1"), Level.FAIL),
        (machine.torch(["torch==9; python_version < '3'"], "2.12.1"), Level.OK),
        (machine.torch([], None), Level.FAIL),
        (machine.processor(CPU), Level.OK),
        (machine.processor(Hardware(4, GIB, "")), Level.FAIL),
        (machine.processor(Hardware(1, GIB, "AVX2")), Level.WARN),
        (machine.memory(GIB), Level.WARN),
        (machine.gpu(CPU, None), Level.OK),
        (machine.gpu(Hardware(4, GIB, "AVX2", (CARD,)), "580.1"), Level.WARN),
        (machine.gpu(Hardware(4, GIB, "AVX2", (CARD,), cpu_build=False), "580.1"), Level.OK),
        (machine.gpu(Hardware(4, GIB, "AVX2", (), cpu_build=False), None), Level.FAIL),
        (machine.driver((13, 0), "13.0.96"), Level.OK),
        (machine.driver((13, 2), "13.0.96"), Level.OK),
        (machine.driver((12, 9), "13.0.96"), Level.FAIL),
        (machine.driver((13, 0), "14.1.2"), Level.FAIL),
        (machine.driver(None, "13.0.96"), Level.WARN),
        (machine.shared_memory(64 * 2**20), Level.WARN),
        (machine.open_files(1024), Level.WARN),
        (machine.open_files(-1), Level.OK),
        (machine.clock(machine.TIME_ERROR), Level.WARN),
        (machine.clock(-1), Level.WARN),
        (machine.clock(0), Level.OK),
    ],
)
def test_of_the_machine(finding: Finding, level: Level) -> None:
    assert finding.level is level, finding
    assert bool(finding.remedy) is (level is not Level.OK)


@pytest.mark.parametrize(
    ("mode", "mine", "others"),
    [
        (0o600, Level.OK, Level.OK),
        (0o440, Level.WARN, Level.OK),  # others': as Kubernetes mounts a Secret
        (0o644, Level.WARN, Level.WARN),
        (0o660, Level.FAIL, Level.FAIL),
    ],
)
def test_the_keys_files_mode(tmp_path: Path, mode: int, mine: Level, others: Level) -> None:
    path = tmp_path / "keys.yaml"
    path.touch()
    path.chmod(mode)
    user = path.stat().st_uid
    found = place.key_mode(path, user + 1)

    assert (place.key_mode(path, user).level, found.level) == (mine, others)
    assert "chmod 600" not in found.remedy, "it is not this user's to change"


def test_the_driver_that_is_asked_for_is_the_one_that_the_guides_name() -> None:
    text = (ROOT / "requirements/gpu.lock").read_text(encoding="utf-8")
    (major,) = re.findall(rf"^{machine.RUNTIME}==(\d+)\.", text, re.MULTILINE)
    oldest = f"driver {machine.DRIVERS[int(major)]} or later"

    assert oldest in machine.driver((12, 9), f"{major}.0").remedy
    for name in ("docs/deployment_guide.md", "deploy/README.md"):
        assert oldest in (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("days", "level"), [(None, Level.OK), (90, Level.OK), (3, Level.WARN), (-1, Level.FAIL)]
)
def test_keys_that_end(days: int | None, level: Level) -> None:
    _, entry = new_key("team", False, None if days is None else NOW + timedelta(days=days))
    content = KeysFile(tenants={"team": TenantEntry()}, keys=(entry,))

    assert place.key_dates(content, NOW).level is level


def test_a_keys_file_is_read_with_the_gateways_own_rules(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    _, entry = new_key("team", False, None)
    keyfile.write(path, KeysFile(tenants={"team": TenantEntry()}, keys=(entry,)))
    whole = [each.level for each in place.keys(make_settings(keys_file=path), NOW)]
    path.write_text("keys: [", encoding="utf-8")
    broken = list(place.keys(make_settings(keys_file=path), NOW))

    assert whole == [Level.OK, Level.OK]
    assert [each.level for each in broken] == [Level.FAIL]


def test_a_folder_that_is_a_file_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    assert place.folder("state", tmp_path / "file" / "state", "X").level is Level.FAIL
    assert place.folder("state", tmp_path / "new" / "state", "X").level is Level.OK


def test_a_profile_for_another_machine_fails_with_one_that_fits() -> None:
    told = models.fit(load("qwen3-4b-thinking-bf16"), CPU)

    assert told.level is Level.FAIL and "profile" in told.remedy


def test_a_built_model_that_lost_bytes_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_CACHE_DIR", str(tmp_path))
    profile = load("demo")
    assert models.model(profile, False).level is Level.WARN
    where = tmp_path / "models" / "smollm2-135m-v1"
    where.mkdir(parents=True)
    (where / "a").write_text("12", encoding="utf-8")
    entry = {"bytes": 2, "sha256": "0" * 64}
    manifest = {"format": 1, "recipe": {"name": "smollm2-135m"}, "files": {"a": entry}}
    (where / "MANIFEST.json").write_text(json.dumps(manifest), encoding="utf-8")

    assert models.model(profile, False).level is Level.OK
    assert models.model(profile, True).level is Level.FAIL  # the right size, the wrong bytes
    (where / "a").write_text("1", encoding="utf-8")
    assert models.model(profile, False).level is Level.FAIL


def test_a_folder_without_one_of_its_weights_fails(tmp_path: Path) -> None:
    kind = FolderModel(kind="folder", path=tmp_path)
    assert models.folder("m", kind).level is Level.FAIL
    (tmp_path / "config.json").touch()
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / models.INDEX).write_text(json.dumps(index), encoding="utf-8")
    (tmp_path / "one.safetensors").touch()

    assert "two.safetensors" in models.folder("m", kind).told
    (tmp_path / "two.safetensors").touch()
    assert models.folder("m", kind).level is Level.OK


def test_a_hub_model_that_is_not_here_is_told() -> None:
    kind = HubModel(kind="hub", repo="nobody/nothing", revision="0" * 40)

    assert models.hub("m", kind).level is Level.WARN


def test_redis_is_asked(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        there = services.redis(make_settings(redis_url=server.url))
    away = services.redis(make_settings(redis_url=server.url))
    strict = services.redis(make_settings(redis_url=server.url, redis_away="refuse"))

    assert (there.level, away.level, strict.level) == (Level.OK, Level.WARN, Level.FAIL)


def test_the_usage_database_is_opened(tmp_path: Path) -> None:
    torn = tmp_path / "torn.db"
    torn.write_text("no database", encoding="utf-8")

    assert services.usage(make_settings(usage_url="off")).level is Level.OK
    assert services.usage(make_settings(usage_url="no url")).level is Level.FAIL
    assert services.usage(make_settings(usage_url=f"sqlite:///{torn}")).level is Level.WARN


def test_the_collector_of_traces_is_looked_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as there:
        url = f"http://127.0.0.1:{there.getsockname()[1]}"
        answered = services.traces(make_settings(trace_endpoint=url))
    away = services.traces(make_settings(trace_endpoint=url))

    assert (answered.level, away.level) == (Level.OK, Level.WARN)
    assert services.traces(make_settings()).level is Level.OK


@pytest.fixture
def tls_server(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A server on loopback with a certificate of its own for a week; its port, and the file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=7))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "server.pem"
    plain = serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    path.write_bytes(certificate.public_bytes(pem) + private)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(path)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=_greet, args=(listening, context), daemon=True).start()
        yield listening.getsockname()[1], path


def _greet(listening: socket.socket, context: ssl.SSLContext) -> None:
    while True:
        try:
            plain, _ = listening.accept()
        except OSError:  # the test is over
            return
        try:
            context.wrap_socket(plain, server_side=True).close()
        except OSError:  # a caller that does not trust us
            plain.close()


def test_certificates_are_checked_and_their_end_is_told(
    tls_server: tuple[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, path = tls_server
    unknown = services.certificate("localhost", port)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    known = services.certificate("localhost", port)
    nobody = services.certificate("localhost", free_port())

    assert (unknown.level, known.level, nobody.level) == (Level.FAIL, Level.WARN, Level.FAIL)
    assert "valid until" in known.told


def test_a_certificate_with_months_to_go_is_good() -> None:
    assert services.dates("c", "Mar 25 12:00:00 2027 GMT", NOW).level is Level.OK
    assert services.dates("c", "Nov 24 12:00:00 2026 GMT", NOW).level is Level.FAIL


@pytest.mark.parametrize(("days", "level"), [(90, Level.OK), (10, Level.WARN), (-1, Level.FAIL)])
def test_the_listeners_own_certificate_is_loaded(tmp_path: Path, days: int, level: Level) -> None:
    write_pair(tmp_path, later(days))
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    (found,) = services.listener(make_settings(tls_cert=cert, tls_key=key))

    assert found.level is level and "valid until" in found.told
    assert list(services.listener(make_settings())) == []


def test_a_pair_that_the_gateway_would_refuse_fails(tmp_path: Path) -> None:
    write_pair(tmp_path, later(90))
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    key.write_text("no key", encoding="utf-8")
    tls = {"GATEWAY_TLS_CERT": str(cert), "GATEWAY_TLS_KEY": str(key)}

    done = doctor(tmp_path, "--json", **own_ports(), **tls)

    assert done.returncode == 1
    assert findings(done)["certificate of the public listener"]["level"] == "fail"
