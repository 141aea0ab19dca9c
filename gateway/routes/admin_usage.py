"""`GET /admin/usage`: who used how much, from the rows of accounting."""

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from fastapi import APIRouter, Request

from gateway.accounting.store import UsageError, UsageStore
from gateway.errors import DependencyUnavailable, InvalidRequest, NotFound

router = APIRouter(tags=["admin"])

By = Literal["tenant", "key_id", "model", "format", "day"]
SPAN = re.compile(r"(\d{1,6})([smhdw])")
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def since_of(text: str) -> datetime:
    """`24h`, `30m`, `7d`, or a date and time in ISO form; without a zone it is UTC.

    Raises:
        ValueError: neither.
    """
    if span := SPAN.fullmatch(text):
        return datetime.now(UTC) - timedelta(**{UNITS[span[2]]: int(span[1])})
    at = datetime.fromisoformat(text)
    return at if at.tzinfo else at.replace(tzinfo=UTC)


@router.get("/admin/usage")
async def usage(request: Request, by: By = "tenant", since: str = "24h") -> dict[str, Any]:
    """Requests and tokens since then, summed by one thing."""
    store: UsageStore | None = request.app.state.tenancy.usage.store
    if store is None:
        raise NotFound("no usage is kept: GATEWAY_USAGE_URL is off")
    try:
        start = since_of(since)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(
            f"'since' is {since!r}; it takes a span as 24h or 7d, or a date", "since"
        ) from error
    await request.app.state.tenancy.usage.flush()
    try:
        rows = await asyncio.to_thread(store.summary, by, start)
    except UsageError as error:
        raise DependencyUnavailable(str(error)) from error
    return {"object": "list", "by": by, "since": start.isoformat(), "data": rows}
