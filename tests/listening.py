"""A gateway over scripted engines, behind a socket."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.serve import bind, listener
from tests.scripted import PATIENCE_S, Gateway


@asynccontextmanager
async def listening(gateway: Gateway) -> AsyncIterator[str]:
    """Over a socket: httpx's transport without one hands over no stream before its end."""
    sock = bind("127.0.0.1", 0)
    server = listener(gateway.app, gateway.settings)
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    async with asyncio.timeout(PATIENCE_S):
        while not server.started:  # noqa: ASYNC110 - uvicorn tells nobody
            await asyncio.sleep(0.01)
    yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    server.should_exit = server.force_exit = True
    await serving
