"""Gateways over scripted engines whose traces end up in memory."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from starlette.types import ASGIApp

from gateway.app import create_app
from gateway.observability.figures import Figures
from gateway.observability.traces import OtelTracer
from tests.scripted import Gateway, client_of

Tree = dict[str, Any]


def app_with(gateway: Gateway, tracer: OtelTracer) -> ASGIApp:
    """Another public app over the same engines; figures are an app's own."""
    figures = Figures(gateway.settings.metrics_tenants)
    return create_app(gateway.settings, gateway.fleet, figures, gateway.tenancy, tracer)


class Traced:
    """A gateway with tracing on."""

    def __init__(self, gateway: Gateway, sample: float = 1.0) -> None:
        self.gateway = gateway
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(ParentBased(TraceIdRatioBased(sample)), shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        tracer = OtelTracer(provider, gateway.settings)
        self.app: ASGIApp = app_with(gateway, tracer)
        self.client: httpx.AsyncClient = client_of(self.app)

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    def named(self, name: str) -> ReadableSpan:
        (span,) = [span for span in self.spans if span.name == name]
        return span

    def tree(self) -> Tree:
        """Names below names, of the only trace; beside each other in the order they began."""
        roots = [span for span in self.spans if span.parent is None or span.parent.is_remote]
        (root,) = roots
        return {root.name: self._below(root)}

    def _below(self, span: ReadableSpan) -> Tree | list[Tree | str]:
        children = sorted(self._children(span), key=lambda child: child.start_time or 0)
        return [
            {child.name: self._below(child)} if any(self._children(child)) else child.name
            for child in children
        ]

    def _children(self, span: ReadableSpan) -> Iterator[ReadableSpan]:
        assert span.context is not None
        ours = span.context.span_id
        yield from (each for each in self.spans if each.parent and each.parent.span_id == ours)

    def text(self) -> str:
        """All that left the process."""
        return "".join(
            json.dumps(json.loads(span.to_json()), ensure_ascii=False) for span in self.spans
        )


def told(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})
