"""Every error a client can see, and the three ways of writing it down.

    GatewayError
    ├── InvalidRequest       400  the caller must change the request
    ├── NoAnswer             422  the model said nothing that can be shown
    ├── Unauthorized         401  no key, or a wrong one
    ├── PermissionDenied     403  a good key of the wrong kind
    ├── NotFound             404  unknown route
    │   └── ModelNotFound    404  a model that is not served
    ├── MethodNotAllowed     405
    ├── SlowRequest          408  the body did not come in time
    ├── Conflict             409  it does not go together with what is under way
    ├── BodyTooLarge         413  counted on the stream
    ├── UrlTooLong           414
    ├── UnsupportedMediaType 415  the body is not declared as JSON
    ├── HeadersTooLarge      431  too many, or too long
    ├── RateLimited          429  a limit of the caller's own tenant
    │   └── QuotaExceeded    429  the tenant's tokens of the day are used up
    ├── DeadlineExceeded     504  the request's own `deadline_s` or `Request-Timeout-Ms` is over
    ├── InternalError        500  a defect of ours; the log has the traceback
    ├── TooManyConnections   503  open at this listener
    ├── DependencyUnavailable 503 what checks keys or limits cannot be reached
    └── EngineUnavailable    503  the engine is starting, dead, hung or draining
        ├── EngineOverloaded 503  the engine's own queue is full
        ├── QueueFull        503  too many requests wait for the engine
        └── QueueTimeout     503  it waited for the engine as long as it may

Raise these anywhere; return them nowhere. `/v1/messages` gets Anthropic's error object, the rest of
`/v1/*` OpenAI's, everything else RFC 9457 problem details.
"""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar

# Routes that OpenAI's clients call and that therefore answer errors as OpenAI does.
OPENAI_PREFIXES = ("/v1/", "/tokenize", "/detokenize")
ANTHROPIC_PREFIX = "/v1/messages"
RESPONSES = "/v1/responses"
DONE = b"data: [DONE]\n\n"
ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
NO_FIELDS = {"body", "query", "path", "str", "int", "float", "bool"}


class GatewayError(Exception):
    """Base class: status, stable code, and which request field (`param`) is to blame."""

    status: ClassVar[HTTPStatus] = HTTPStatus.INTERNAL_SERVER_ERROR
    code: ClassVar[str] = "internal_error"
    openai_type: str = "server_error"
    closes: ClassVar[bool] = (
        False  # the request was not read to its end; nothing else can come behind it
    )
    rejects: ClassVar[bool] = False  # the request is good; there is no room or no quota for it now

    def __init__(
        self, message: str, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.headers = dict(headers or {}) | ({"connection": "close"} if self.closes else {})


class InvalidRequest(GatewayError):
    status = HTTPStatus.BAD_REQUEST
    code = "invalid_request"
    openai_type = "invalid_request_error"


class NoAnswer(GatewayError):
    """The model said nothing that can be seen; a 200 would break the promise of an answer."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    code = "no_answer"
    openai_type = "invalid_request_error"


class Unauthorized(GatewayError):
    status = HTTPStatus.UNAUTHORIZED
    code = "invalid_api_key"
    openai_type = "authentication_error"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"www-authenticate": "Bearer"})


class PermissionDenied(GatewayError):
    status = HTTPStatus.FORBIDDEN
    code = "permission_denied"
    openai_type = "permission_error"


class NotFound(GatewayError):
    status = HTTPStatus.NOT_FOUND
    code = "not_found"
    openai_type = "invalid_request_error"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(GatewayError):
    status = HTTPStatus.METHOD_NOT_ALLOWED
    code = "method_not_allowed"
    openai_type = "invalid_request_error"


class Conflict(GatewayError):
    status = HTTPStatus.CONFLICT
    code = "conflict"
    openai_type = "invalid_request_error"


class SlowRequest(GatewayError):
    status = HTTPStatus.REQUEST_TIMEOUT
    code = "slow_request"
    openai_type = "invalid_request_error"
    closes = True


class BodyTooLarge(GatewayError):
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    code = "body_too_large"
    openai_type = "invalid_request_error"
    closes = True


class UrlTooLong(GatewayError):
    status = HTTPStatus.REQUEST_URI_TOO_LONG
    code = "url_too_long"
    openai_type = "invalid_request_error"
    closes = True


class HeadersTooLarge(GatewayError):
    status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    code = "headers_too_large"
    openai_type = "invalid_request_error"
    closes = True


class TooManyConnections(GatewayError):
    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "too_many_connections"
    closes = True
    rejects = True

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"retry-after": "1"})


class InternalError(GatewayError):
    pass


class UnsupportedMediaType(GatewayError):
    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    code = "unsupported_media_type"
    openai_type = "invalid_request_error"


class DeadlineExceeded(GatewayError):
    status = HTTPStatus.GATEWAY_TIMEOUT
    code = "deadline_exceeded"


class RateLimited(GatewayError):
    """The caller's limit, not our capacity. `retry_after_s` None: the same request never fits."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    code = "rate_limit_exceeded"
    rejects = True
    openai_type = "requests"  # or "tokens": OpenAI names here what there was too much of

    def __init__(self, message: str, kind: str, retry_after_s: int | None) -> None:
        # OpenAI's and Anthropic's SDKs try a 429 again unless they are told not to.
        headers = {"x-should-retry": "false"}
        if retry_after_s is not None:
            headers = {"retry-after": str(max(1, retry_after_s))}
        super().__init__(message, headers=headers)
        self.openai_type = kind


class QuotaExceeded(RateLimited):
    """Until midnight; nobody should try again in a second."""

    code = "insufficient_quota"
    openai_type = "insufficient_quota"

    def __init__(self, message: str, kind: str, retry_after_s: int | None) -> None:
        super().__init__(message, kind, retry_after_s)
        self.headers["x-should-retry"] = "false"


class DependencyUnavailable(GatewayError):
    """Retry after `retry_after_s` seconds (whole, at least 1)."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "dependency_unavailable"

    def __init__(self, message: str, retry_after_s: float = 5) -> None:
        super().__init__(message, headers={"retry-after": str(max(1, round(retry_after_s)))})


class EngineUnavailable(GatewayError):
    """Retry after `retry_after_s` seconds (whole, at least 1)."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "engine_unavailable"

    def __init__(self, message: str, retry_after_s: float = 5) -> None:
        super().__init__(message, headers={"retry-after": str(max(1, round(retry_after_s)))})


class EngineOverloaded(EngineUnavailable):
    code = "engine_overloaded"
    rejects = True


class QueueFull(EngineUnavailable):
    """Our capacity, not the caller's limit; `retry_after_s` from the rate at which requests leave."""

    code = "queue_full"
    rejects = True


class QueueTimeout(EngineUnavailable):
    code = "queue_timeout"
    rejects = True


def openai_body(error: GatewayError, request_id: str) -> dict[str, Any]:
    """OpenAI's error object. Source: openai-python `APIError` reads message, type, param, code."""
    return {
        "error": {
            "message": error.message,
            "type": error.openai_type,
            "param": error.param,
            "code": error.code,
            "request_id": request_id,
        }
    }


def anthropic_body(error: GatewayError, request_id: str) -> dict[str, Any]:
    """Anthropic's error object. Source: https://docs.anthropic.com/en/api/errors"""
    kind = ANTHROPIC_TYPES.get(error.status.value, "api_error")
    told = {"type": kind, "message": error.message, "param": error.param, "code": error.code}
    return {"type": "error", "error": told, "request_id": request_id}


def problem_body(error: GatewayError, path: str, request_id: str) -> dict[str, Any]:
    """RFC 9457 problem details; `code`, `param` and `request_id` are extension members."""
    return {
        "type": f"urn:gateway:error:{error.code}",
        "title": error.status.phrase,
        "status": error.status.value,
        "detail": error.message,
        "instance": path,
        "code": error.code,
        "param": error.param,
        "request_id": request_id,
    }


def render(error: GatewayError, path: str, request_id: str) -> tuple[str, bytes]:
    """Media type and body of an error on this path."""
    if path.startswith(ANTHROPIC_PREFIX):
        return "application/json", json.dumps(anthropic_body(error, request_id)).encode()
    if path.startswith(OPENAI_PREFIXES):
        return "application/json", json.dumps(openai_body(error, request_id)).encode()
    return "application/problem+json", json.dumps(problem_body(error, path, request_id)).encode()


def last_event(error: GatewayError, path: str, request_id: str) -> bytes:
    """The error as the end of a stream, in the shape that this path's clients raise on.

    Source: openai-python `Stream.__stream__` raises for an `error` member of an event's data.
    """
    if path.startswith(ANTHROPIC_PREFIX):
        return _event("error", anthropic_body(error, request_id))
    if path == RESPONSES:
        told = {"type": "error", "code": error.code, "message": error.message, "param": error.param}
        return _event("error", told | openai_body(error, request_id)) + DONE
    if path.startswith(OPENAI_PREFIXES):
        return b"data: %b\n\n" % json.dumps(openai_body(error, request_id)).encode() + DONE
    name = f"{path.strip('/')}.failed"
    return _event(name, {"type": name, "response": problem_body(error, path, request_id)}) + DONE


def _event(name: str, data: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), json.dumps(data).encode())


def from_validation(errors: list[Any]) -> InvalidRequest:
    """The first of pydantic's complaints, as a sentence that names field and value."""
    first = errors[0]
    field = ".".join(str(part) for part in first["loc"] if _is_field(part))
    if first["type"] == "extra_forbidden":
        return InvalidRequest(f"unknown field '{field}'; see /docs for the fields", field)
    if first["type"] == "json_invalid":
        return InvalidRequest(f"the body is not valid JSON: {first['ctx']['error']}")
    if first["type"] == "missing":
        return InvalidRequest(f"'{field}' is required" if field else "a body is required", field)
    given = first.get("input")
    shown = json.dumps(given, ensure_ascii=False, default=str)[:80]
    message = first["msg"].removeprefix("Value error, ")
    return InvalidRequest(f"'{field}': {message} (given: {shown})" if field else message, field)


def _is_field(part: str | int) -> bool:
    """Pydantic also names the place, the class of a union's member and the type it tried."""
    if isinstance(part, int):
        return True
    return part not in NO_FIELDS and part[:1].islower() and "[" not in part
