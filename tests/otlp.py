"""A real OTLP receiver: HTTP or gRPC on a socket of this machine, and the spans that came."""

import threading
from collections.abc import Callable
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Receiver:
    """`with Receiver("grpc") as receiver`: `url` is its address, `spans` what it got."""

    def __init__(self, protocol: str = "http/protobuf") -> None:
        self.protocol = protocol
        self.requests: list[ExportTraceServiceRequest] = []
        self.headers: list[dict[str, str]] = []

    def __enter__(self) -> "Receiver":
        start = self._start_grpc if self.protocol == "grpc" else self._start_http
        self.url, self._stop = start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def services(self) -> set[str]:
        """Names of the services that sent."""
        resources = [each.resource for request in self.requests for each in request.resource_spans]
        return {
            pair.value.string_value
            for resource in resources
            for pair in resource.attributes
            if pair.key == "service.name"
        }

    def _start_http(self) -> tuple[str, Callable[[], None]]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def stop() -> None:
            server.shutdown()
            server.server_close()

        return f"http://127.0.0.1:{server.server_address[1]}", stop

    def _start_grpc(self) -> tuple[str, Callable[[], None]]:
        server = grpc.server(futures.ThreadPoolExecutor(2))
        add: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server  # it has no types
        add(_Servicer(self), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        return f"http://127.0.0.1:{port}", lambda: server.stop(None).wait()


class _Servicer(TraceServiceServicer):
    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver

    def Export(self, request: Any, context: Any) -> ExportTraceServiceResponse:
        self.receiver.headers.append(dict(context.invocation_metadata()))
        self.receiver.requests.append(request)
        return ExportTraceServiceResponse()


def _handler(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            known = self.path == "/v1/traces"
            if known:
                receiver.headers.append(
                    {name.lower(): value for name, value in self.headers.items()}
                )
                receiver.requests.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200 if known else 404)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Not on the tests' screen."""

    return Handler


def values(span: Span) -> dict[str, Any]:
    """Attributes by name, as Python values."""
    return {pair.key: _value(pair.value) for pair in span.attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind)
