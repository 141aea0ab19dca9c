"""Dashboards are what the code makes, hold together, and every query of theirs has data."""

import functools
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from gateway.observability.collectors import GpuGauges
from gateway.observability.machine import Machine
from monitoring.grafana import build
from tests.monitoring.conftest import SYNTHETIC, Stack
from tests.monitoring.tools import ALERTS, MONITORING, RULES, metric_names, read, rules, run
from tests.service.server import PATIENCE_S, wait_for

GRAFANA = MONITORING / "grafana"
BOARDS = {path.stem: json.loads(path.read_text("utf-8")) for path in build.pages()}
PANELS = [
    pytest.param(panel, id=f"{name}: {panel['title']}")
    for name, board in BOARDS.items()
    for panel in board["panels"]
    if panel["type"] != "row"
]
# Everything has been counted when a query is tried; what is left is some scrapes, which come every second.
# What Grafana puts in for its own variables.
CHOSEN = {"$__rate_interval": "1m", "$__range": "10m"}


def filled(expr: str, board: dict[str, Any]) -> str:
    """With everything chosen, as a page that has just been opened."""
    choices = CHOSEN | {f"${each['name']}": ".*" for each in board["templating"]["list"]}
    for name in sorted(choices, key=len, reverse=True):
        expr = expr.replace(name, choices[name])
    return expr


QUERIES = [
    pytest.param(filled(target["expr"], board), id=f"{name}: {panel['title']} {target['refId']}")
    for name, board in BOARDS.items()
    for panel in board["panels"]
    for target in panel.get("targets", [])
]


def test_the_dashboards_are_as_the_code_makes_them() -> None:
    assert build.stale() == [], "run `python -m monitoring.grafana.build`"
    assert {path.name for path in build.DASHBOARDS.iterdir()} == {
        path.name for path in build.pages()
    }


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_says_what_it_shows_in_which_unit(panel: dict[str, Any]) -> None:
    defaults = panel["fieldConfig"]["defaults"]

    assert panel["title"] and panel["description"] and defaults["unit"]
    assert defaults["thresholds"]["steps"][0]["value"] is None
    assert panel["targets"] and all(each["legendFormat"] for each in panel["targets"])
    sources = [panel["datasource"], *(each["datasource"] for each in panel["targets"])]
    assert {each["uid"] for each in sources} == {"${datasource}"}


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS.keys())
def test_panels_have_ids_of_their_own_and_do_not_overlap(board: dict[str, Any]) -> None:
    ids = [panel["id"] for panel in board["panels"]]
    places = [panel["gridPos"] for panel in board["panels"]]

    assert len(set(ids)) == len(ids)
    assert [place for place in places if place["x"] + place["w"] > 24] == []
    assert [pair for pair in combinations(places, 2) if overlap(*pair)] == []


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return all(
        one[start] < other[start] + other[size] and other[start] < one[start] + one[size]
        for start, size in (("x", "w"), ("y", "h"))
    )


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS.keys())
def test_a_board_uses_its_variables_and_no_others(board: dict[str, Any]) -> None:
    names = {each["name"] for each in board["templating"]["list"]}
    used = {
        name
        for name in ("datasource", "model", "tenant", "instance", "gpu")
        if f"${name}" in json.dumps(board["panels"]) or f"${{{name}}}" in json.dumps(board)
    }

    assert names == used and "datasource" in names


def test_boards_and_the_source_are_provisioned() -> None:
    (source,) = read(GRAFANA / "provisioning/datasources/prometheus.yml")["datasources"]
    (provider,) = read(GRAFANA / "provisioning/dashboards/gateway.yml")["providers"]
    uids = [board["uid"] for board in BOARDS.values()]

    current = BOARDS["overview"]["templating"]["list"][0]["current"]["value"]
    assert (source["type"], source["uid"]) == ("prometheus", current)
    assert provider["type"] == "file" and len(set(uids)) == len(uids)


def test_the_made_up_series_are_those_of_a_gateway_with_a_gpu() -> None:
    told = {family.name: family for family in GpuGauges(Machine()).describe()}
    made_up = {family.name: family for family in text_string_to_metric_families(SYNTHETIC)}

    assert made_up.keys() == told.keys()
    for family in made_up.values():
        assert [set(sample.labels) for sample in family.samples] == [{"gpu"}]


def expr_of(board: str, title: str) -> str:
    """The first query of a panel, as a page that has just been opened sends it."""
    (panel,) = (each for each in BOARDS[board]["panels"] if each["title"] == title)
    return filled(panel["targets"][0]["expr"], BOARDS[board])


def test_availability_counts_what_its_objective_counts() -> None:
    objective = {
        name
        for rule in rules(RULES)
        if rule.get("labels", {}).get("slo") == "availability" and "rate5m" in rule["record"]
        for name in metric_names(rule["expr"])
    }

    assert metric_names(expr_of("overview", "Availability")) == objective


def test_only_our_alerts_are_counted() -> None:
    assert 'service="thinking-gateway"' in expr_of("overview", "Alerts that fire")


@pytest.mark.parametrize(
    ("title", "limit", "counter"),
    [
        ("Requests, share of rpm", "rpm", "gateway_requests_total{"),
        ("Tokens, share of tpm", "tpm", 'gateway_tokens_total{kind="prompt",'),
    ],
)
def test_two_gateways_have_one_share_of_a_limit(
    tmp_path: Path, title: str, limit: str, counter: str
) -> None:
    """Each does 60 a minute and tells the limit of 240."""
    series = [
        {"series": f'{name}tenant="t",instance="{instance}"}}', "values": values}
        for instance in ("a:1", "b:1")
        for name, values in (
            (counter, "0+15x40"),
            (f'gateway_tenant_limit{{limit="{limit}",', "240x40"),
        )
    ]
    half = [{"labels": '{tenant="t"}', "value": 0.5}]
    asked = {"expr": expr_of("tenants", title), "eval_time": "5m", "exp_samples": half}
    test = {"interval": "15s", "input_series": series, "promql_expr_test": [asked]}
    path = tmp_path / "two.yml"
    path.write_text(yaml.safe_dump({"tests": [test]}), encoding="utf-8")

    done = run("promtool", "test", "rules", str(path))

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("expr", QUERIES)
def test_every_query_returns_data(busy: Stack, expr: str) -> None:
    wait_for(lambda: busy.prometheus.values(expr), PATIENCE_S, f"data of {expr}")


@pytest.mark.parametrize("name", sorted({board["uid"] for board in BOARDS.values()}))
def test_every_variable_has_values(busy: Stack, name: str) -> None:
    (board,) = (board for board in BOARDS.values() if board["uid"] == name)
    queried = [each for each in board["templating"]["list"] if each["type"] == "query"]

    for variable in queried:
        series = variable["definition"].removeprefix("label_values(").partition(",")[0]
        values = functools.partial(
            busy.prometheus.get, f"label/{variable['name']}/values", **{"match[]": series}
        )
        wait_for(values, PATIENCE_S, variable["definition"])


@pytest.mark.parametrize("path", [RULES, ALERTS], ids=lambda path: path.name)
def test_rules_speak_of_metrics_that_there_are(busy: Stack, path: Path) -> None:
    named = set().union(*(metric_names(rule["expr"]) for rule in rules(path)))

    def missing() -> list[str]:
        return sorted(named - set(busy.prometheus.get("label/__name__/values")))

    wait_for(lambda: not missing(), PATIENCE_S, f"all of {sorted(named)}")


def test_prometheus_loaded_every_rule_and_evaluates_it(busy: Stack) -> None:
    groups = busy.prometheus.get("rules")["groups"]
    loaded = [rule for group in groups for rule in group["rules"]]

    assert len(loaded) == len(rules(RULES)) + len(rules(ALERTS))
    assert [rule for rule in loaded if rule["health"] == "err"] == []


def test_the_objectives_buckets_exist(busy: Stack) -> None:
    wait_for(
        lambda: len(busy.prometheus.values("slo_model:gateway_bad:ratio_rate5m")) == 3,
        PATIENCE_S,
        "a share of bad events for each objective",
    )
