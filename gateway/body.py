"""The request body: read once, within its limit, as JSON. Pure ASGI."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.asgi import ClientGone
from gateway.errors import BodyTooLarge, SlowRequest, UnsupportedMediaType
from gateway.policy import bounds
from gateway.settings import Settings


class JsonBody:
    """Reads the body and hands it on; `scope["gateway.json"]` has the object, None for no body, and
    `scope["gateway.size"]` its bytes.

    Only JSON by its content type: a web page can make a visitor's browser post anything else to this
    address without asking.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            body = await self._read(receive)
            if body:
                _check_type(dict(scope["headers"]))
            scope["gateway.json"] = asked = bounds.parse(body) if body else None
            bounds.check_shape(asked or {}, self.settings)
            scope["gateway.size"] = len(body)
            receive = replay(body, receive)
        await self.app(scope, receive, send)

    async def _read(self, receive: Receive) -> bytes:
        limit_s = self.settings.body_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                return await read_body(receive, self.settings.max_body_bytes)
        except TimeoutError as error:
            raise SlowRequest(
                f"the body was not whole after {limit_s:g} s (setting GATEWAY_BODY_TIMEOUT_S)"
            ) from error


def _check_type(headers: dict[bytes, bytes]) -> None:
    encoding = headers.get(b"content-encoding", b"identity").decode("latin-1")
    if encoding != "identity":
        raise UnsupportedMediaType(f"content-encoding {encoding} is not taken; send it as it is")
    given = headers.get(b"content-type", b"none").decode("latin-1")
    media_type = given.partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise UnsupportedMediaType(f"send 'content-type: application/json', not {given!r}")


async def read_body(receive: Receive, limit: int) -> bytes:
    """The whole body, counted while it arrives; a `content-length` header is not believed.

    Raises:
        BodyTooLarge: more than `limit` bytes; the rest is not read.
        ClientGone: the caller left before it was whole.
    """
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise BodyTooLarge(
                f"the body is larger than {limit} bytes (setting GATEWAY_MAX_BODY_BYTES)"
            )
        chunks.append(chunk)
        if not message.get("more_body"):
            return b"".join(chunks)


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once and then whatever the socket says (a hang-up)."""
    pending = [body]

    async def replayed() -> Message:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    return replayed
