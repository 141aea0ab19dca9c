"""`GET /thinking`: what may be asked for, as it really is."""

from pathlib import Path
from typing import Any

from gateway.thinking.budget import Wish, plan
from tests.scripted import ScriptedEngine, make_gateway
from tests.tenants import write_keys


async def offer(*engines: ScriptedEngine, **settings: Any) -> Any:
    async with make_gateway(*engines, **settings).client as client:
        return (await client.get("/thinking")).json()


async def test_the_caps_it_tells_are_those_that_are_given() -> None:
    told = await offer(ScriptedEngine("a"))

    for depth in told["depths"]:
        for total in (400, 10_000, 100_000):
            expected = min(depth["max_tokens"], int(depth["share"] * total))
            given = plan(Wish(depth["depth"]), total, 0)
            assert given.applied == min(expected, total - given.answer_reserve)
    assert [depth["name"] for depth in told["depths"]] == [
        "none", "minimal", "low", "medium", "high", "xhigh",
    ]  # fmt: skip


async def test_it_tells_the_operators_settings() -> None:
    settings = {"thinking_ceiling": 99, "thinking_default_depth": 1, "max_n": 3}
    told = await offer(ScriptedEngine("a"), ScriptedEngine("b"), **settings)

    assert (told["ceiling"], told["default_depth"], told["max_samples"]) == (99, 1, 3)
    assert [model["id"] for model in told["models"]] == ["a", "b"]
    assert told["confidence"] == ["off", "logprobs", "auto", "full"]
    assert told["early_exit"] == ["off", "logprob", "probe"]


async def test_a_tenant_is_told_its_own_ceiling_and_models(tmp_path: Path) -> None:
    keys_file = tmp_path / "keys.yaml"
    keys = write_keys(keys_file, small={"max_thinking": 50, "models": ["b"]}, large={})
    gateway = make_gateway(ScriptedEngine("a"), ScriptedEngine("b"), keys_file=keys_file)

    async def told(key: str) -> Any:
        headers = {"authorization": f"Bearer {key}"}
        return (await gateway.client.get("/thinking", headers=headers)).json()

    small, large = await told(keys["small"]), await told(keys["large"])
    assert (small["ceiling"], large["ceiling"]) == (50, None)
    assert [model["id"] for model in small["models"]] == ["b"]
    assert (await gateway.client.get("/thinking")).status_code == 401
