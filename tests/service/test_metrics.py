"""With real engines: /metrics can be read, tells vLLM's families as documented, and agrees with /stats."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from docs.metrics_page import own_families, seen_families
from tests.service.server import DEMO, NANO, Gateway

SEEN = Path(__file__).parents[2] / "docs" / "vllm_families.json"
BOUND: dict[str, Any] = {"thinking_budget": 10, "temperature": 0}
ASKED: dict[str, Any] = {"max_tokens": 200, **BOUND}
HELLO = [{"role": "user", "content": "hi"}]
THINKING = {
    "/thinking": {"question": "hi", **ASKED},
    "/v1/chat/completions": {"messages": HELLO, **ASKED},
    "/v1/responses": {"input": "hi", "max_output_tokens": 200, **BOUND},
    "/v1/messages": {"messages": HELLO, **ASKED},
}


def families(gateway: Gateway) -> dict[str, Metric]:
    found = list(text_string_to_metric_families(gateway.metrics()))
    names = Counter(family.name for family in found)
    assert [name for name, times in names.items() if times > 1] == []
    return {family.name: family for family in found}


def value(gateway: Gateway, family: str, suffix: str = "_total", **labels: str) -> float:
    """Sum of a family's samples with these labels; what was never counted is 0."""
    metric = families(gateway).get(family)
    return sum(
        sample.value
        for sample in (metric.samples if metric else [])
        if sample.name == family + suffix
        and all(sample.labels[key] == told for key, told in labels.items())
    )


def test_every_series_is_told_once_and_has_a_meaning(gateway: Gateway) -> None:
    for family in families(gateway).values():
        series = Counter((s.name, tuple(sorted(s.labels.items()))) for s in family.samples)
        assert max(series.values(), default=1) == 1, family.name
        assert family.documentation and family.type != "unknown", family.name
        assert not family.name.endswith("_created")


def test_vllms_families_are_those_of_the_documentation(gateway: Gateway) -> None:
    """When this fails after an upgrade: `python -m docs.metrics_page URL`, then docs.generate."""
    documented = json.loads(SEEN.read_text(encoding="utf-8"))

    assert seen_families(gateway.metrics()) == documented


def test_our_families_have_the_documented_type_and_labels(gateway: Gateway) -> None:
    documented = {family["name"]: family for family in own_families()}

    told = {name: each for name, each in families(gateway).items() if not name.startswith("vllm:")}

    for name, family in told.items():
        entry = documented[name]
        labels = {label for sample in family.samples for label in sample.labels}
        assert family.type == entry["type"], name
        assert labels <= {*entry["labels"], "le"}, name


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("path", list(THINKING))
def test_a_thought_and_its_times_are_counted_on_every_route(
    gateway: Gateway, http: httpx.Client, path: str, stream: bool
) -> None:
    labels = {"route": path, "model": DEMO}

    def counted() -> dict[str, float]:
        thoughts = {"model": DEMO, "end_reason": "budget", "forced": "true"}
        times = {
            f"{name} {part}": value(gateway, f"gateway_{name}_seconds", part, **labels)
            for name in (
                *("request_duration", "time_to_first_token", "time_per_output_token"),
                "time_to_first_answer_token",
            )
            for part in ("_count", "_sum")
        }
        tokens = {
            kind: value(gateway, "gateway_tokens", model=DEMO, kind=kind)
            for kind in ("prompt", "thinking", "answer")
        }
        return {"thoughts": value(gateway, "gateway_thoughts", **thoughts), **times, **tokens}

    before = counted()
    answer = http.post(path, json={**THINKING[path], "model": DEMO, "stream": stream})
    assert answer.status_code == 200, answer.text
    after = counted()

    risen = {name: after[name] - before[name] for name in after}
    assert [risen[name] for name in risen if name.endswith("_count")] == [1, 1, 1, 1]
    assert (
        risen["thoughts"] == 1 and 9 <= risen["thinking"] <= 10
    )  # a sentence may end in its last tenth
    assert risen["prompt"] > 0 and risen["answer"] > 0
    first, answered = risen["time_to_first_token _sum"], risen["time_to_first_answer_token _sum"]
    # The engine's clock and ours are the same, and a plain answer began before it was whole.
    assert 0 < first < answered < risen["request_duration _sum"]
    assert 0 < risen["time_per_output_token _sum"] < risen["request_duration _sum"]


def test_stats_is_what_metrics_tells(gateway: Gateway, http: httpx.Client) -> None:
    http.post("/generate", json={"prompt": "a", "max_tokens": 5, "model": NANO})
    http.post("/generate", json={})
    stats = http.get("/stats").json()

    for route, outcomes in stats["requests"]["by_route"].items():
        for outcome, count in outcomes.items():
            counted = value(gateway, "gateway_requests", route=route, outcome=outcome)
            assert counted - count == (route == "/stats"), (route, outcome)
    for kind, count in stats["tokens"].items():
        assert value(gateway, "gateway_tokens", kind=kind) == count
    assert stats["thinking"]["thoughts"] == value(gateway, "gateway_thoughts")
    for name, model in stats["models"].items():
        assert gateway.metric("vllm:generation_tokens_total", name) == model["generation_tokens"]
    assert stats["live"]["tokens_per_second"] is not None


def test_engines_and_machine_are_told(gateway: Gateway) -> None:
    assert value(gateway, "gateway_ready", "") == 1
    for model in (DEMO, NANO):
        assert value(gateway, "gateway_engine_up", "", model=model) == 1
        assert value(gateway, "gateway_slot_state", "", model=model, state="ready") == 1
        assert value(gateway, "gateway_slot_state", "", model=model) == 1
    used = value(gateway, "gateway_memory_bytes", "", kind="used")
    assert 0 < used < value(gateway, "gateway_memory_bytes", "", kind="limit")
    assert value(gateway, "process_resident_memory_bytes", "") > 0
