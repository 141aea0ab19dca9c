"""The ledger in Redis, for several gateways: one script admits, one settles, by Redis' own clock.

Each running request holds a lease that its gateway renews, so a gateway that was killed holds nothing for
long. Redis remembers for a while which leases were settled, so doing it twice changes nothing and no renewal
brings one back: what Redis did not confirm is simply sent again. An admission that nobody waited for any
more is settled as if it had used nothing.
"""

import asyncio
import itertools
import logging
import time
import uuid
from collections import OrderedDict
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, RedisError

from gateway.errors import DependencyUnavailable
from gateway.policy.ledger import Ask, Grant, Ledger, MemoryLedger, Refusal, Standing

log = logging.getLogger(__name__)

TIMEOUT_S = 0.5  # Redis answers in a millisecond; the rest is for an event loop that is busy itself
TURNS = 8  # calls at once; waiting for a turn is no sign that Redis is away
AWAY_S = 1.0  # after a failure: how long nobody tries
LEASE_S = 60
SETTLED_S = 600  # Redis knows so long that a lease was settled: no message is under way longer
BEAT_S = 5.0
DOUBTFUL = 4096  # admissions without an answer, at most; the oldest are forgotten
PREFIX = "gateway:limits"

# KEYS: amounts by second ("r12", "t12") and day ("d3"); running requests by expiry ("lease|weight"); settled
# ones, by when that is forgotten.
# ARGV: rpm, tpm, concurrent, daily (-1: none), requests, tokens, lease, lease seconds.
ADMIT = """
local now = tonumber(redis.call('TIME')[1])
local day = math.floor(now / 86400)
local rpm, tpm, concurrent, daily = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local requests, tokens = tonumber(ARGV[5]), tonumber(ARGV[6])
local used, last, seconds, amounts = {r = 0, t = 0}, {r = now - 61, t = now - 61}, {}, {}
local today = 0
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  local kind, at = string.sub(fields[i], 1, 1), tonumber(string.sub(fields[i], 2))
  local amount = tonumber(fields[i + 1])
  if kind == 'd' then
    if at == day then today = amount else redis.call('HDEL', KEYS[1], fields[i]) end
  elseif now - at > 60 then
    redis.call('HDEL', KEYS[1], fields[i])
  else
    used[kind] = used[kind] + amount
    last[kind] = math.max(last[kind], at)
    amounts[fields[i]] = amount
    if kind == 'r' then seconds[#seconds + 1] = at end
  end
end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
local running = 0
for _, member in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
  running = running + tonumber(string.match(member, '|(%d+)$'))
end
local function wait(kind, excess)
  table.sort(seconds)
  for _, at in ipairs(seconds) do
    excess = excess - (amounts[kind .. at] or 0)
    if excess <= 0 then return at + 61 - now end
  end
  return 61
end
local member = ARGV[7] .. '|' .. requests
local refused, wait_s = '', 0
if redis.call('ZSCORE', KEYS[2], member) then
  -- Sent again, because the first answer was lost.
elseif redis.call('ZSCORE', KEYS[3], member) then
  -- Given up before it came here; nobody reads the answer.
elseif concurrent >= 0 and running + requests > concurrent then
  refused, wait_s = 'max_concurrent', 1
elseif rpm >= 0 and used.r + requests > rpm then
  refused, wait_s = 'rpm', wait('r', used.r + requests - rpm)
elseif tpm >= 0 and used.t + tokens > tpm then
  refused, wait_s = 'tpm', wait('t', used.t + tokens - tpm)
elseif daily >= 0 and today + tokens > daily then
  refused, wait_s = 'daily_tokens', (day + 1) * 86400 - now
else
  redis.call('HINCRBY', KEYS[1], 'r' .. now, requests)
  redis.call('HINCRBY', KEYS[1], 't' .. now, tokens)
  redis.call('HINCRBY', KEYS[1], 'd' .. day, tokens)
  redis.call('ZADD', KEYS[2], now + tonumber(ARGV[8]), member)
  used.r, used.t, today, running = used.r + requests, used.t + tokens, today + tokens, running + requests
  last.r, last.t = now, now
end
redis.call('EXPIRE', KEYS[1], 90000)
redis.call('EXPIRE', KEYS[2], 90000)
return {refused, wait_s, now, day, used.r, used.t, today, running, last.r + 61 - now, last.t + 61 - now}
"""
# ARGV: member, second and day of its admission (empty: its lease tells, and the request is given back too),
# correction, how long to remember it, lease seconds. An amount that Redis has lost is not corrected.
SETTLE = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
if redis.call('ZSCORE', KEYS[3], ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[3], now + tonumber(ARGV[5]), ARGV[1])
redis.call('EXPIRE', KEYS[3], ARGV[5])
local expiry = redis.call('ZSCORE', KEYS[2], ARGV[1])
if not expiry then return 0 end
redis.call('ZREM', KEYS[2], ARGV[1])
local second, day, changes = ARGV[2], ARGV[3], {}
if second == '' then
  second = tonumber(expiry) - tonumber(ARGV[6])
  day = math.floor(second / 86400)
  changes['r' .. second] = -tonumber(string.match(ARGV[1], '|(%d+)$'))
end
changes['t' .. second], changes['d' .. day] = tonumber(ARGV[4]), tonumber(ARGV[4])
for field, by in pairs(changes) do
  local amount = redis.call('HGET', KEYS[1], field)
  if amount then redis.call('HSET', KEYS[1], field, math.max(0, tonumber(amount) + by)) end
end
return 1
"""
# ARGV: lease seconds, members.
RENEW = """
local expiry = tonumber(redis.call('TIME')[1]) + tonumber(ARGV[1])
for i = 2, #ARGV do
  if not redis.call('ZSCORE', KEYS[3], ARGV[i]) then redis.call('ZADD', KEYS[2], expiry, ARGV[i]) end
end
return 1
"""


class RedisLedger:
    """While Redis is away, `local` counts in its place, or with None requests are refused."""

    def __init__(self, url: str, local: MemoryLedger | None) -> None:
        self.local = local
        self.away = False
        self._client: Redis = Redis.from_url(
            url,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            # A connection that was cut while it was idle is no outage; a script sent twice counts once.
            retry=Retry(NoBackoff(), 1, supported_errors=(ConnectionError,)),
        )
        self._admit = self._client.register_script(ADMIT)
        self._settle = self._client.register_script(SETTLE)
        self._retry_at = 0.0
        self._turn = asyncio.Semaphore(TURNS)
        self._name = uuid.uuid4().hex  # of this gateway, in leases
        self._numbers = itertools.count()
        self._running: dict[str, Grant] = {}
        self._unsettled: dict[str, tuple[Grant, int]] = {}
        self._doubtful: OrderedDict[str, Ask] = OrderedDict()  # Redis may have admitted them

    async def admit(self, ask: Ask) -> Grant | Refusal:
        if self._resting():
            return await self._without(ask)
        lease = f"{self._name}:{next(self._numbers)}"
        reply = None
        try:
            reply = await self._try(self._admit, _keys(ask.tenant), _wanted(ask, lease))
        finally:
            # Too late, or the caller left: it may have been admitted all the same.
            if reply is None:
                self._doubt(lease, ask)
        if reply is None:
            return await self._without(ask)
        refused, wait_s, second, day, *standing = reply
        if refused:
            return Refusal(refused.decode(), wait_s, Standing(*standing))
        grant = Grant(self, lease, ask, Standing(*standing), second, day)
        self._running[lease] = grant
        return grant

    async def _without(self, ask: Ask) -> Grant | Refusal:
        if self.local is None:
            raise DependencyUnavailable("limits cannot be checked now", AWAY_S)
        return await self.local.admit(ask)

    def _doubt(self, lease: str, ask: Ask) -> None:
        self._doubtful[lease] = ask
        if len(self._doubtful) > DOUBTFUL:
            self._doubtful.popitem(last=False)

    async def settle(self, grant: Grant, used: int) -> None:
        self._running.pop(grant.lease, None)
        self._unsettled[grant.lease] = (grant, used)
        await self._settled(grant, used)

    async def _settled(self, grant: Grant, used: int) -> bool:
        """Whether Redis knows; cancelled in between or not, `beat` sends it again until it does."""
        ask = grant.ask
        args = [_member(grant.lease, ask), grant.second, grant.day, used - ask.tokens]
        if not await self._told(ask, args):
            return False
        self._unsettled.pop(grant.lease, None)
        return True

    async def _undone(self, lease: str, ask: Ask) -> bool:
        """Whether Redis knows that this admission is void."""
        if not await self._told(ask, [_member(lease, ask), "", "", -ask.tokens]):
            return False
        self._doubtful.pop(lease, None)
        return True

    async def _told(self, ask: Ask, args: list[Any]) -> bool:
        sent = [*args, SETTLED_S, LEASE_S]
        return await self._try(self._settle, _keys(ask.tenant), sent) is not None

    async def keep(self) -> None:
        """Renew leases and send what is unsettled, until it is cancelled."""
        while True:
            await asyncio.sleep(BEAT_S)
            try:
                await self.beat()
            except Exception:  # without renewals what runs would not count any more
                log.exception("leases could not be renewed; it is tried again")

    async def beat(self) -> None:
        """Once. A Redis that came back empty learns of what runs."""
        if not await self._try(self._renew):
            return
        for grant, used in list(self._unsettled.values()):
            if not await self._settled(grant, used):
                return
        for lease, ask in list(self._doubtful.items()):
            if not await self._undone(lease, ask):
                return

    async def _renew(self) -> bool:
        members: dict[str, list[str]] = {}
        for grant in [*self._running.values(), *(each for each, _ in self._unsettled.values())]:
            ask = grant.ask
            members.setdefault(ask.tenant, []).append(_member(grant.lease, ask))
        async with self._client.pipeline(transaction=False) as pipe:
            pipe.ping()  # also where there is nothing to renew: it tells whether Redis is there
            for tenant, own in members.items():
                pipe.eval(RENEW, 3, *_keys(tenant), LEASE_S, *own)
            await pipe.execute()
        return True

    async def _try(self, call: Any, *args: Any) -> Any:
        """What Redis says; None while it is away. Nobody waits for it longer than a moment."""
        async with self._turn:
            return await self._tried(call, *args)

    async def _tried(self, call: Any, *args: Any) -> Any:
        if self._resting():
            return None
        if self.away:
            self._retry_at = time.monotonic() + AWAY_S  # one tries, the others do not wait for it
        try:
            async with asyncio.timeout(2 * TIMEOUT_S):
                reply = await call(*args)
        except (RedisError, OSError, TimeoutError) as error:
            self._retry_at = time.monotonic() + AWAY_S
            if not self.away:
                instead = (
                    "requests are refused" if self.local is None else "this gateway counts alone"
                )
                log.error("Redis is away (%s): %s", type(error).__name__, instead)
            self.away = True
            return None
        if self.away:
            log.warning("Redis is back")
        self.away, self._retry_at = False, 0.0
        return reply

    def _resting(self) -> bool:
        """Redis did not answer a moment ago; nobody asks."""
        return time.monotonic() < self._retry_at

    async def aclose(self) -> None:
        """Leave nothing behind that others would have to wait for."""
        await self.beat()
        await self._client.aclose()


def _keys(tenant: str) -> list[str]:
    """All in one slot of a Redis cluster: what is in braces decides."""
    return [f"{PREFIX}:{{{tenant}}}:{name}" for name in ("used", "running", "settled")]


def _wanted(ask: Ask, lease: str) -> list[Any]:
    """The arguments of `ADMIT`."""
    limits = ask.limits
    given = (limits.rpm, limits.tpm, limits.max_concurrent, limits.daily_tokens)
    args = [-1 if limit is None else limit for limit in given]
    return [*args, ask.requests, ask.tokens, lease, LEASE_S]


def _member(lease: str, ask: Ask) -> str:
    return f"{lease}|{ask.requests}"


def open_ledger(url: str | None, away: str) -> Ledger:
    """In memory, or shared by Redis."""
    local = MemoryLedger()
    return local if url is None else RedisLedger(url, local if away == "local" else None)
