"""Who is told of which alert: Alertmanager's routes by amtool, what mutes what by the real program."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.monitoring import tools
from tests.monitoring.servers import Alertmanager, Webhook
from tests.monitoring.tools import ALERTMANAGER, ALERTS

SERVICE = "thinking-gateway"
RECEIVERS = {"critical": "pager", "warning": "chat"}


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Alertmanager]:
    with Webhook() as webhook:
        manager = Alertmanager(tmp_path / "alertmanager", f"http://{webhook.address}")
        with manager:
            yield manager


def test_the_configuration_loads() -> None:
    done = tools.run("amtool", "check-config", str(ALERTMANAGER))

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("alert", "severity"),
    [(rule["alert"], rule["labels"]["severity"]) for rule in tools.rules(ALERTS)],
)
def test_critical_wakes_somebody_and_the_rest_goes_to_the_chat(alert: str, severity: str) -> None:
    done = tools.run(
        "amtool",
        *("config", "routes", "test", f"--config.file={ALERTMANAGER}"),
        f"--verify.receivers={RECEIVERS[severity]}",
        *(f"alertname={alert}", f"severity={severity}", f"service={SERVICE}"),
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_an_alert_of_unknown_severity_is_not_lost() -> None:
    done = tools.run(
        *("amtool", "config", "routes", "test", f"--config.file={ALERTMANAGER}"),
        *("--verify.receivers=chat", "alertname=Odd", "severity=odd", f"service={SERVICE}"),
    )

    assert done.returncode == 0, done.stdout + done.stderr


def labels(name: str, **others: str) -> dict[str, str]:
    return {"alertname": name, "service": SERVICE, **others}


def test_a_gateway_that_is_down_mutes_what_is_said_of_it_only(manager: Alertmanager) -> None:
    here, elsewhere = (labels("EngineHung", instance=each) for each in ("a:1", "b:1"))
    users = labels("AvailabilityBudgetBurnsFast", slo="availability")

    manager.post(labels("GatewayDown", instance="a:1"), here, elsewhere, users)

    assert manager.muted(1) == [here]


def test_no_gateway_at_all_mutes_everything_else(manager: Alertmanager) -> None:
    others = [labels("HighErrorRate"), labels("RedisAway", instance="a:1")]

    manager.post(labels("GatewayAbsent", job="gateway"), *others)

    assert sorted(each["alertname"] for each in manager.muted(2)) == ["HighErrorRate", "RedisAway"]


def test_nothing_of_ours_mutes_another_service(manager: Alertmanager) -> None:
    ours = [
        labels("GatewayAbsent"),
        labels("GatewayDown", instance="a:1"),
        labels("EngineDead", instance="a:1"),
        labels("TTFTBudgetBurnsFast", slo="ttft", model="m"),
        labels("CertificateExpires", instance="a:1"),
    ]
    theirs = [
        labels(name, service=service, instance="a:1", slo="ttft", model="m")
        for name in (
            "DiskFull",
            "GatewayNotReady",
            "TTFTBudgetBurnsSlowly",
            "CertificateExpiresSoon",
        )
        for service in ("shop", "")
    ]

    manager.post(*ours, *theirs)

    muted = {(each["alertname"], each.get("service", "")) for each in manager.muted(len(ours) - 1)}
    assert muted == {(each["alertname"], SERVICE) for each in ours[1:]}


def test_the_cause_mutes_its_effect(manager: Alertmanager) -> None:
    causes = [
        labels("EngineDead", instance="a:1", model="m"),
        labels("TTFTBudgetBurnsFast", slo="ttft", model="m"),
        labels("CertificateExpires", instance="a:1"),
    ]
    effects = [
        labels("GatewayNotReady", instance="a:1"),
        labels("TTFTBudgetBurnsSlowly", slo="ttft", model="m"),
        labels("CertificateExpiresSoon", instance="a:1"),
    ]
    others = [
        labels("GatewayNotReady", instance="b:1"),
        labels("ITLBudgetBurnsSlowly", slo="itl", model="m"),
    ]

    manager.post(*causes, *effects, *others)

    muted = sorted(manager.muted(len(effects)), key=lambda each: each["alertname"])
    assert muted == sorted(effects, key=lambda each: each["alertname"])
