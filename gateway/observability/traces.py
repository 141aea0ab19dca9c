"""Traces by OpenTelemetry: one tree of spans for each request, sent by OTLP. docs/observability.md.

Imported only when tracing is on. The provider is also made the process's own: vLLM takes its spans there,
so that they leave by the same exporter, under the same sampling.
"""

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import SpanKind, Status, StatusCode, format_trace_id
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from pydantic import BaseModel
from starlette.types import Scope

from gateway import __version__
from gateway.asgi import Exchange
from gateway.errors import GatewayError
from gateway.observability.otlp import exporter
from gateway.observability.outcome import UNMATCHED, error_of, outcome_of
from gateway.observability.requests import first_token_s
from gateway.observability.spans import Attributes, Branch, Tracer
from gateway.policy.keys import PUBLIC
from gateway.settings import Settings

log = logging.getLogger(__name__)

SERVICE = "thinking-gateway"
W3C = TraceContextTextMapPropagator()
CONTEXT_HEADERS = (b"traceparent", b"tracestate")
MAX_PATH = 256
# Bodies' names -> OpenTelemetry's, for values that are numbers.
# https://github.com/open-telemetry/semantic-conventions-genai
ASKED = {
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "max_output_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "seed": "gen_ai.request.seed",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "n": "gen_ai.request.choice.count",
    "stream": "gen_ai.request.stream",
    "thinking_depth": "gateway.thinking.depth",
    "thinking_budget": "gateway.thinking.budget",
    "samples": "gateway.thinking.samples",
}
USED = {
    "prompt": "gen_ai.usage.input_tokens",
    "cached": "gen_ai.usage.cache_read.input_tokens",
    "thinking": "gen_ai.usage.reasoning.output_tokens",
    "output": "gen_ai.usage.output_tokens",
}
PROMPTS = ("question", "prompt", "messages", "input")


def open_tracer(settings: Settings) -> "OtelTracer":
    """From settings; the SDK's own OTEL_* variables say what they do not (headers, certificates, batches)."""
    sender = ToldOnce(exporter(settings))
    provider = provider_of(sender, ParentBased(TraceIdRatioBased(settings.trace_sample)))
    trace.set_tracer_provider(provider)
    return OtelTracer(provider, settings, sender)


def provider_of(exporter: SpanExporter, sampler: Sampler) -> TracerProvider:
    """Spans wait in memory and leave in a thread of their own; when too many wait, the oldest go."""
    resource = Resource.create().merge(Resource({SERVICE_VERSION: __version__}))
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: SERVICE}))
    provider = TracerProvider(sampler, resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


class ToldOnce(SpanExporter):
    """An exporter whose failures are told once, and its recovery; the SDK would tell each attempt."""

    def __init__(self, inner: SpanExporter) -> None:
        self.inner = inner
        self.failing = self.ended = False
        for name in ("opentelemetry.exporter", "opentelemetry.sdk"):
            logging.getLogger(name).setLevel(logging.CRITICAL)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = self.inner.export(spans)
        except Exception:  # noqa: BLE001 - whatever it is, requests go on
            result = SpanExportResult.FAILURE
        failed = result is not SpanExportResult.SUCCESS
        if failed and not self.failing:
            log.warning(
                "traces cannot be sent; spans are lost until they can (GATEWAY_TRACE_ENDPOINT)"
            )
        elif self.failing and not failed:
            log.warning("traces are sent again")
        self.failing = failed
        return result

    def shutdown(self) -> None:
        if not self.ended:
            self.ended = True
            self.inner.shutdown()


class OtelTracer(Tracer):
    """A span for each request that is no probe; under a caller's own, where it sent one."""

    def __init__(
        self, provider: TracerProvider, settings: Settings, sender: "ToldOnce | None" = None
    ) -> None:
        self.provider = provider
        self.sender = sender
        self.settings = settings
        self._tracer = provider.get_tracer("gateway", __version__)

    def begin(self, exchange: Exchange, scope: Scope) -> None:
        if exchange.path in PUBLIC:
            return
        carrier: dict[str, str] = {}
        for name, value in scope["headers"]:
            if name in CONTEXT_HEADERS:
                carrier.setdefault(name.decode(), value.decode("latin-1"))
        span = self._tracer.start_span(exchange.method, W3C.extract(carrier), SpanKind.SERVER)
        if span.is_recording():
            exchange.notes["trace"] = Spanned(span, self._tracer, self.settings.trace_prompts)
        else:
            exchange.notes["trace"] = Unsampled(span)

    def observe(self, exchange: Exchange) -> None:
        branch = exchange.notes.get("trace")
        if not isinstance(branch, Spanned):
            return
        branch.span.update_name(f"{exchange.method} {exchange.route or UNMATCHED}")
        branch.note(_of_request(exchange))
        failure = error_of(exchange) or str(exchange.status)
        if outcome_of(exchange) == "server_error":
            branch.failed(failure)
        elif exchange.status >= 400:  # no failure of the server's, by the conventions
            branch.note({"error.type": failure})
        branch.end()

    async def aclose(self) -> None:
        if self.sender is not None and self.sender.failing:
            await asyncio.to_thread(self.sender.shutdown)  # or the end would wait for its retries
        await asyncio.to_thread(self.provider.shutdown)


def _of_request(exchange: Exchange) -> dict[str, Any]:
    notes = exchange.notes
    slot, meter, tenant = notes.get("slot"), notes.get("meter"), notes.get("tenant")
    told: dict[str, Any] = {
        "http.request.method": exchange.method,
        "http.route": exchange.route,
        "http.response.status_code": exchange.status or None,
        "url.path": exchange.path[:MAX_PATH],
        "gateway.request_id": exchange.request_id,
        "gateway.outcome": outcome_of(exchange),
        "gateway.stream": exchange.streamed,
        "gateway.tenant": tenant.name if tenant else None,
        "gateway.ttft_s": first_token_s(exchange),
    }
    if slot is not None:
        told |= {"gateway.model": notes["model"], "gateway.profile": slot.profile.name}
        told |= {"gateway.format": slot.format}
    if slot is not None and meter is not None:
        cost = meter.cost()  # also of a request that did not end well, where no inference tells
        for name in ("prompt", "cached", "thinking", "answer"):
            told[f"gateway.{name}_tokens"] = getattr(cost, name)
    return told


def _headers(span: trace.Span) -> dict[str, str]:
    carrier: dict[str, str] = {}
    W3C.inject(carrier, trace.set_span_in_context(span))
    return carrier


class Unsampled(Branch):
    """Nothing is recorded, and whatever works below is told so."""

    def __init__(self, span: trace.Span) -> None:
        self.trace_id = format_trace_id(span.get_span_context().trace_id)
        self._told = _headers(span)

    def headers(self) -> Mapping[str, str]:
        return self._told


class Spanned(Branch):
    """A recorded span."""

    def __init__(self, span: trace.Span, tracer: trace.Tracer, prompts: bool) -> None:
        self.span = span
        self.trace_id = format_trace_id(span.get_span_context().trace_id)
        self._tracer = tracer
        self._prompts = prompts

    def child(self, name: str, attributes: Attributes | None = None) -> Branch:
        context = trace.set_span_in_context(self.span)
        span = self._tracer.start_span(name, context, attributes=dict(attributes or {}))
        return Spanned(span, self._tracer, self._prompts)

    def inference(self, operation: str, model: str, request: Any) -> Branch:
        branch = self.child(
            f"{operation} {model}",
            {
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "vllm",
                "gen_ai.request.model": model,
            },
        )
        body = request.model_dump() if isinstance(request, BaseModel) else request
        for name, attribute in ASKED.items():
            if isinstance(value := body.get(name), int | float):
                branch.note({attribute: value})
        if self._prompts:
            prompts = {name: body[name] for name in PROMPTS if body.get(name) is not None}
            branch.note({"gen_ai.input.messages": json.dumps(prompts, ensure_ascii=False)})
        return branch

    def note(self, attributes: Attributes) -> None:
        self.span.set_attributes(
            {name: value for name, value in attributes.items() if value is not None}
        )

    def answered(self, usage: Mapping[str, int], reasons: Sequence[str | None]) -> None:
        self.note({USED[name]: value for name, value in usage.items()})
        if known := [reason for reason in reasons if reason]:
            self.note({"gen_ai.response.finish_reasons": known})

    def said(self, texts: Sequence[str]) -> None:
        if self._prompts:
            told = [{"role": "assistant", "content": text} for text in texts]
            self.note({"gen_ai.output.messages": json.dumps(told, ensure_ascii=False)})

    def failed(self, kind: str) -> None:
        self.span.set_status(Status(StatusCode.ERROR))
        self.note({"error.type": kind})

    def headers(self) -> Mapping[str, str]:
        return _headers(self.span)

    def end(self) -> None:
        if self.span.is_recording():
            self.span.end()

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        """An error's name is kept, its message is not: it may quote the request."""
        if isinstance(error, GatewayError):
            self.failed(error.code)
        elif isinstance(error, GeneratorExit | asyncio.CancelledError):
            self.note({"gateway.cancelled": True})
        elif error is not None:
            self.failed(type(error).__qualname__)
        self.end()
