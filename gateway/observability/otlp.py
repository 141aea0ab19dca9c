"""The OTLP exporter of the settings. Headers (which may hold a key), certificates, compression and time
limits are OpenTelemetry's own OTEL_EXPORTER_OTLP_* variables, which the exporters read by themselves."""

import importlib
from urllib.parse import urlsplit

from opentelemetry.sdk.trace.export import SpanExporter

from gateway.settings import Settings

PACKAGE = "opentelemetry.exporter.otlp.proto"
HTTP_PATH = "/v1/traces"


def exporter(settings: Settings) -> SpanExporter:
    """Imports the one that is needed: gRPC's takes a second."""
    endpoint = settings.trace_endpoint or ""
    parts = urlsplit(endpoint)
    made: SpanExporter
    if settings.trace_protocol == "grpc":
        module = importlib.import_module(f"{PACKAGE}.grpc.trace_exporter")
        made = module.OTLPSpanExporter(endpoint=endpoint, insecure=parts.scheme == "http")
    else:
        module = importlib.import_module(f"{PACKAGE}.http.trace_exporter")
        path = parts.path if parts.path.strip("/") else HTTP_PATH
        made = module.OTLPSpanExporter(endpoint=parts._replace(path=path).geturl())
    return made
