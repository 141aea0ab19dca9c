"""The gateway that is looked at: its address, a key, the model; and whether it can be looked at at all."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

TIMEOUT_S = 300.0  # of one answer; a large model on a CPU thinks for minutes
POLL_S = 1.0
GOES_ON = {"loading", "switching", "dead", "hung"}  # states that may become ready by themselves


class TargetError(Exception):
    """Nothing can be validated; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Target:
    """What every probe needs."""

    client: httpx.AsyncClient
    model: str
    key: str | None


@dataclass(frozen=True, slots=True)
class Address:
    """Where a gateway is asked. `verify`: its certificate. `host`: said in `Host` in place of the URL's."""

    url: str
    verify: bool = True
    host: str | None = None


@asynccontextmanager
async def opened(
    address: Address, key: str | None, model: str | None, wait_s: float
) -> AsyncIterator[Target]:
    """A gateway that is ready, with the model to ask (None: its first).

    Raises:
        TargetError: it does not answer, is no gateway, is not ready in time, or refuses the key.
    """
    headers = {"authorization": f"Bearer {key}"} if key else {}
    if address.host:
        headers["host"] = address.host
    try:
        made = httpx.AsyncClient(
            base_url=address.url, headers=headers, timeout=TIMEOUT_S, verify=address.verify
        )
    except httpx.InvalidURL as error:
        raise TargetError(f"{address.url!r} is no URL: {error}") from error
    async with made as client:
        yield await target_of(client, key, model, wait_s)


async def target_of(
    client: httpx.AsyncClient, key: str | None, model: str | None, wait_s: float
) -> Target:
    """Look at the gateway behind a client that sends the key. Raises as `opened`."""
    url = client.base_url
    try:
        await _ready(client, wait_s)
        names = await models_of(client)
    except httpx.TransportError as error:
        raise TargetError(
            f"{url} does not answer ({error or type(error).__name__}). Is the gateway running? Its "
            "start screen names its address; give it with --url"
        ) from error
    if model is not None and model not in names:
        raise TargetError(f"{url} does not serve '{model}'; it serves: {', '.join(names)}")
    return Target(client, model or names[0], key)


async def _ready(client: httpx.AsyncClient, wait_s: float) -> None:
    """Wait so long for a gateway that is on its way."""
    deadline = time.monotonic() + wait_s
    while True:
        state = await _state(client)
        if state == "ready":
            return
        if state not in GOES_ON or time.monotonic() >= deadline:
            hint = "wait for it with --wait 300" if state in GOES_ON else "start it again"
            raise TargetError(f"{client.base_url} is not ready, it is {state}; {hint}")
        await asyncio.sleep(POLL_S)


async def _state(client: httpx.AsyncClient) -> str:
    response = await client.get("/health/ready")
    try:
        return str(response.json()["status"])
    except (ValueError, KeyError, TypeError) as error:
        raise TargetError(
            f"{client.base_url} answers {response.status_code} to /health/ready, but not as this gateway; "
            "is it another server's address?"
        ) from error


async def models_of(client: httpx.AsyncClient) -> list[str]:
    """The names that the key may use. Raises as `opened`."""
    response = await client.get("/v1/models")
    if response.status_code == httpx.codes.UNAUTHORIZED:
        raise TargetError(
            f"{client.base_url} wants a key: set GATEWAY_API_KEY to a tenant's, or give it with --key "
            f"(it says: {_refusal(response)})"
        )
    if response.status_code == httpx.codes.FORBIDDEN:
        raise TargetError(f"{client.base_url} refuses: {_refusal(response)}")
    try:
        names = [str(card["id"]) for card in response.json()["data"]]
    except (ValueError, LookupError, TypeError) as error:
        raise TargetError(
            f"{client.base_url} answers {response.status_code} to /v1/models, but with no list of models: "
            f"{response.text[:200]}"
        ) from error
    if not names:
        raise TargetError(f"{client.base_url} lets this key use no model")
    return names


def _refusal(response: httpx.Response) -> str:
    """The gateway's own sentence."""
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return response.text[:200]
