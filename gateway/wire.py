"""A connection of ours: uvicorn's, with an end to everything that a caller can stretch.

uvicorn's own protocol has a time-out for idle connections that were used before, and none for headers that
never end, a request that was never begun, an answer that is never read, or trailers without number.
"""

import asyncio
import uuid
from collections.abc import Callable

import httptools
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from gateway.errors import (
    GatewayError,
    HeadersTooLarge,
    InvalidRequest,
    SlowRequest,
    TooManyConnections,
    render,
)
from gateway.policy.keys import PROBES
from gateway.settings import Settings

# One read of the event loop may bring so much that is not header; what is whole is measured exactly later.
READ_BYTES = 256 * 1024
# Requests sent ahead behind which the connection is still read, as a hang-up is only seen by reading.
AHEAD = 16
# Connections above the limit that may ask the probes, once each: who asks whether we live must hear it when
# we are busiest, or the container is restarted.
FOR_PROBES = 64


# Headers by which HTTP/1.1 is left, and their names in `Connection`.
OFFER = (b"upgrade", b"http2-settings")


def bounded(settings: Settings) -> type[HttpToolsProtocol]:
    """The protocol class for uvicorn's `http`, with these settings, read as they are at each use."""
    return type("Connection", (Connection,), {"settings": settings})


class Connection(HttpToolsProtocol):
    settings: Settings

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.waiting: asyncio.TimerHandle | None = None  # for a request to be read
        self.writing: asyncio.TimerHandle | None = None  # for the caller to read
        self.reading_head = True
        self.unmeasured = 0  # bytes that were neither body nor counted yet
        self.touched = False  # a byte was received
        self.open_cycles: list[RequestResponseCycle] = []  # sent ahead ones behind the one at work
        limit = self.settings.max_connections
        self.spare = len(self.connections) > limit  # answers the probes, and nothing else
        if self.spare:
            refusal = TooManyConnections(
                f"{limit} connections are open already (setting GATEWAY_MAX_CONNECTIONS)"
            )
            if len(self.connections) > limit + FOR_PROBES:
                self._refuse(refusal)
                return
            self.app = _probes_only(self.app, refusal)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop(self.waiting)
        self._stop(self.writing)
        self._tell_all()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self.touched = True
        self.unmeasured += len(data)
        if self.reading_head and self.waiting is None:
            self._await_head()
        self._unset_keepalive_if_required()
        self._feed(data)
        if self.unmeasured > self.settings.max_header_bytes + READ_BYTES:
            self._refuse(HeadersTooLarge("the headers do not end"))

    def _feed(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as error:
                if not self._offers_upgrade():
                    return  # CONNECT, which was answered already
                (offset,) = error.args
                data = self._stay_with_http1() + data[offset:]
            except httptools.HttpParserError:
                self.send_400_response("Invalid HTTP request received.")
                return

    def _offers_upgrade(self) -> bool:
        return bool(self.parser.should_upgrade()) and self.parser.get_method() != b"CONNECT"

    def _stay_with_http1(self) -> bytes:
        """The same head once more, without the offer to change to h2c or else, which nobody need accept.

        httptools takes whatever comes behind such a head for the other protocol: a body would be lost.
        """
        line = self.parser.get_method() + b" " + self.url
        head = [line + b" HTTP/" + self.parser.get_http_version().encode()]
        for name, value in self.headers:
            if name == b"connection":
                value = b", ".join(_others(value))
            if name not in OFFER and (value or name != b"connection"):
                head.append(name + b": " + value)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        return b"\r\n".join(head) + b"\r\n\r\n"

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self.waiting is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        if self._offers_upgrade():
            return
        self.reading_head = False
        self._stop(self.waiting)
        self.waiting = None
        self.unmeasured = 0
        super().on_headers_complete()
        if self.spare:
            self.cycle.keep_alive = False  # its place is for the next probe
        self.open_cycles = [each for each in self.open_cycles if not each.response_complete]
        self.open_cycles.append(self.cycle)
        if 1 < len(self.open_cycles) <= AHEAD:
            self.flow.resume_reading()

    def on_body(self, body: bytes) -> None:
        self.unmeasured = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._offers_upgrade():
            return
        self.reading_head = True
        self.unmeasured = 0
        self._stop(self.waiting)
        self.waiting = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        early = not self.reading_head and self.cycle.response_complete
        if early and not self.transport.is_closing():
            # It was answered before it was read, as one without a key is: the rest may come, but soon.
            self.waiting = self._later(self.settings.header_timeout_s, self._end)

    def send_400_response(self, msg: str) -> None:
        """Of what is no HTTP."""
        self._refuse(InvalidRequest(msg))

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.writing is None:
            self.writing = self._later(self.settings.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop(self.writing)
        self.writing = None
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        self._end()

    def _await_head(self) -> None:
        self.waiting = self._later(self.settings.header_timeout_s, self._slow)

    def _slow(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._await_head()  # it was sent ahead, while the answer before it is still under way
            return
        if (
            not self.touched
        ):  # opened in advance; what nobody asked would be read as the next answer
            self._end()
            return
        limit = self.settings.header_timeout_s
        self._refuse(
            SlowRequest(
                f"the headers were not whole after {limit:g} s (setting GATEWAY_HEADER_TIMEOUT_S)"
            )
        )

    def _refuse(self, error: GatewayError) -> None:
        """The answer to whatever is being read; behind the begin of another answer only the end is left."""
        pending = [each for each in self.open_cycles if not each.response_complete]
        if not any(each.response_started for each in pending):
            media_type, body = render(error, "", uuid.uuid4().hex)
            head = [
                f"content-type: {media_type}",
                f"content-length: {len(body)}",
                *(f"{name}: {value}" for name, value in error.headers.items()),
            ]
            if "connection" not in error.headers:
                head.append("connection: close")
            lines = "".join(f"{line}\r\n" for line in head)
            self.transport.write(STATUS_LINE[error.status] + lines.encode() + b"\r\n" + body)
        self._tell_all()
        self._end()

    def _tell_all(self) -> None:
        """Whoever works for this connection, or will, is told at once, and writes nothing any more."""
        for cycle in self.open_cycles:
            if not cycle.response_complete:
                cycle.disconnected = True
            cycle.message_event.set()

    def _end(self) -> None:
        """What is written may still be read for a while, then it is over."""
        if not self.transport.is_closing():
            self.transport.close()
        self._stop(self.writing)
        self.writing = self._later(self.settings.write_timeout_s, self.transport.abort)

    def _later(self, seconds: float, call: Callable[[], object]) -> asyncio.TimerHandle:
        return self.loop.call_later(seconds, call)

    @staticmethod
    def _stop(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()


def _probes_only(app: ASGIApp, refusal: TooManyConnections) -> ASGIApp:
    async def answered(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in PROBES:
            await app(scope, receive, send)
            return
        media_type, body = render(refusal, scope["path"], uuid.uuid4().hex)
        response = Response(body, refusal.status.value, refusal.headers, media_type)
        await response(scope, receive, send)

    return answered


def _others(connection: bytes) -> list[bytes]:
    """What the `Connection` header says besides the offer."""
    words = (word.strip() for word in connection.split(b","))
    return [word for word in words if word and word.lower() not in OFFER]
