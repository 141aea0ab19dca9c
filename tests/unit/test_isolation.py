"""A tenant sees, uses and ends only what is its own."""

import asyncio
from pathlib import Path
from typing import Any

import httpx

from tests.scripted import PATIENCE_S, Script, ScriptedEngine, make_gateway
from tests.tenants import Tenants, bearer

PROMPT = {"prompt": "abcde", "max_tokens": 100}
CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 100}


async def test_a_tenant_sees_and_uses_only_its_models(tmp_path: Path) -> None:
    tenants = Tenants(tmp_path, {"a": {"models": ["second"]}, "b": {}})
    engines = ScriptedEngine("first"), ScriptedEngine("second")
    client = make_gateway(*engines, keys_file=tenants.file).client

    async def get(path: str, tenant: str = "a") -> httpx.Response:
        return await client.get(path, headers=bearer(tenants.keys[tenant]))

    async def post(path: str, body: dict[str, Any]) -> httpx.Response:
        return await client.post(path, json=body, headers=bearer(tenants.keys["a"]))

    listed = (await get("/v1/models")).json()["data"]
    assert [card["id"] for card in listed] == ["second"]
    assert len((await get("/v1/models", "b")).json()["data"]) == 2
    assert (await get("/v1/models/first")).status_code == 404
    for path, body in (
        ("/generate", PROMPT),
        ("/v1/chat/completions", CHAT),
        ("/thinking", {"question": "?"}),
    ):
        refused = await post(path, {**body, "model": "first"})
        unknown = await post(path, {**body, "model": "nobody"})
        assert (refused.status_code, unknown.status_code) == (404, 404)
        # Whether a model exists is not told to those who may not use it.
        assert "served: second" in refused.text
        assert (await post(path, body)).status_code == 200
    batch = await post("/batch_generate", {"requests": [{**PROMPT, "model": "first"}, PROMPT]})
    assert [result.get("status") for result in batch.json()["results"]] == [404, None]
    assert engines[0].jobs == [] and engines[0].bodies == []


async def test_nobody_ends_another_tenants_thought(tmp_path: Path) -> None:
    tenants = Tenants(tmp_path, {"a": {}, "b": {}})
    gate = asyncio.Event()
    tenants.engine.script = lambda job: Script(["x"] * 3, gate=gate, gate_at=1)
    auth = {**bearer(tenants.keys["a"]), "x-request-id": "shared-id"}
    body = {"question": "?", "max_tokens": 500}
    thinking = asyncio.create_task(tenants.client.post("/thinking", json=body, headers=auth))
    async with asyncio.timeout(PATIENCE_S):
        await tenants.engine.crowded.wait()

    others = await tenants.post("b", "/thinking/shared-id/answer_now", {})
    own = await tenants.post("a", "/thinking/shared-id/answer_now", {})
    gate.set()

    assert (others.status_code, own.status_code) == (404, 200)
    assert (await thinking).status_code == 200
