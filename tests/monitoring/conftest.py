"""One real gateway under load, scraped every second by a real Prometheus, for the whole session."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
import pytest

from tests.monitoring.load import Load
from tests.monitoring.servers import Alertmanager, Page, Prometheus, Webhook
from tests.redis_server import redis_server
from tests.service.admin import JSON
from tests.service.server import DEMO, PATIENCE_S, Gateway, wait_for
from tests.tenants import ADMIN, bearer, write_keys

# Roomy, and one that is over its limit at once.
TENANTS = {
    "search": {"rpm": 1_000_000, "tpm": 100_000_000, "max_concurrent": 8, "max_thinking": 8192},
    "support": {"rpm": 1_000_000, "tpm": 100_000_000, "daily_tokens": 1_000_000_000},
    "trial": {"rpm": 1, "tpm": 1000},
}
# What only a GPU or a certificate would show, with the names and labels that the gateway gives them.
SYNTHETIC = """\
gateway_gpu_memory_used_bytes{gpu="0"} 7e10
gateway_gpu_memory_total_bytes{gpu="0"} 8e10
gateway_gpu_temperature_celsius{gpu="0"} 61
gateway_gpu_utilization_ratio{gpu="0"} 0.9
"""
CERTIFICATE = "gateway_certificate_not_after_timestamp_seconds"


@dataclass(frozen=True)
class Stack:
    """All that runs."""

    gateway: Gateway
    prometheus: Prometheus
    webhook: Webhook
    keys: dict[str, str] = field(repr=False)

    def admin(self, path: str, **body: object) -> httpx.Response:
        headers = JSON | bearer(self.keys[ADMIN])
        url = f"{self.gateway.admin_url}/admin/{path}"
        return httpx.post(url, json=body, headers=headers, timeout=PATIENCE_S)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("monitoring")
    keys = write_keys(folder / "keys.yaml", admin=True, **TENANTS)
    with redis_server(folder) as redis, Webhook() as webhook:
        settings = {"keys_file": folder / "keys.yaml", "redis_url": redis.url}
        gateway = Gateway(folder / "serve.log", "demo", **settings)
        manager = Alertmanager(folder / "alertmanager", f"http://{webhook.address}")
        with gateway, manager, Page(synthetic()) as page:
            targets = {"gateway": address(gateway.admin_url), "synthetic": page.address}
            prometheus = Prometheus(
                folder / "prometheus", targets, keys[ADMIN], address(manager.url)
            )
            with prometheus:
                yield Stack(gateway, prometheus, webhook, keys)


@pytest.fixture(scope="session")
def busy(stack: Stack) -> Iterator[Stack]:
    """Under load, with a switch that was called off and a tenant over its limit."""
    callers = {name: key for name, key in stack.keys.items() if name != ADMIN}
    with Load(stack.gateway, callers) as load:
        load.wait_for(200, 400, 404, 429)
        begun = stack.admin(f"models/{DEMO}/switch", profile="demo")
        assert begun.status_code == 202, begun.text
        called_off = stack.admin(f"operations/{begun.json()['id']}/cancel")
        # 409: it was through before we could; it is counted all the same.
        assert called_off.status_code in (200, 409), called_off.text
        scraped = "gateway_switches_total and on () gateway_rejections_total"
        wait_for(lambda: stack.prometheus.values(scraped), PATIENCE_S, "scraped")
        yield stack


def synthetic() -> str:
    return f"{SYNTHETIC}{CERTIFICATE} {time.time() + 60 * 86400:.0f}\n"


def address(url: str) -> str:
    return url.removeprefix("http://")
