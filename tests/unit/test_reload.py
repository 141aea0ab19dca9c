"""Reload: what is taken over, what is refused, and that a mistake changes nothing."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client import CollectorRegistry

from engine_config.profile import load
from gateway.console import Console
from gateway.engines.catalogue import Catalogue
from gateway.observability.logs import OURS
from gateway.serve import Service
from gateway.settings import Settings
from gateway.tenancy import Tenancy
from tests.scripted import (
    PATIENCE_S,
    Gateway,
    ScriptedEngine,
    client_of,
    make_admin,
    make_gateway,
    slot_of,
)
from tests.tenants import ADMIN, bearer, write_keys

BASE: dict[str, Any] = {
    "name": "mine",
    "title": "A profile of mine.",
    "served_as": "first",
    "model": {"kind": "folder", "path": "/nowhere"},
}


def write(folder: Path, name: str = "mine", **changes: Any) -> None:
    text = yaml.safe_dump({**BASE, "name": name, **changes})
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


class Place:
    """A gateway whose settings came from a `.env` in the working folder, and its own profiles."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write(folder)
        self.env("GATEWAY_LOG_LEVEL=WARNING")
        self.gateway: Gateway = make_gateway(ScriptedEngine("first"))
        quiet = {"usage_url": "off", "audit_log": "off"}
        settings = Settings.of(profiles=("mine",), profiles_dir=folder, **quiet)
        profile = load("mine", folder)
        model = self.gateway.model
        model.publish(slot_of(self.gateway.engines[0], profile, Path("/nowhere")))
        self.gateway.settings = self.gateway.fleet.settings = settings
        self.gateway.tenancy = Tenancy.of(settings, CollectorRegistry())
        self.app = make_admin(self.gateway)
        catalogue = self.app.state.switcher.catalogue
        catalogue.adopt(*catalogue.read())
        self.settings = settings
        self.model = model
        self.admin = client_of(self.app)

    def env(self, *lines: str) -> None:
        (self.folder / ".env").write_text("\n".join(lines))

    async def reload(self) -> httpx.Response:
        headers = {"content-type": "application/json"}
        return await self.admin.post("/admin/reload", headers=headers)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.chdir(tmp_path)
    levels = {name: logging.getLogger(name).level for name in OURS}
    yield Place(tmp_path)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


async def test_nothing_new_changes_nothing(place: Place) -> None:
    assert (await place.reload()).json() == {"changed": [], "refused": []}


async def test_a_reload_puts_the_log_level_back(place: Place) -> None:
    await place.admin.put("/admin/log_level", json={"level": "DEBUG"})
    while_it_ran = logging.getLogger("gateway").level

    told = (await place.reload()).json()

    assert told["changed"] == ["GATEWAY_LOG_LEVEL is WARNING"]
    assert (while_it_ran, logging.getLogger("gateway").level) == (logging.DEBUG, logging.WARNING)


async def test_a_setting_is_taken_over_where_it_is_used(place: Place) -> None:
    place.env("GATEWAY_MAX_BODY_BYTES=1024", "GATEWAY_THINKING_CEILING=7")

    told = (await place.reload()).json()
    large = await place.admin.post("/admin/reload", json={"padding": "x" * 2000})

    assert "GATEWAY_THINKING_CEILING is 7" in told["changed"]
    assert place.settings.thinking_ceiling == 7
    assert large.status_code == 413


async def test_a_setting_that_cannot_change_is_refused_with_the_reason(place: Place) -> None:
    place.env("GATEWAY_PORT=9999", "GATEWAY_KEEP_ALIVE_S=3")

    told = (await place.reload()).json()

    (refused,) = told["refused"]
    assert refused["name"] == "GATEWAY_PORT" and "the socket is bound" in refused["reason"]
    assert (place.settings.port, place.settings.keep_alive_s) == (8000, 3)


async def test_a_new_key_counts_at_once_and_is_not_shown(place: Place) -> None:
    place.env("GATEWAY_API_KEY=a-secret-of-sixteen-characters")

    told = await place.reload()

    assert "a-secret" not in told.text and "GATEWAY_API_KEY" in told.text
    assert (await place.reload()).status_code == 401


@pytest.mark.parametrize("line", ["GATEWAY_PROT=1", "GATEWAY_MAX_N=many", "GATEWAY_HOST=0.0.0.0"])
async def test_a_wrong_setting_changes_nothing(place: Place, line: str) -> None:
    place.env(line, "GATEWAY_KEEP_ALIVE_S=3")

    refused = await place.reload()

    assert refused.status_code == 400 and "nothing was changed" in refused.json()["detail"]
    assert place.settings.keep_alive_s == 15


async def test_the_key_cannot_go_while_the_binding_is_open(place: Place) -> None:
    place.settings.adopt(place.settings.model_copy(update={"host": "0.0.0.0"}), ["host"])
    place.env("GATEWAY_API_KEY=a-secret-of-sixteen-characters")
    await place.reload()
    place.env("GATEWAY_HOST=127.0.0.1")

    key = {"authorization": "Bearer a-secret-of-sixteen-characters"}
    headers = {"content-type": "application/json", **key}
    refused = await place.admin.post("/admin/reload", headers=headers)

    assert refused.status_code == 400 and "no key is set" in refused.json()["detail"]
    assert (await place.reload()).status_code == 401


async def test_a_broken_profile_changes_nothing(place: Place) -> None:
    place.env("GATEWAY_KEEP_ALIVE_S=3")
    write(place.folder, "other", colour="red")

    refused = await place.reload()

    assert refused.status_code == 400 and "colour" in refused.json()["detail"]
    assert place.settings.keep_alive_s == 15


async def test_a_new_profile_can_be_switched_to_from_then_on(place: Place) -> None:
    write(place.folder, "other")
    before = (await place.admin.get("/admin/models")).json()["data"][0]["may_switch_to"]

    told = (await place.reload()).json()

    after = (await place.admin.get("/admin/models")).json()["data"][0]["may_switch_to"]
    assert (before, after) == (["mine"], ["mine", "other"])
    assert told["changed"] == ["profile other is new"]


async def test_what_requests_read_of_a_profile_is_taken_over(place: Place) -> None:
    write(place.folder, thinking_default=1)

    told = (await place.reload()).json()

    assert told == {"changed": ["profile mine: thinking_default is 1"], "refused": []}
    assert place.model.slot is not None and place.model.slot.profile.thinking_default == 1


async def test_what_the_engine_was_loaded_with_needs_a_switch(place: Place) -> None:
    setting = {"value": 4, "reason": "A reason why.", "source": "a test"}
    write(place.folder, vllm={"max_num_seqs": setting})

    told = (await place.reload()).json()

    (refused,) = told["refused"]
    assert "gateway switch first mine" in refused["reason"]
    assert place.model.profile.vllm == {}


async def test_a_profile_that_is_gone_is_told_and_goes_on(place: Place) -> None:
    (place.folder / "mine.yaml").unlink()

    told = (await place.reload()).json()

    assert "profile mine is gone" in told["changed"]
    assert "goes on" in told["refused"][0]["reason"]


async def test_keys_are_read_anew_and_a_broken_file_changes_nothing(place: Place) -> None:
    file = place.folder / "secrets" / "keys.yaml"
    file.parent.mkdir()
    key = write_keys(file, admin=True, a={"rpm": 5})[ADMIN]
    place.env(f"GATEWAY_KEYS_FILE={file}", "GATEWAY_KEEP_ALIVE_S=3")
    headers = {"content-type": "application/json", **bearer(key)}

    told = (await place.reload()).json()
    assert any("of a is new" in line for line in told["changed"])
    assert (await place.reload()).status_code == 401

    file.write_text("keys: [")
    place.env(f"GATEWAY_KEYS_FILE={file}", "GATEWAY_KEEP_ALIVE_S=4")
    refused = await place.admin.post("/admin/reload", headers=headers)
    assert refused.status_code == 400 and "nothing was changed" in refused.json()["detail"]
    assert place.settings.keep_alive_s == 3


async def test_a_key_revoked_while_a_reload_runs_stays_revoked(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = place.folder / "secrets" / "keys.yaml"
    file.parent.mkdir()
    keys = write_keys(file, admin=True, a={})
    place.env(f"GATEWAY_KEYS_FILE={file}")
    await place.reload()
    keyring, catalogue = place.gateway.tenancy.keyring, place.app.state.switcher.catalogue
    loop, read = asyncio.get_running_loop(), catalogue.read

    def read_late() -> Any:  # the reload has read the keys already, and takes them over after this
        write_keys(file, admin=True, b={})
        asyncio.run_coroutine_threadsafe(keyring.poll(), loop).result(PATIENCE_S)
        return read()

    monkeypatch.setattr(catalogue, "read", read_late)
    headers = {"content-type": "application/json", **bearer(keys[ADMIN])}
    assert (await place.admin.post("/admin/reload", headers=headers)).status_code == 200

    await keyring.poll()

    assert keyring.find(keys["a"].encode()) is None


async def test_a_signal_that_fails_in_an_unforeseen_way_is_told(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    values = {"port": 0, "admin_port": 0}
    settings = place.settings.model_copy(update=values)
    catalogue = Catalogue(settings)
    service = Service(settings, Console(), place.gateway.fleet, catalogue)
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(service.tenancy.audit, "write", lambda who, what: told.append(what))

    def failing() -> None:
        raise RecursionError

    monkeypatch.setattr(catalogue, "read", failing)
    service._on_hangup()
    await service.reloading
    for sock in service.sockets:
        sock.close()
    await service.tenancy.aclose()

    assert told == [{"action": "reload", "outcome": "failed: RecursionError"}]
    assert "reload failed" in caplog.text
