"""What waits a moment for others waits as long as a machine needs that stands still for a while."""

import importlib
from collections.abc import Iterator

import pytest

from tests.scripted import PATIENCE_S

# Time-outs of ours on what answers at once: a server in this process, a driver, a disk. Where one that
# fires is the promise, the test sets it.
MOMENTS = (
    "gateway.accounting.usage.CLOSE_S",
    "gateway.deploy.local.ASK_S",
    "gateway.doctor.place.ASK_S",
    "gateway.doctor.services.ASK_S",
    "gateway.observability.machine.PATIENCE_S",
    "gateway.policy.oidc.FETCH_S",
    "gateway.policy.redis_ledger.TIMEOUT_S",
)


@pytest.fixture(scope="session", autouse=True)
def patience() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in MOMENTS:
            patch.setattr(name, float(PATIENCE_S))
        tables = importlib.import_module("gateway.accounting.store")
        patch.setitem(tables.POSTGRES, "connect_timeout", PATIENCE_S)
        patch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", str(PATIENCE_S))
        yield
