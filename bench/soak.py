"""A long run under load with hang-ups and engine kills: does anything leak, is anybody left without a word?

    python -m bench.soak --minutes 30 --out bench/results/soak.json

Starts a gateway with keys, limits and usage rows, finds out how many requests per second it can answer, and
then sends that share of them (`--share`) at Poisson times: chat, completions, responses, messages, /generate,
/thinking and /batch_generate, streams and plain, of three tenants. One in ten hangs up after up to two
seconds. Every `--kill-every` seconds the engine process is killed with SIGKILL; the gateway must build a new
one. Each request must be answered whole, or refused with an error code, before it began or within its stream.

Every ten seconds memory, sockets, open files, threads, places and KV blocks are noted. At the end nothing may
be held, and the gateway's own memory may not have grown from its first third to its last by more than
`--growth-mib`. Writes one JSON object; exit status 1 if a promise was broken.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

from bench.environment import environment
from bench.servers import Side, free_port, running
from bench.soak_calls import Answer, Caller, tally
from bench.soak_watch import Watch, held, verdict
from gateway.policy import keyfile
from gateway.policy.keyfile import KeysFile, TenantEntry

TENANTS = {
    "search": TenantEntry(priority="interactive"),
    "support": TenantEntry(max_concurrent=64, max_thinking=256),
    "reports": TenantEntry(rpm=100_000, tpm=100_000_000, priority="batch"),
}
CALIBRATION_S, CALIBRATION_CALLERS = 40.0, 16
QUIET_S = 60.0  # how long what is held may take to be let go of at the end
SEED = 20_261_124


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="bench.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--share", type=float, default=0.8, help="of what it can answer")
    parser.add_argument("--capacity", type=float, help="requests/s; unset: measured at the start")
    parser.add_argument("--kill-every", type=float, default=300.0, help="seconds; 0: never")
    parser.add_argument("--growth-mib", type=float, default=64.0, help="most that memory may grow")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    args = parser.parse_args()
    where = environment()
    result = {
        "command": " ".join(["python -m bench.soak", *sys.argv[1:]]),
        "environment": where,
        **asyncio.run(soak(args)),
    }
    args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write("\n".join(result["broken"]) + "\n" if result["broken"] else "nothing broken\n")
    raise SystemExit(bool(result["broken"]))


async def soak(args: argparse.Namespace) -> dict[str, Any]:
    """The whole run; the result without its heading."""
    port, admin_port = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        keys = _keys(Path(folder))
        command = ["-m", "gateway", "serve", "--profile", args.profile, "--port", str(port)]
        command += ["--admin-port", str(admin_port)]
        env = {
            "GATEWAY_KEYS_FILE": str(Path(folder) / "keys.json"),
            "GATEWAY_STATE_DIR": folder,
            "GATEWAY_METRICS_OPEN": "true",
            "HF_HUB_OFFLINE": "1",
        }
        url = f"http://127.0.0.1:{port}"
        side = Side("soak", (sys.executable, *command), env, url, "/health/ready")
        with running(side) as server:
            timeout = aiohttp.ClientTimeout(total=300)
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(url, timeout=timeout, connector=connector) as session:
                caller = Caller(session, tuple(keys.values()), random.Random(SEED))
                watch = Watch(server, session, next(iter(keys.values())), admin_port)
                return await _run(args, caller, watch)


def _keys(folder: Path) -> dict[str, str]:
    """A keys file for the tenants; their keys by name."""
    made = {name: keyfile.new_key(name, False, None) for name in TENANTS}
    content = KeysFile(tenants=TENANTS, keys=tuple(entry for _, entry in made.values()))
    keyfile.write(folder / "keys.json", content)
    return {name: key for name, (key, _) in made.items()}


async def _run(args: argparse.Namespace, caller: Caller, watch: Watch) -> dict[str, Any]:
    capacity = args.capacity or await _capacity(caller)
    told = f"{capacity:.2f} requests/s; {args.share:.0%} of them for {args.minutes:g} minutes\n"
    sys.stderr.write(told)
    before = await held(watch)
    watching = asyncio.create_task(watch.keep())
    killing = asyncio.create_task(watch.kill_every(args.kill_every)) if args.kill_every else None
    answers = await _open_loop(caller, capacity * args.share, args.minutes * 60)
    if killing is not None:
        killing.cancel()
    watching.cancel()
    after = await _settled(watch, before)
    return {
        "capacity_rps": round(capacity, 3),
        "rate_rps": round(capacity * args.share, 3),
        "seconds": args.minutes * 60,
        **tally(answers),
        "kills": watch.kills,
        "held_before": before,
        "held_after": after,
        **verdict(answers, watch, before, after, args.growth_mib),
        "samples": watch.samples,
    }


async def _capacity(caller: Caller) -> float:
    """Requests per second of a closed loop of the same mixture, without hang-ups."""
    ends, n_done = time.monotonic() + CALIBRATION_S, 0

    async def client() -> None:
        nonlocal n_done
        while time.monotonic() < ends:
            await caller.call(hang_up=False)
            n_done += 1

    began = time.monotonic()
    await asyncio.gather(*(client() for _ in range(CALIBRATION_CALLERS)))
    return n_done / (time.monotonic() - began)


async def _open_loop(caller: Caller, rate: float, seconds: float) -> list[Answer]:
    """Poisson arrivals for so long; waits for the last of them."""
    dice, tasks = random.Random(SEED + 1), []
    ends = time.monotonic() + seconds
    due = time.monotonic()
    while due < ends:
        await asyncio.sleep(due - time.monotonic())
        tasks.append(asyncio.create_task(caller.call(hang_up=dice.random() < 0.1)))
        due += dice.expovariate(rate)
    return await asyncio.gather(*tasks)


async def _settled(watch: Watch, before: dict[str, float]) -> dict[str, float]:
    """What is held once all is over: again and again until nothing is, or too long."""
    ends = time.monotonic() + QUIET_S
    while True:
        after = await held(watch)
        nothing = not (after["in_flight"] or after["queued"] or after["kv_cache_usage"])
        if (nothing and after["sockets"] <= before["sockets"]) or time.monotonic() > ends:
            return after
        await asyncio.sleep(1.0)


if __name__ == "__main__":
    main()
