"""How a request ended, in one word."""

from gateway.asgi import Exchange
from gateway.errors import GatewayError

UNMATCHED = "unmatched"  # the route of all paths that no route of ours matches
OUTCOMES = ("ok", "client_error", "rejected", "server_error", "disconnected")


def outcome_of(exchange: Exchange) -> str:
    """One of `OUTCOMES`. Rejected: a good request, but no room or no quota for it now."""
    if exchange.disconnected:
        return "disconnected"
    if (failed := exchange.notes.get("failed")) is not None:  # after the status line
        return "server_error" if failed.status >= 500 else "client_error"
    if exchange.status == 429 or exchange.notes.get("rejected"):
        return "rejected"
    if exchange.status >= 500:
        return "server_error"
    return "client_error" if exchange.status >= 400 else "ok"


def error_of(exchange: Exchange) -> str | None:
    """The code of the error that it was answered with, or that its stream ended with."""
    failed: GatewayError | None = exchange.notes.get("failed")
    return failed.code if failed else exchange.notes.get("error")
