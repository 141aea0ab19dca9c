"""With the real engine: a tenant finds its own prompts in the prefix cache, and nobody else's."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.service.server import PATIENCE_S, Gateway
from tests.tenants import bearer, write_keys

TENANTS = ("search", "support")
STORY = "Once upon a time there was a keeper of a lighthouse who counted the ships. " * 20
# Each route has a prompt of its own, so that they do not find each other's.
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": f"a {STORY}"}]},
    "/v1/completions": {"prompt": f"b {STORY}"},
    "/v1/responses": {"input": f"c {STORY}"},
    "/v1/messages": {"messages": [{"role": "user", "content": f"d {STORY}"}]},
    "/generate": {"prompt": f"e {STORY}"},
    "/thinking": {"question": f"f {STORY}", "thinking_budget": 4},
}
LONGEST = {"/v1/responses": "max_output_tokens"}


class Tenant:
    def __init__(self, url: str, key: str) -> None:
        self.http = httpx.Client(base_url=url, headers=bearer(key), timeout=PATIENCE_S)

    def cached(self, path: str, **more: Any) -> int:
        """Tokens of the route's prompt that were found in the cache."""
        body = {
            "model": "smollm2-135m",
            LONGEST.get(path, "max_tokens"): 48,
            **BODIES[path],
            **more,
        }
        response = self.http.post(path, json=body)
        assert response.status_code == 200, response.text
        usage: dict[str, Any] = response.json()["usage"]
        details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or usage
        found: int = details.get("cached_tokens", details.get("cache_read_input_tokens")) or 0
        return found


@pytest.fixture(scope="module")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Tenant]]:
    folder = tmp_path_factory.mktemp("salt")
    keys = write_keys(folder / "keys.yaml", search={}, support={})
    with Gateway(folder / "serve.log", "demo", keys_file=folder / "keys.yaml") as gateway:
        made = {name: Tenant(gateway.url, keys[name]) for name in TENANTS}
        yield made
        for tenant in made.values():
            tenant.http.close()


@pytest.mark.parametrize("path", BODIES)
def test_a_tenant_finds_its_own_prompts_only(tenants: dict[str, Tenant], path: str) -> None:
    first, again = tenants["search"].cached(path), tenants["search"].cached(path)
    other = tenants["support"].cached(path)

    assert (first, other) == (0, 0)
    assert again > 0


def test_a_callers_own_salt_parts_its_cache_further_and_opens_no_others(
    tenants: dict[str, Tenant],
) -> None:
    chat = "/v1/chat/completions"
    other = [{"role": "user", "content": f"g {STORY}"}]

    mine = [tenants["search"].cached(chat, messages=other, cache_salt="x") for _ in range(2)]
    without = tenants["search"].cached(chat, messages=other)
    theirs = tenants["support"].cached(chat, messages=other, cache_salt="x")

    assert mine[0] == without == theirs == 0
    assert mine[1] > 0
