"""The keys file: written by the command line whole or not at all, and taken over while the gateway runs."""

import asyncio
import json
import logging
import os
import re
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from gateway.cli import app
from gateway.policy import keyfile
from gateway.policy.keyfile import KeysFile, KeysFileError
from gateway.policy.keyring import Keyring
from tests.scripted import PATIENCE_S, ScriptedEngine, make_gateway, make_settings
from tests.tenants import Tenants, bearer, write_keys

KEY = re.compile(r"^tga?-[0-9a-f]{8}-[A-Za-z0-9_-]{43}$")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GATEWAY_KEYS_FILE", str(tmp_path / "keys.yaml"))
    monkeypatch.setenv("GATEWAY_STATE_DIR", str(tmp_path / "state"))
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["keys", *arguments])


def create(*arguments: str) -> str:
    """Returns the key."""
    result = run("create", *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def content(folder: Path) -> Any:
    return yaml.safe_load((folder / "keys.yaml").read_text())


def key_ids(folder: Path) -> list[str]:
    return [key["id"] for key in content(folder)["keys"]]


def status(key: str, folder: Path) -> str:
    """What the keyring makes of a key: its tenant, or none."""
    keyring = Keyring(make_settings(keys_file=folder / "keys.yaml"))
    keyring.load()
    found = keyring.find(key.encode())
    return found.tenant.name if found else "none"


def test_a_key_is_shown_once_and_only_its_hash_is_kept(folder: Path) -> None:
    key = create("--tenant", "search")

    text = (folder / "keys.yaml").read_text()
    assert KEY.match(key)
    assert key.split("-", 2)[2] not in text and keyfile.digest(key) in text
    assert stat.S_IMODE((folder / "keys.yaml").stat().st_mode) == 0o600
    assert status(key, folder) == "search"
    assert status(key[:-1], folder) == status(key + "x", folder) == "none"


def test_limits_are_the_tenants_and_stay_when_another_key_is_made(folder: Path) -> None:
    create("--tenant", "a", "--rpm", "60", "--tpm", "40000", "--max-thinking", "8192")
    create("--tenant", "a", "--priority", "batch", "--models", "x,y", "--max-concurrent", "4")
    create("--tenant", "a", "--weight", "2.5")
    create("--tenant", "a", "--rpm", "90", "--daily-tokens", "1000000")

    entry = content(folder)["tenants"]["a"]
    assert entry == {
        "rpm": 90,
        "tpm": 40000,
        "max_concurrent": 4,
        "daily_tokens": 1000000,
        "max_thinking": 8192,
        "priority": "batch",
        "models": ["x", "y"],
        "weight": 2.5,
    }


def test_the_list_shows_ids_and_limits_and_no_hash(folder: Path) -> None:
    key = create("--tenant", "a", "--rpm", "60", "--expires", "90d")
    create("--tenant", "ops", "--admin")

    shown = run("list").output

    for word in (*key_ids(folder), "ops", "admin", "rpm", "60", "never"):
        assert word in shown
    assert keyfile.digest(key)[:16] not in shown


def test_a_revoked_key_opens_nothing(folder: Path) -> None:
    gone, kept = create("--tenant", "a"), create("--tenant", "a")

    assert run("revoke", key_ids(folder)[0]).exit_code == 0

    assert (status(gone, folder), status(kept, folder)) == ("none", "a")


def test_a_rotated_key_works_on_for_its_grace(folder: Path) -> None:
    old = create("--tenant", "a", "--rpm", "5")
    result = run("rotate", key_ids(folder)[0], "--grace", "2h")

    entry = content(folder)["keys"][0]
    left = datetime.fromisoformat(entry["expires"]) - datetime.now(UTC)
    assert timedelta(hours=1.9) < left <= timedelta(hours=2)
    assert status(old, folder) == status(result.stdout.strip(), folder) == "a"


@pytest.mark.parametrize(
    "arguments",
    [
        ["create", "--tenant", "a b"],
        ["create", "--tenant", "a", "--rpm", "0"],
        ["create", "--tenant", "a", "--expires", "soon"],
        ["create", "--tenant", "a", "--priority", "vip"],
        ["create", "--tenant", "ops", "--admin", "--rpm", "5"],
        ["revoke", "nothing"],
        ["rotate", "nothing"],
    ],
    ids=" ".join,
)
def test_a_mistake_is_refused_and_changes_nothing(folder: Path, arguments: list[str]) -> None:
    create("--tenant", "first")
    before = (folder / "keys.yaml").read_bytes()

    assert run(*arguments).exit_code != 0

    assert (folder / "keys.yaml").read_bytes() == before


def test_a_file_named_json_is_json(folder: Path) -> None:
    key = create("--tenant", "a", "--file", "keys.json")

    assert json.loads((folder / "keys.json").read_text())["keys"][0]["sha256"] == keyfile.digest(
        key
    )
    assert keyfile.read(folder / "keys.json").keys[0].tenant == "a"


def test_writers_at_once_lose_no_key(folder: Path) -> None:
    path = folder / "keys.yaml"
    begin = threading.Barrier(8)

    def add(number: int) -> None:
        begin.wait()
        with keyfile.locked(path):
            known = keyfile.read(path) if path.exists() else KeysFile()
            _, entry = keyfile.new_key(f"t{number}", True, None)
            keyfile.write(path, known.model_copy(update={"keys": (*known.keys, entry)}))

    threads = [threading.Thread(target=add, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(key_ids(folder)) == 8
    assert sorted(path.name for path in folder.glob("*keys*")) == [".keys.yaml.lock", "keys.yaml"]


def test_what_cannot_be_written_leaves_the_file_as_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create("--tenant", "a")
    before = (folder / "keys.yaml").read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)

    assert run("create", "--tenant", "b").exit_code != 0
    assert (folder / "keys.yaml").read_bytes() == before
    assert len(list(folder.glob(".keys.yaml.*"))) == 1  # the lock


async def polled(tenants: Tenants) -> None:
    await tenants.gateway.tenancy.keyring.poll()


async def asked(tenants: Tenants, key: str) -> int:
    return (await tenants.client.get("/v1/models", headers=bearer(key))).status_code


async def test_a_new_file_is_taken_over_while_it_serves(tmp_path: Path) -> None:
    tenants = Tenants(tmp_path, {"a": {}})
    old = tenants.keys["a"]

    new = write_keys(tenants.file, b={"rpm": 5})["b"]
    assert (await asked(tenants, old), await asked(tenants, new)) == (200, 401)
    await polled(tenants)

    assert (await asked(tenants, old), await asked(tenants, new)) == (401, 200)


async def test_a_secrets_mount_that_swaps_its_link_is_seen(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    keys = [write_keys(tmp_path / name / "keys.yaml", a={})["a"] for name in ("one", "two")]
    os.utime(tmp_path / "two" / "keys.yaml", ns=(0, 0))
    os.utime(tmp_path / "one" / "keys.yaml", ns=(0, 0))
    link = tmp_path / "mounted.yaml"
    link.symlink_to("one/keys.yaml")
    gateway = make_gateway(ScriptedEngine(), keys_file=link)

    (tmp_path / "next").symlink_to("two/keys.yaml")
    (tmp_path / "next").rename(link)
    await gateway.tenancy.keyring.poll()

    statuses = [
        (await gateway.client.get("/v1/models", headers=bearer(key))).status_code for key in keys
    ]
    assert statuses == [401, 200]


BROKEN = {
    "no yaml": "keys: [",
    "no such field": "version: 1\nkeyz: []",
    "a plain key": "keys: [{id: a, tenant: a, key: tg-secret-key-secret}]",
    "an unknown tenant": "keys: [{id: a, tenant: a, sha256: %s, created: 2026-01-01T00:00:00Z}]"
    % ("0" * 64),
    "a limit of none": "tenants: {a: {rpm: 0}}",
    "a list": "[1]",
    "binary": "\x00\x01",
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=list(BROKEN))
async def test_a_broken_file_changes_nothing_and_is_told_without_its_content(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    tenants = Tenants(tmp_path, {"a": {}})
    tenants.file.write_text(text)

    await polled(tenants)
    await polled(tenants)

    assert await asked(tenants, tenants.keys["a"]) == 200
    told = [each.getMessage() for each in caplog.records if each.name.startswith("gateway")]
    assert len(told) == 1 and str(tenants.file) in told[0]
    assert "secret" not in told[0]
    with pytest.raises(KeysFileError):
        make_gateway(ScriptedEngine(), keys_file=tenants.file)


async def test_a_file_that_went_away_changes_nothing(tmp_path: Path) -> None:
    tenants = Tenants(tmp_path, {"a": {}})
    tenants.file.unlink()

    await polled(tenants)

    assert await asked(tenants, tenants.keys["a"]) == 200


async def test_an_expired_key_is_refused_from_that_moment(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    past = datetime.now(UTC) - timedelta(seconds=1)
    key, entry = keyfile.new_key("a", False, past)
    keyfile.write(path, KeysFile(tenants={"a": {}}, keys=(entry,)))  # type: ignore[dict-item]
    gateway = make_gateway(ScriptedEngine(), keys_file=path)

    answer = await gateway.client.get("/v1/models", headers=bearer(key))

    assert (answer.status_code, "expired" in answer.text) == (401, True)


async def test_the_watch_outlives_a_fault_that_nobody_foresaw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("gateway.policy.keyring.POLL_S", 0.01)
    tenants = Tenants(tmp_path, {"a": {}})
    tenancy, changed = tenants.gateway.tenancy, asyncio.Event()
    faults: list[Exception] = [RecursionError("once"), OSError("twice")]

    def told(changes: dict[str, Any]) -> None:  # as an audit log on a full disk
        if faults:
            raise faults.pop()
        changed.set()

    tenancy.keyring.told = told
    tenancy.start()

    write_keys(tenants.file, b={})
    async with asyncio.timeout(PATIENCE_S):
        await changed.wait()

    assert await asked(tenants, tenants.keys["a"]) == 401
    assert caplog.text.count("tried again") == 2
    await tenancy.aclose()


async def test_the_file_is_looked_at_while_the_gateway_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.policy.keyring.POLL_S", 0.01)
    tenants = Tenants(tmp_path, {"a": {}})
    tenancy, changed = tenants.gateway.tenancy, asyncio.Event()
    tenancy.keyring.told = lambda changes: changed.set()
    tenancy.start()

    new = write_keys(tenants.file, b={})["b"]
    async with asyncio.timeout(PATIENCE_S):
        await changed.wait()

    assert await asked(tenants, new) == 200
    await tenancy.aclose()
