"""A caller's mistake that vLLM's handlers meet late: no stack in the log, and an error the edge knows."""

import logging

from starlette.types import ASGIApp, Receive, Scope, Send
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.exceptions import VLLMClientError

from gateway.errors import InvalidRequest

# They log whatever they catch with its stack, and put its text, which may quote a prompt, into the message.
HANDLERS = (
    "vllm.entrypoints.anthropic.api_router",
    "vllm.entrypoints.anthropic.serving",
    "vllm.entrypoints.openai.chat_completion.serving",
    "vllm.entrypoints.openai.completion.serving",
)


def servers_fault(record: logging.LogRecord) -> bool:
    """A filter: whatever vLLM answers with a 4xx is in the access log, and needs no line of its own."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, Exception) or create_error_response(error).error.code >= 500


def quieten() -> None:
    """From now on, in this process. Twice is once."""
    for name in HANDLERS:
        logging.getLogger(name).addFilter(servers_fault)


def refusing(app: ASGIApp) -> ASGIApp:
    """The app, raising what the edge can make a last event of.

    Starlette finds vLLM's handler for such an error, but cannot call it once a stream has begun, and says
    so in a RuntimeError.
    """

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except RuntimeError as error:
            if isinstance(cause := error.__cause__, VLLMClientError):
                raise refused(cause) from error
            raise

    return call


def refused(error: VLLMClientError) -> InvalidRequest:
    """Its message without the `(parameter=..., value=...)` that vLLM appends."""
    said = str(error.args[0]) if error.args else str(error)
    return InvalidRequest(said, getattr(error, "parameter", None))
