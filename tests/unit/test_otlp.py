"""Spans leave by OTLP over a real socket; where nobody listens, requests do not notice and one line tells."""

import logging
from typing import Any

import pytest
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from pydantic import ValidationError

from gateway.observability import traces
from gateway.observability.otlp import exporter
from gateway.observability.spans import UNTRACED
from gateway.serve import open_tracer
from gateway.settings import Settings, complaints
from tests.otlp import Receiver, values
from tests.ports import free_port
from tests.scripted import ScriptedEngine, client_of, make_gateway, make_settings
from tests.traced import app_with

SECRET = "the-collectors-key"


def tracer_of(settings: Settings) -> traces.OtelTracer:
    sender = traces.ToldOnce(exporter(settings))
    return traces.OtelTracer(traces.provider_of(sender, ALWAYS_ON), settings, sender)


async def generate_on(settings: Settings, times: int = 1) -> traces.OtelTracer:
    """The answers are all good, whatever becomes of the spans."""
    gateway = make_gateway(ScriptedEngine("first"))
    tracer = tracer_of(settings)
    app = app_with(gateway, tracer)
    for _ in range(times):
        answer = await client_of(app).post("/generate", json={"prompt": "Hi"})
        assert answer.status_code == 200
        tracer.provider.force_flush()
    return tracer


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
async def test_a_tree_arrives_with_the_name_of_the_service(
    protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"x-key={SECRET}")
    with Receiver(protocol) as receiver:
        settings = make_settings(trace_endpoint=receiver.url, trace_protocol=protocol)
        tracer = await generate_on(settings)
        await tracer.aclose()

    names = [span.name for span in receiver.spans]
    assert sorted(names) == ["POST /generate", "auth", "queue", "render", "text_completion first"]
    assert receiver.services() == {"thinking-gateway"}
    assert receiver.headers[0]["x-key"] == SECRET
    root = next(span for span in receiver.spans if span.name == "POST /generate")
    assert values(root)["http.response.status_code"] == 200


async def test_the_operators_name_of_the_service_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "thinker-eu")
    with Receiver() as receiver:
        await (await generate_on(make_settings(trace_endpoint=receiver.url))).aclose()

    assert receiver.services() == {"thinker-eu"}


async def test_what_waits_is_sent_at_the_end() -> None:
    with Receiver() as receiver:
        settings = make_settings(trace_endpoint=receiver.url)
        gateway, tracer = make_gateway(ScriptedEngine("first")), tracer_of(settings)
        app = app_with(gateway, tracer)
        await client_of(app).get("/stats")
        await tracer.aclose()

    assert "GET /stats" in [span.name for span in receiver.spans]


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
async def test_a_receiver_that_is_away_is_told_once_and_nobody_else_notices(
    protocol: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"x-key={SECRET}")
    caplog.set_level(logging.INFO)
    away = f"http://127.0.0.1:{free_port()}"
    tracer = await generate_on(make_settings(trace_endpoint=away, trace_protocol=protocol), times=2)

    await tracer.aclose()

    told = [record for record in caplog.records if not record.name.startswith("httpx")]
    assert [record.name for record in told if "gateway.access" not in record.name] == [
        "gateway.observability.traces"
    ]
    assert SECRET not in caplog.text


async def test_it_is_told_when_traces_are_sent_again(caplog: pytest.LogCaptureFixture) -> None:
    class Flaky(SpanExporter):
        results = [SpanExportResult.FAILURE] * 3 + [SpanExportResult.SUCCESS] * 2

        def export(self, spans: object) -> SpanExportResult:
            return self.results.pop(0)

    told = traces.ToldOnce(Flaky())

    for _ in range(5):
        told.export([])

    assert [record.message.split(";")[0] for record in caplog.records] == [
        "traces cannot be sent",
        "traces are sent again",
    ]


def test_without_an_endpoint_there_is_no_tracer() -> None:
    assert open_tracer(make_settings(trace_endpoint="")) is UNTRACED


@pytest.mark.parametrize(
    "url",
    ["collector:4317", "ftp://collector", "http://user:pw@collector:4318", "http://h:1/?key=x"],
)
def test_an_endpoint_that_is_none_or_holds_a_key_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ValidationError) as refused:
        make_settings(trace_endpoint=url)

    (line,) = complaints(refused.value)
    assert line.startswith("GATEWAY_TRACE_ENDPOINT: ") and "pw" not in line and "key=x" not in line


@pytest.mark.parametrize(
    ("given", "sent_to"),
    [
        ("http://c:4318", "http://c:4318/v1/traces"),
        ("http://c:4318/", "http://c:4318/v1/traces"),
        ("https://c/otlp/v1/traces", "https://c/otlp/v1/traces"),
    ],
)
def test_a_bare_address_gets_otlps_path(given: str, sent_to: str) -> None:
    made: Any = exporter(make_settings(trace_endpoint=given))

    assert made._endpoint == sent_to
