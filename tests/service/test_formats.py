"""The demo model from format to format and back, under load, by the admin API: nobody notices."""

import re
from collections.abc import Iterator

import httpx
import psutil
import pytest

from engine_config.profile import load
from gateway.engines.opening import locate
from tests.service.admin import Admin
from tests.service.callers import Callers
from tests.service.server import DEMO, PATIENCE_S, Gateway, alive, title

MIB = 1024**2
FORMATS = {
    "demo-int8": "int8",
    "demo-gptq-int4": "gptq-int4",
    "demo-awq-int4": "awq-int4",
    "demo": "bf16",
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    for name in (*FORMATS, "demo-int4"):  # a switch would make it, too, with callers in its way
        locate(load(name), lambda text, fraction: None)
    log = tmp_path_factory.mktemp("formats") / "serve.log"
    with Gateway(log, "demo") as gateway:
        yield gateway


def engines(gateway: Gateway) -> list[psutil.Process]:
    return [process for process in alive(gateway.family()) if "EngineCore" in title(process)]


def memory_mib(gateway: Gateway) -> float:
    """Of the gateway and all below it; pages that several share are not counted."""
    family = [psutil.Process(gateway.process.pid), *alive(gateway.family())]
    return sum(process.memory_full_info().uss for process in family) / MIB


def served(gateway: Gateway) -> dict[str, int]:
    """Good answers by format, as /metrics counts them."""
    text = httpx.get(f"{gateway.admin_url}/metrics", timeout=PATIENCE_S).text
    found: dict[str, int] = {}
    for labels, value in re.findall(r"^gateway_requests_total{(.*)} (\S+)$", text, re.MULTILINE):
        told = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if told["model"] and told["outcome"] == "ok":
            found[told["format"]] = found.get(told["format"], 0) + int(float(value))
    return found


def test_every_format_in_turn_under_load_without_a_failed_request(running: Gateway) -> None:
    admin, told = Admin(running), []
    before = memory_mib(running)

    with Callers(running, DEMO) as callers:
        for profile, name in FORMATS.items():
            told.append(admin.switch(DEMO, profile, way="blue_green"))
            card = httpx.get(f"{running.url}/v1/models/{DEMO}", timeout=PATIENCE_S).json()
            assert (card["profile"], card["format"]) == (profile, name), told
            callers.wait_for_one_more(name)

    assert [each["state"] for each in told] == ["succeeded"] * 4, told
    assert [each["way"] for each in told] == ["blue_green"] * 4, told
    assert callers.failures == []
    assert set(callers.served) == set(FORMATS.values())
    assert served(running) == callers.served
    assert len(engines(running)) == 1
    # An engine of the demo model takes about 2 GiB: none of the four is left, whole or in parts.
    assert memory_mib(running) < before + 512


def test_the_last_format_works_too(running: Gateway) -> None:
    told = Admin(running).switch(DEMO, "demo-int4")

    with Callers(running, DEMO, n=3) as callers:
        callers.wait_for_one_more("int4")

    assert told["state"] == "succeeded", told
    assert (callers.failures, set(callers.served)) == ([], {"int4"})
