"""Figures: right quantiles, honest outcomes, one family once."""

import statistics
from collections import Counter
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.asgi import Exchange
from gateway.engines.fleet import Fleet
from gateway.errors import EngineUnavailable
from gateway.observability.exposition import exposition
from gateway.observability.figures import Figures
from gateway.observability.live import Live
from gateway.observability.recent import WINDOW, quantiles
from gateway.observability.stats import Stats, stats_of
from gateway.policy.keys import PUBLIC
from gateway.thinking.running import Running
from tests.scripted import ScriptedEngine, make_gateway, make_settings

NOBODY = Fleet([], make_settings())


def exchange(**changes: Any) -> Exchange:
    seconds = changes.pop("seconds", 1.0)
    fields: dict[str, Any] = {
        "request_id": "r",
        "method": "POST",
        "path": "/generate",
        "started": 100.0,
        "route": "/generate",
        "status": 200,
        "first_byte": 100.25,
        "ended": 100.0 + seconds,
    }
    return Exchange(**fields | changes)


def stats(figures: Figures) -> Stats:
    return stats_of(figures, NOBODY, Live(NOBODY, figures.requests, Running()))


@pytest.mark.parametrize("n", [2, 3, 10, 101, 1000])
def test_quantiles_are_those_of_numpy(n: int) -> None:
    values = np.random.default_rng(n).exponential(size=n)

    told = quantiles(values.tolist())

    expected = np.quantile(values, [0.5, 0.95, 0.99])
    assert [told["p50"], told["p95"], told["p99"]] == pytest.approx(expected.tolist(), abs=1e-6)
    assert told["p50"] == pytest.approx(statistics.median(values.tolist()), abs=1e-6)
    assert told["count"] == n


def test_quantiles_of_one_value_are_that_value_and_of_none_unknown() -> None:
    assert quantiles([0.5]) == {"p50": 0.5, "p95": 0.5, "p99": 0.5, "count": 1}
    assert quantiles([]) == {"p50": None, "p95": None, "p99": None, "count": 0}


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({}, "ok"),
        ({"status": 404}, "client_error"),
        ({"status": 429}, "rejected"),
        ({"status": 503, "notes": {"rejected": True}}, "rejected"),
        ({"status": 503, "notes": {"rejected": False}}, "server_error"),
        ({"status": 500}, "server_error"),
        ({"status": 503}, "server_error"),
        ({"notes": {"failed": EngineUnavailable("x")}}, "server_error"),
        ({"disconnected": True}, "disconnected"),
        ({"disconnected": True, "status": 0}, "disconnected"),
        ({"disconnected": True, "status": 500}, "disconnected"),
    ],
    ids=str,
)
def test_each_request_has_one_outcome(changes: dict[str, Any], outcome: str) -> None:
    figures = Figures()

    figures.observe(exchange(**changes))

    assert stats(figures).requests.by_outcome == {outcome: 1}


@pytest.mark.parametrize("route", sorted(PUBLIC))
def test_probes_are_not_counted(route: str) -> None:
    figures = Figures()

    figures.observe(exchange(route=route, status=503))

    assert stats(figures).requests.total == 0


def test_unknown_paths_share_one_label() -> None:
    figures = Figures()
    for number in range(3):
        figures.observe(exchange(route=None, path=f"/scan/{number}", status=404))

    assert stats(figures).requests.by_route == {"unmatched": {"client_error": 3}}


def test_the_success_rate_blames_nobody_for_callers_mistakes() -> None:
    figures = Figures()
    for status in (200, 200, 200, 500, 400, 404):
        figures.observe(exchange(status=status))

    assert stats(figures).requests.success_rate == 0.75


def test_without_requests_there_is_no_success_rate() -> None:
    assert stats(Figures()).requests.success_rate is None


def test_latencies_are_of_the_last_good_answers_only() -> None:
    figures = Figures()
    figures.observe(exchange(seconds=500.0, status=500))
    for _ in range(WINDOW):
        figures.observe(exchange(seconds=900.0))
    for _ in range(WINDOW):
        figures.observe(exchange(seconds=2.0))

    told = stats(figures).latency_s.model_dump()
    assert told == {"p50": 2.0, "p95": 2.0, "p99": 2.0, "count": WINDOW}


def test_without_the_engines_word_a_streams_first_byte_is_its_first_token() -> None:
    figures = Figures()
    figures.observe(exchange(streamed=True))
    figures.observe(exchange(streamed=False, first_byte=190.0))

    told = stats(figures).ttft_s.model_dump()
    assert told == {"p50": 0.25, "p95": 0.25, "p99": 0.25, "count": 1}


async def test_stats_tells_each_engines_own_tokens_and_what_is_in_flight() -> None:
    gateway = make_gateway(ScriptedEngine("first"), ScriptedEngine("second"))
    gateway.engines[1].prompt_tokens.inc(7)

    async with gateway.fleet.seat("second", {}):
        stats = (await gateway.client.get("/stats")).json()

    models = stats["models"]
    assert (models["first"]["prompt_tokens"], models["second"]["prompt_tokens"]) == (0, 7)
    assert stats["in_flight"] == 1


def test_a_family_of_several_engines_is_told_once_with_all_samples() -> None:
    gateway = make_gateway(ScriptedEngine("first"), ScriptedEngine("second"))
    gateway.engines[0].prompt_tokens.inc(3)
    gateway.engines[1].prompt_tokens.inc(4)
    gateway.figures.observe(exchange())
    exposition(gateway.fleet, gateway.figures)

    text = exposition(gateway.fleet, gateway.figures).decode()

    families = list(text_string_to_metric_families(text))
    assert [name for name, times in Counter(f.name for f in families).items() if times > 1] == []
    (tokens,) = [family for family in families if family.name == "vllm:prompt_tokens"]
    counted = {s.labels["model_name"]: s.value for s in tokens.samples if s.name.endswith("_total")}
    assert counted == {"first": 3.0, "second": 4.0}
    assert "gateway_requests" in {family.name for family in families}
