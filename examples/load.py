"""Many callers at once: how many answers, how fast, what failed. For measurements: bench/."""

import asyncio
import os
import statistics
import time

import httpx

URL = os.environ.get("GW_URL", "http://127.0.0.1:8000")
HEADERS = {"authorization": f"Bearer {os.environ.get('GW_KEY', 'none')}"}
CALLERS, EACH = 4, 2


async def caller(client: httpx.AsyncClient, seconds: list[float], failed: list[str]) -> None:
    for _ in range(EACH):
        began = time.perf_counter()
        try:
            response = await client.post("/generate", json={"prompt": "Once", "max_tokens": 8})
            response.raise_for_status()
        except httpx.HTTPStatusError as error:
            failed.append(str(error.response.status_code))
        except httpx.HTTPError as error:  # nobody answers, or not to the end
            failed.append(type(error).__name__)
        else:
            seconds.append(time.perf_counter() - began)


async def main() -> None:
    seconds: list[float] = []
    failed: list[str] = []
    async with httpx.AsyncClient(base_url=URL, headers=HEADERS, timeout=300) as client:
        await asyncio.gather(*(caller(client, seconds, failed) for _ in range(CALLERS)))
    median = f", median {statistics.median(seconds):.2f} s" if seconds else ""
    print(f"{len(seconds)} answers{median}; failed: {', '.join(failed) or 'none'}")


asyncio.run(main())
