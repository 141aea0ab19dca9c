"""What each request draws from a vLLM engine, for the request's meter.

vLLM keeps a state per sequence, which counts its tokens anyway and outlives neither more nor less than the
request. The meter holds on to it, so nothing is done per token, and a request that was aborted, plain or
streamed, is counted to its last token.
"""

from typing import Any

from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.output_processor import RequestState

from gateway.observability.spans import OFF
from gateway.policy.line import TICKET
from gateway.policy.meter import METER


class Sequence:
    """Keeps `gateway.policy.meter.Drawn`."""

    def __init__(self, state: RequestState) -> None:
        self.state = state

    @property
    def prompt(self) -> int:
        return 0 if self.state.request_index else int(self.state.prompt_len)

    @property
    def cached(self) -> int:
        return 0 if self.state.request_index else int(self.state.num_cached_tokens)

    @property
    def output(self) -> int:
        return int(self.state.detokenizer.num_output_tokens()) if self.state.detokenizer else 0

    @property
    def name(self) -> str:
        return str(self.state.external_req_id)

    @property
    def first_at(self) -> float | None:
        """The engine process' `time.monotonic`: on one machine the same clock as our `perf_counter`."""
        return self.state.stats.first_token_ts or None if self.state.stats else None

    @property
    def last_at(self) -> float | None:
        return self.state.stats.last_token_ts or None if self.state.stats else None


def meter(client: AsyncLLM) -> None:
    """From now on, tell each request's meter of the sequences that it adds."""
    processor = client.output_processor
    add = processor.add_request

    def add_request(request: Any, *args: Any, **kwargs: Any) -> None:
        add(request, *args, **kwargs)
        sequence = Sequence(processor.request_states[request.request_id])
        for asking in (METER.get(), TICKET.get()):
            if asking is not None:
                asking.drawn.append(sequence)
        if (meter := METER.get()) is not None:
            meter.notes.get("render", OFF).end()  # vLLM's own handlers have rendered the prompt

    processor.add_request = add_request
