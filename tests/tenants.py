"""Gateways with tenants: a keys file, and a client for each key in it."""

from pathlib import Path
from typing import Any

import httpx

from gateway.policy import keyfile
from gateway.policy.keyfile import KeyEntry, KeysFile, TenantEntry
from tests.scripted import Gateway, ScriptedEngine, make_gateway

ADMIN = "ops"


def write_keys(path: Path, *, admin: bool = False, **tenants: dict[str, Any]) -> dict[str, str]:
    """A keys file with a key for each tenant; returns the keys by tenant name."""
    keys: dict[str, str] = {}
    entries: list[KeyEntry] = []
    for name in [*tenants, *([ADMIN] if admin else [])]:
        keys[name], entry = keyfile.new_key(name, name == ADMIN, None)
        entries.append(entry)
    listed = {name: TenantEntry(**limits) for name, limits in tenants.items()}
    keyfile.write(path, KeysFile(tenants=listed, keys=tuple(entries)))
    return keys


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def header(key: str) -> tuple[bytes, bytes]:
    """For a request by hand."""
    return b"authorization", f"Bearer {key}".encode()


class Tenants:
    """A gateway over one scripted engine, and its tenants' keys."""

    def __init__(self, folder: Path, tenants: dict[str, dict[str, Any]], **settings: Any) -> None:
        self.file = folder / "keys.yaml"
        self.keys = write_keys(self.file, admin=True, **tenants)
        self.engine = ScriptedEngine("first")
        self.gateway: Gateway = make_gateway(self.engine, keys_file=self.file, **settings)

    @property
    def client(self) -> httpx.AsyncClient:
        return self.gateway.client

    async def post(self, tenant: str, path: str, body: dict[str, Any]) -> httpx.Response:
        return await self.client.post(path, json=body, headers=bearer(self.keys[tenant]))
