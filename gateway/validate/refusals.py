"""What must be refused, and the shape of each refusal: OpenAI's, Anthropic's or RFC 9457's, by path."""

from dataclasses import dataclass, field
from typing import Any

import httpx

from gateway.errors import ANTHROPIC_PREFIX, OPENAI_PREFIXES
from gateway.validate.probes import QUESTION, Flaw
from gateway.validate.target import Target

JSON = {"content-type": "application/json"}
TOO_MANY = 1_000_000
DEEP = 5000
WRONG_KEY = "tg-00000000-not-a-key-of-this-gateway"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that must not be served. `given` are httpx's arguments; `code` our stable word for it."""

    name: str
    path: str
    status: int
    code: str
    given: dict[str, Any]
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)  # that the answer must have, names only

    async def check(self, target: Target) -> str:
        """Ask; what was said. Raises Flaw."""
        headers = {"x-request-id": "validate-1", **self.given.get("headers", {})}
        given = {**self.given, "headers": headers}
        response = await target.client.request(self.method, self.path, **given)
        if response.status_code != self.status:
            raise Flaw(f"{response.status_code}, not {self.status}: {response.text[:200]}")
        error = error_of(response, self.path)
        if error.get("code") != self.code:
            raise Flaw(f"code is {error.get('code')}, not {self.code}")
        for name in self.headers:
            if name not in response.headers:
                raise Flaw(f"no {name} header")
        return f"{self.status} {self.code}"


def error_of(response: httpx.Response, path: str) -> dict[str, Any]:
    """Its error object, after a look at shape and request id. Raises Flaw."""
    try:
        body: dict[str, Any] = response.json()
        error: dict[str, Any] = body["error"] if path.startswith(OPENAI_PREFIXES) else body
    except (ValueError, KeyError) as flaw:
        raise Flaw(f"not an error object of this path: {response.text[:200]}") from flaw
    if path.startswith(ANTHROPIC_PREFIX):
        wanted, told_id = {"type", "message"}, body.get("request_id")
    elif path.startswith(OPENAI_PREFIXES):
        wanted, told_id = {"type", "message", "param", "code"}, error.get("request_id")
    else:
        wanted, told_id = {"type", "title", "status", "detail", "code"}, body.get("request_id")
    if missing := wanted - error.keys():
        raise Flaw(f"the error has no {', '.join(sorted(missing))}")
    if not told_id or told_id != response.headers.get("x-request-id"):
        raise Flaw("the error's request id is not that of X-Request-Id")
    return error


def refusals(target: Target) -> list[Refusal]:
    """For this target: with a key, that others are refused; without one nothing can be said of it."""
    prompt = {"model": target.model, "prompt": "Hi", "max_tokens": 1}
    chat = {"model": target.model, "messages": QUESTION, "max_tokens": 1}
    nobody = {"model": "no-such-model"}
    bad, deep = {"content": b"{", "headers": JSON}, b"[" * DEEP + b"]" * DEEP
    cases = [
        Refusal("no such route", "/no-such-route", 404, "not_found", {}, "GET"),
        Refusal("no such route of OpenAI's", "/v1/no-such-route", 404, "not_found", {}, "GET"),
        Refusal(
            "wrong method", "/generate", 405, "method_not_allowed", {}, "GET", {"allow": "POST"}
        ),
        Refusal("no such model", "/generate", 404, "model_not_found", {"json": prompt | nobody}),
        Refusal(
            "no such model, OpenAI's shape",
            "/v1/chat/completions",
            404,
            "model_not_found",
            {"json": chat | nobody},
        ),
        Refusal(
            "no such model, Anthropic's shape",
            "/v1/messages",
            404,
            "model_not_found",
            {"json": chat | nobody},
        ),
        Refusal("no JSON", "/generate", 400, "invalid_request", bad),
        Refusal("no JSON, OpenAI's shape", "/v1/chat/completions", 400, "invalid_request", bad),
        Refusal(
            "not declared as JSON",
            "/generate",
            415,
            "unsupported_media_type",
            {"content": b"{}", "headers": {"content-type": "text/plain"}},
        ),
        Refusal(
            "unknown field", "/generate", 400, "invalid_request", {"json": prompt | {"promt": "x"}}
        ),
        Refusal(
            "too many choices",
            "/generate",
            400,
            "invalid_request",
            {"json": prompt | {"n": TOO_MANY}},
        ),
        Refusal(
            "too many choices, OpenAI's",
            "/v1/chat/completions",
            400,
            "invalid_request",
            {"json": chat | {"n": TOO_MANY}},
        ),
        Refusal(
            "nested too deep",
            "/v1/chat/completions",
            400,
            "invalid_request",
            {"content": b'{"messages": %b}' % deep, "headers": JSON},
        ),
        Refusal("no thought to end", "/thinking/nobody/answer_now", 404, "not_found", {}),
    ]
    if target.key is not None:
        wrong = {"json": prompt, "headers": {"authorization": f"Bearer {WRONG_KEY}"}}
        asked = {"www-authenticate": "Bearer"}
        cases.append(
            Refusal("wrong key", "/generate", 401, "invalid_api_key", wrong, headers=asked)
        )
    return cases
