"""So many at once; of those that wait, each tenant has its turn."""

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import AsyncIterator


class Turns:
    """A semaphore that tenants pass one after the other, however many requests of one of them wait.

    Nothing is kept back: a tenant alone has all places.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        # The tenant in front is next; whoever had a turn goes to the end.
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @contextlib.asynccontextmanager
    async def place(self, tenant: str) -> AsyncIterator[None]:
        """One of the places, in the tenant's turn; its own requests in the order they came."""
        await self._enter(tenant)
        try:
            yield
        finally:
            self._pass_on()

    async def _enter(self, tenant: str) -> None:
        if self._free:  # then nobody waits
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was given in that moment
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            tenant, own = self._waiting.popitem(last=False)
            while own and own[0].done():  # whoever gave up
                own.popleft()
            if own:
                own.popleft().set_result(None)
                if own:
                    self._waiting[tenant] = own
                return
        self._free += 1
