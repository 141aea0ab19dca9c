"""vLLM's own span of each engine request, in the gateway's trace.

vLLM makes it in our process when a request ends well (an aborted one, such as a thought that was cut, has
none) and takes the process's provider for it. Its `otlp_traces_endpoint` would make a second provider for
each engine, whose exporter knows no TLS and whose thread outlives the engine; so only the two places are set
that it looks at for each request.
"""

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import get_tracer_provider
from vllm.v1.engine.async_llm import AsyncLLM

OURS = "the gateway's own provider"


def trace(client: AsyncLLM) -> None:
    """From now on, where the gateway traces: requests that bring trace headers get a span below them."""
    if isinstance(get_tracer_provider(), TracerProvider):
        client.observability_config.otlp_traces_endpoint = OURS
        client.output_processor.tracing_enabled = True
