"""Rules load, every alert has a test that fires and clears it and an entry in the guide."""

import re
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import GatewayError
from tests.monitoring import tools
from tests.monitoring.tools import ALERTS, MONITORING, ROOT, RULES

GUIDE = ROOT / "docs" / "troubleshooting_guide.md"
ERRORS = ROOT / "docs" / "troubleshooting_errors.md"
COMPOSE = ROOT / "deploy" / "compose"
TESTS = [MONITORING / f"{name}_test.yml" for name in ("alerts", "slo", "gpu")]
ALL = [rule["alert"] for rule in tools.rules(ALERTS)]


def codes(error: type[GatewayError]) -> set[str]:
    """Of this error and all below it."""
    return {error.code}.union(*(codes(each) for each in error.__subclasses__()))


def checks() -> list[tuple[str, bool]]:
    """Of all promtool tests: the alert, and whether it is expected to fire."""
    return [
        (each["alertname"], bool(each["exp_alerts"]))
        for path in TESTS
        for test in tools.read(path)["tests"]
        for each in test.get("alert_rule_test", [])  # a test of silence has none
    ]


@pytest.mark.parametrize("path", [RULES, ALERTS], ids=lambda path: path.name)
def test_the_rules_load(path: Path) -> None:
    done = tools.run("promtool", "check", "rules", "--lint=all", "--lint-fatal", str(path))

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("folder", [MONITORING, COMPOSE], ids=lambda path: path.name)
def test_the_configuration_loads_with_the_key_file_beside_it(tmp_path: Path, folder: Path) -> None:
    for path in (folder / "prometheus.yml", RULES, ALERTS):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "metrics.key").write_text("none", encoding="utf-8")

    done = tools.run("promtool", "check", "config", str(tmp_path / "prometheus.yml"))

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_guide_tells_the_objectives_that_are_in_force() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    objectives = {
        rule["labels"]["slo"]: float(rule["expr"].removeprefix("vector(").removesuffix(")"))
        for rule in tools.rules(RULES)
        if rule["record"] == "slo:gateway_objective:ratio"
    }
    told = dict(re.findall(r"^\| (\w+) \|.*\| ([\d.]+) % \|$", page, re.MULTILINE))

    assert {
        slo: f"{share:.1%}".removesuffix(".0%").strip("%") for slo, share in objectives.items()
    } == told


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_alerts_fire_and_clear(path: Path) -> None:
    done = tools.run("promtool", "test", "rules", str(path))

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", ALL)
def test_every_alert_is_tested_silent_then_firing_then_cleared(alert: str) -> None:
    fires = [firing for name, firing in checks() if name == alert]

    assert fires and fires == [False, True, False] * (len(fires) // 3)


def test_a_wrong_expectation_fails(tmp_path: Path) -> None:
    text = TESTS[0].read_text(encoding="utf-8").replace("up is 0", "up is 1")
    for path in (RULES, ALERTS):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(text, encoding="utf-8")

    done = tools.run("promtool", "test", "rules", str(wrong))

    assert done.returncode != 0 and "GatewayDown" in done.stdout + done.stderr


@pytest.mark.parametrize("rule", tools.rules(ALERTS), ids=lambda rule: rule["alert"])
def test_an_alert_says_how_bad_it_is_and_where_help_is(rule: dict[str, Any]) -> None:
    texts = rule["annotations"]
    page, _, anchor = texts["runbook_url"].partition("#")

    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["labels"]["service"] == "thinking-gateway"
    assert texts["summary"] and "$value" in texts["description"]
    assert (ROOT / page) == GUIDE and anchor in set(tools.anchors(GUIDE))
    entry = GUIDE.read_text(encoding="utf-8").partition(f"### {rule['alert']}\n")[2]
    parts = entry.partition("\n#")[0]
    assert [word for word in ("Symptom", "Cause", "Look", "Remedy") if word not in parts] == []


def test_no_alert_has_two_rules() -> None:
    assert sorted(set(ALL)) == sorted(ALL)


@pytest.mark.parametrize("code", sorted(codes(GatewayError)))
def test_every_error_code_has_an_entry_with_a_command_to_look_with(code: str) -> None:
    entry = ERRORS.read_text(encoding="utf-8").partition(f"### `{code}`\n")[2].partition("\n#")[0]

    assert re.search(r"^\d{3}\. ", entry, re.MULTILINE)
    assert re.search(r"^Look: `[a-z]+ [^`]+`", entry, re.MULTILINE)
