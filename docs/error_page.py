"""docs/errors.md: every error class, with what a caller can do about it."""

import json
import re
from collections.abc import Iterator

from docs.markdown import GENERATED, table
from gateway import errors
from gateway.errors import GatewayError

REMEDIES: dict[type[GatewayError], str] = {
    errors.NoAnswer: "Loosen `stop` or `response_format`, or give more `max_tokens`.",
    errors.InvalidRequest: "Change what `param` and the message name. Sending it again will not help.",
    errors.Unauthorized: "Send `Authorization: Bearer KEY` (or `x-api-key: KEY`) with the server's key.",
    errors.PermissionDenied: "Use a tenant's key for the API, an admin key for the admin listener.",
    errors.RateLimited: "Try again after `Retry-After` seconds; without that header, ask for less.",
    errors.QuotaExceeded: "Wait until midnight UTC, or ask the operator for a larger `daily_tokens`.",
    errors.DependencyUnavailable: "Try again after `Retry-After` seconds; the server is at fault.",
    errors.NotFound: "Check path and spelling; `/docs` lists the native routes, docs/api.md all.",
    errors.ModelNotFound: "Use a name from `GET /v1/models`, or leave `model` out on native routes.",
    errors.MethodNotAllowed: "Use a method from the `Allow` header.",
    errors.Conflict: "Wait for what the message names, or cancel it; `gateway operations list` shows it.",
    errors.BodyTooLarge: "Send less, or raise `GATEWAY_MAX_BODY_BYTES`.",
    errors.SlowRequest: "Send the body without a pause, or raise `GATEWAY_BODY_TIMEOUT_S`.",
    errors.UrlTooLong: "Put it into the body.",
    errors.HeadersTooLarge: "Send fewer and shorter headers; cookies are not needed.",
    errors.TooManyConnections: "Try again after `Retry-After` seconds; keep connections and use them again.",
    errors.UnsupportedMediaType: "Send `content-type: application/json`, not compressed.",
    errors.DeadlineExceeded: "Give a larger `deadline_s` (`Request-Timeout-Ms`), or ask for fewer tokens.",
    errors.InternalError: "Report it with the request id; the server's log has the traceback under it.",
    errors.EngineUnavailable: "Try again after `Retry-After` seconds. `GET /health` tells the state.",
    errors.QueueFull: "Try again after `Retry-After` seconds: the time in which those who wait are served.",
    errors.QueueTimeout: "Try again after `Retry-After` seconds, with fewer requests at once.",
    errors.EngineOverloaded: "Try again after `Retry-After` seconds, with fewer requests at once.",
}


def errors_page() -> str:
    """docs/errors.md"""
    example = errors.ModelNotFound(
        "model 'nobody' is not served here; served: smollm2-135m", "model"
    )
    shapes = (
        ("`/v1/messages*`: Anthropic's", errors.anthropic_body(example, "order-66")),
        (
            "The rest of `/v1/*`, `/tokenize`, `/detokenize`: OpenAI's",
            errors.openai_body(example, "order-66"),
        ),
        (
            "Everything else: RFC 9457, `application/problem+json`",
            errors.problem_body(example, "/generate", "order-66"),
        ),
    )
    lines = ["# Errors", "", GENERATED, ""]
    lines += [
        "`code` is stable and meant for programs; the message is for people and may change. Every answer,",
        "good or bad, has an `X-Request-Id` header; every error below has the same id in its body.",
        "",
        *table(
            ("Status", "Code", "OpenAI `type`", "Anthropic `type`", "Meaning", "What to do"),
            _error_rows(),
        ),
        "",
        "Of these, 503 and 429 carry `Retry-After` (whole seconds), 401 `WWW-Authenticate`, 405 `Allow`.",
        "",
        "On the OpenAI and Anthropic routes vLLM's own handlers refuse some requests themselves (a prompt",
        "longer than the context, a temperature below zero). Those bodies have the same shape; OpenAI's",
        "has the HTTP status as its `code` then. In a stream that has begun the status is gone: the native",
        "routes end with a `*.failed` event, vLLM's with an error object as its data.",
        "",
        "## The three shapes",
    ]
    for title, body in shapes:
        lines += ["", f"{title}:", "", "```json", json.dumps(body, indent=2), "```"]
    return "\n".join([*lines, ""])


def _error_rows() -> Iterator[tuple[str, ...]]:
    for error in _classes(GatewayError):
        status = error.status.value
        kind = errors.ANTHROPIC_TYPES.get(status, "api_error")
        row = (str(status), f"`{error.code}`", f"`{error.openai_type}`", f"`{kind}`")
        yield *row, _meaning(error), REMEDIES[error]


def _classes(base: type[GatewayError]) -> Iterator[type[GatewayError]]:
    for error in base.__subclasses__():
        yield error
        yield from _classes(error)


def _meaning(error: type[GatewayError]) -> str:
    """What the tree in the module's docstring says behind the status.

    Raises:
        ValueError: it does not name the class with its status.
    """
    pattern = rf"\b{error.__name__} +{error.status.value}(.*)"
    found = re.search(pattern, errors.__doc__ or "")
    if found is None:
        raise ValueError(
            f"gateway/errors.py: the tree has no line '{error.__name__} {error.status.value}'"
        )
    return found[1].strip() or error.status.phrase.lower()
