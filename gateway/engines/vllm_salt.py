"""The tenant's salt on every request that a vLLM engine gets, whichever route or phase it comes from."""

from typing import Any

from vllm.v1.engine.async_llm import AsyncLLM

from gateway.policy.salt import salted


def salt(client: AsyncLLM) -> None:
    """From now on. Every way into the engine passes where vLLM gives a request its id inside."""
    processor = client.input_processor
    assign = processor.assign_request_id

    def assign_request_id(request: Any) -> None:
        assign(request)
        request.cache_salt = salted(request.cache_salt)

    processor.assign_request_id = assign_request_id
