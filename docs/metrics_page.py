"""docs/metrics.md: every family of /metrics, and every field of /stats and /health.

Our families come from the registries of a gateway without models, built as `gateway serve` builds one;
vLLM's from docs/vllm_families.json, which a service test compares with the real engine's:

    python -m docs.metrics_page http://127.0.0.1:8001/metrics     write that file anew
"""

import json
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from pydantic import BaseModel

from docs.markdown import GENERATED, table
from gateway.app import create_app
from gateway.engines.fleet import Fleet
from gateway.observability.collectors import RedisGauges
from gateway.observability.figures import Figures
from gateway.observability.stats import Stats
from gateway.policy.ledger import MemoryLedger
from gateway.policy.redis_ledger import RedisLedger
from gateway.routes.health import Health
from gateway.settings import Settings
from gateway.tenancy import Tenancy
from gateway.tls import expiry_gauge

SEEN = Path(__file__).parent / "vllm_families.json"
# Labels that the gateway puts on each of vLLM's samples, and those of a histogram's buckets.
ADDED = {"profile", "format", "slot"}
OF_BUCKETS = {"le"}

Family = dict[str, Any]  # name, type, help, labels


def metrics_page() -> str:
    """The page."""
    engines = json.loads(SEEN.read_text(encoding="utf-8"))
    return "\n".join(
        [
            "# Metrics, `/stats` and `/health`",
            "",
            GENERATED,
            "",
            "`GET /metrics` on the admin listener tells all of it in Prometheus' text format. Names follow",
            "Prometheus (base units; counters end in `_total`), buckets OpenTelemetry's for generative AI as",
            "far as they reach. A request is counted when it is over, from what engine and layers noted;",
            "nothing is done per token. Probes (`/health*`, `/ping`) and the admin listener are not counted.",
            "",
            "`model` is the served name; it is empty for a request that was refused before its model was",
            "known, `profile` and `format` before an engine took it, `tenant` without a good key. The first",
            "`GATEWAY_METRICS_TENANTS` tenants have a label value of their own, the rest is `other`.",
            "`outcome` is `ok`, `client_error`, `rejected` (a good request, but no room or quota now),",
            "`server_error` or `disconnected`. With `GATEWAY_METRICS=false` no request is counted.",
            "",
            "## The gateway's own",
            "",
            *table(HEAD, _rows(own_families())),
            "",
            "Times to the first token of the gateway begin when the request arrives at the gateway, vLLM's",
            "when it arrives at the engine; both end with the engine's own token, not with the byte sent.",
            "",
            "## vLLM's, of each engine",
            "",
            "As version 0.32 tells them on a CPU. Each sample also has `profile`, `format` and `slot` (the",
            "number of the engine since the start); they begin anew with each engine.",
            "",
            *table(HEAD, _rows(engines)),
            "",
            "## `GET /stats`",
            "",
            "The counts are read from the counters above. Names do not change.",
            "",
            *table(("Field", "Type", "Meaning"), _fields(Stats)),
            "",
            "## `GET /health`",
            "",
            *table(("Field", "Type", "Meaning"), _fields(Health)),
            "",
        ]
    )


HEAD = ("Name", "Type", "Labels", "Meaning")


def _rows(families: list[Family]) -> Iterator[tuple[str, ...]]:
    for family in families:
        labels = ", ".join(f"`{label}`" for label in family["labels"])
        suffix = "_total" if family["type"] == "counter" else ""
        yield f"`{family['name']}{suffix}`", family["type"], labels, family["help"]


def own_families() -> list[Family]:
    """Of a gateway with everything on, by name."""
    figures = Figures()
    quiet: dict[str, Any] = {"usage_url": "off", "audit_log": "off", "_env_file": None}
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(**quiet, state_dir=Path(folder))
        tenancy = Tenancy.of(settings, figures.registry)
        create_app(settings, Fleet([], settings), figures, tenancy)
    expiry_gauge(figures.registry)
    # Registered only where Redis is configured; nothing is asked of it here.
    figures.gauges.register(RedisGauges(RedisLedger("redis://localhost", MemoryLedger())))
    found = [
        described(metric, collector)
        for registry in (figures.registry, figures.gauges)
        for collector in collectors_of(registry)
        for metric in metrics_of(collector)
    ]
    return sorted(found, key=lambda family: str(family["name"]))


def collectors_of(registry: CollectorRegistry) -> list[Collector]:
    """prometheus_client tells no one which collectors it has."""
    return list(registry._collector_to_names)


def metrics_of(collector: Collector) -> list[Metric]:
    """Named without reading anything where the collector can do that."""
    describe = getattr(collector, "describe", collector.collect)
    return list(describe())


def described(metric: Metric, collector: Collector) -> Family:
    labels: Sequence[str] = getattr(metric, "_labelnames", getattr(collector, "_labelnames", ()))
    return {
        "name": metric.name,
        "type": metric.type,
        "help": metric.documentation,
        "labels": list(labels),
    }


def seen_families(text: str) -> list[Family]:
    """vLLM's families in the text of /metrics, without the labels that the gateway adds."""
    return [
        {
            "name": family.name,
            "type": family.type,
            "help": family.documentation,
            "labels": _labels(family),
        }
        for family in sorted(text_string_to_metric_families(text), key=lambda each: str(each.name))
        if family.name.startswith("vllm:")
    ]


def _labels(family: Metric) -> list[str]:
    labels = {label for sample in family.samples for label in sample.labels}
    return sorted(labels - ADDED - (OF_BUCKETS if family.type == "histogram" else set()))


def _fields(model: type[BaseModel]) -> Iterator[tuple[str, ...]]:
    schema = model.model_json_schema()
    yield from _of_object(schema, schema.get("$defs", {}), "")


def _of_object(
    schema: Mapping[str, Any], known: Mapping[str, Any], before: str
) -> Iterator[tuple[str, ...]]:
    for name, field in schema["properties"].items():
        path = f"{before}{name}"
        yield f"`{path}`", _kind(field, known), _meaning(field, known)
        inner, mark = _inside(field)
        target = known.get(inner.rsplit("/", 1)[-1]) if inner else None
        if target and "properties" in target:
            yield from _of_object(target, known, f"{path}{mark}.")


def _inside(field: Mapping[str, Any]) -> tuple[str, str]:
    """The object that a field holds, or holds many of."""
    if "items" in field:
        return field["items"].get("$ref", ""), "[]"
    extra = field.get("additionalProperties")
    if isinstance(extra, dict):
        return extra.get("$ref", ""), ".*"
    return field.get("$ref", ""), ""


def _kind(field: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_kind(part, known) for part in field["anyOf"])
    if "$ref" in field:
        return str(known[field["$ref"].rsplit("/", 1)[-1]].get("type", "object"))
    return str(field.get("type", "any"))


def _meaning(field: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    text = field.get("description", "")
    target = known.get(_inside(field)[0].rsplit("/", 1)[-1], {})
    parts = [text, target.get("description", "") if "properties" in target else ""]
    parts += [", ".join(map(str, target["enum"])) + "."] if "enum" in target else []
    return " ".join(" ".join(part.split()) for part in parts if part)


def main() -> None:
    """Write vLLM's families down, as a running gateway tells them."""
    with urllib.request.urlopen(sys.argv[1], timeout=60) as answer:
        families = seen_families(answer.read().decode())
    rows = ",\n".join(json.dumps(family) for family in families)
    SEEN.write_text(f"[\n{rows}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
