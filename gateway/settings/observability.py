"""What is told of it."""

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]


class Observability(BaseSettings):
    log_level: LogLevel = Field(
        default="INFO", description="What is logged: DEBUG, INFO, WARNING or ERROR."
    )
    metrics: bool = Field(
        default=True,
        description="Count requests for `/metrics` and `/stats`. false: gauges and the engines' own only.",
    )
    metrics_tenants: int = Field(
        default=100,
        ge=0,
        description="Tenants that metrics name, the first ones seen; all others together are `other`.",
    )
    log_format: Literal["auto", "json", "text"] = Field(
        default="auto",
        description="How lines look: `json`, `text`, or `auto`: text on a terminal and JSON elsewhere.",
    )
    access_log: bool = Field(
        default=True, description="A line for each request, with tokens and times."
    )
    trace_endpoint: str | None = Field(
        default=None,
        description="Where traces go, by OTLP: http://HOST:4318, or :4317 for gRPC. Unset: no tracing. "
        "Headers, certificates and batches: OpenTelemetry's own OTEL_* variables.",
    )
    trace_protocol: Literal["http/protobuf", "grpc"] = Field(
        default="http/protobuf", description="How they go there: `http/protobuf` or `grpc`."
    )
    trace_sample: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Share of requests that are traced; where a caller sends `traceparent`, its flag counts.",
    )
    trace_prompts: bool = Field(
        default=False,
        description="true: prompts and answers are put into traces, for whoever reads them.",
    )

    @field_validator("trace_endpoint")
    @classmethod
    def endpoint_is_meant(cls, value: str | None) -> str | None:
        """A key in it would be shown wherever settings are."""
        parts = urlsplit(value or "http://unset")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("it is no http:// or https:// URL")
        if parts.username or parts.password or parts.query:
            raise ValueError("keys belong into OTEL_EXPORTER_OTLP_HEADERS, not into the URL")
        return value
