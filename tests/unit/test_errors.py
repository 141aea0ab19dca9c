"""The error catalogue: three shapes, stable codes, sentences that name the field."""

import json
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gateway.errors import (
    EngineOverloaded,
    EngineUnavailable,
    GatewayError,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    Unauthorized,
    from_validation,
    render,
)


def catalogue(kind: type[GatewayError] = GatewayError) -> list[type[GatewayError]]:
    return [each for child in kind.__subclasses__() for each in (child, *catalogue(child))]


def shown(error: GatewayError, path: str) -> tuple[str, dict[str, Any]]:
    media_type, body = render(error, path, "r1")
    return media_type, json.loads(body)


def test_every_error_has_a_code_of_its_own() -> None:
    codes = [kind.code for kind in catalogue()]

    assert len(set(codes)) == len(codes)


def test_every_error_tells_an_error_status() -> None:
    assert [kind for kind in catalogue() if kind.status.value < 400] == []


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/nothing", "/tokenize"])
def test_openai_paths_get_openais_error_object(path: str) -> None:
    media_type, body = shown(InvalidRequest("too much", "n"), path)

    assert media_type == "application/json"
    assert body == {
        "error": {
            "message": "too much",
            "type": "invalid_request_error",
            "param": "n",
            "code": "invalid_request",
            "request_id": "r1",
        }
    }


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidRequest("m"), "invalid_request_error"),
        (Unauthorized("m"), "authentication_error"),
        (NotFound("m"), "not_found_error"),
        (EngineUnavailable("m"), "overloaded_error"),
        (InternalError("m"), "api_error"),
    ],
)
def test_the_messages_path_gets_anthropics_error_object(error: GatewayError, kind: str) -> None:
    media_type, body = shown(error, "/v1/messages/count_tokens")

    assert media_type == "application/json"
    assert (body["type"], body["error"]["type"], body["error"]["message"]) == ("error", kind, "m")
    assert body["request_id"] == "r1"


@pytest.mark.parametrize("path", ["/generate", "/", "/v2/things", "/health/ready"])
def test_other_paths_get_problem_details(path: str) -> None:
    media_type, body = shown(MethodNotAllowed("not so"), path)

    assert media_type == "application/problem+json"
    assert body == {
        "type": "urn:gateway:error:method_not_allowed",
        "title": "Method Not Allowed",
        "status": 405,
        "detail": "not so",
        "instance": path,
        "code": "method_not_allowed",
        "param": None,
        "request_id": "r1",
    }


@pytest.mark.parametrize(("wait_s", "header"), [(0, "1"), (0.2, "1"), (29.6, "30")])
def test_retry_after_is_whole_seconds_and_at_least_one(wait_s: float, header: str) -> None:
    assert EngineOverloaded("m", wait_s).headers == {"retry-after": header}


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    count: int = Field(ge=1)
    nested: list[dict[str, int]] = Field(default_factory=list)

    @model_validator(mode="after")
    def unlucky(self) -> "Body":
        if self.count == 13:
            raise ValueError("13 brings bad luck")
        return self


def told(body: object) -> InvalidRequest:
    with pytest.raises(ValidationError) as caught:
        Body.model_validate(body)
    return from_validation(list(caught.value.errors()))


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"count": 1, "cuont": 2}, "cuont", ["unknown field 'cuont'"]),
        ({}, "count", ["'count' is required"]),
        ({"count": 0}, "count", ["'count'", "greater than or equal to 1", "given: 0"]),
        ({"count": "many"}, "count", ["'count'", 'given: "many"']),
        ({"count": 1, "nested": [{"a": "五"}]}, "nested.0.a", ["'nested.0.a'", "五"]),
        ({"count": 13}, "", ["13 brings bad luck"]),
    ],
)
def test_a_wrong_body_is_told_in_a_sentence(body: object, param: str, words: list[str]) -> None:
    error = told(body)

    assert error.param == param
    assert [word for word in words if word not in error.message] == []
    assert "Value error" not in error.message


def test_a_huge_value_is_not_told_whole() -> None:
    assert len(told({"count": "9" * 100_000}).message) < 300
