"""What a flood of one tenant does to another's time to first token, with fairness and without.

    python -m bench.fairness --out bench/results/fairness.json

Two tenants, each with a key. `light` asks short streamed questions, one at a time with a random pause
between two; `flood` keeps `--streams` requests with prompts of `--prompt-tokens` random words in flight.
Per server (`GATEWAY_FAIR=true`, then `false`): the questions without the flood, then with it.

`one_step_ms` is the length of the step that somebody who asks at any moment finds running under the flood.
The gaps between the tokens of the light tenant's own answers are the engine's steps; steps with a prompt of
the flood are long, those between them short, and one is found as often as it is long: so it is their mean
with each gap weighted by its own length. `bound_ms` is three times the unloaded TTFT p50 and one such step
(a rise of at most twice the unloaded figure and one step); `holds`: the loaded TTFT p50 is within it.
Every prompt is new, so the prefix cache has nothing to offer. Writes one JSON object.
"""

import argparse
import asyncio
import contextlib
import itertools
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp

from bench import load
from bench.environment import environment
from bench.servers import Side, free_port, running
from gateway.policy import keyfile
from gateway.policy.keyfile import KeysFile, TenantEntry

TENANTS = ("light", "flood")
QUESTION_WORDS, QUESTION_TOKENS = 12, 12
PAUSE_S = 0.3  # at most, between two questions: they fall anywhere into a step
PHASE_S, LEAST = 75.0, 3  # of questions: the whole takes less than six minutes
RAMP_S = 8.0  # until the flood runs as it will
CHAT = load.ROUTES["chat"]
QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}


@dataclass(frozen=True)
class Caller:
    """One tenant's connection, and the load that its requests are made of."""

    session: aiohttp.ClientSession
    wanted: load.Load
    seed: str
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    async def ask(self) -> load.Sample:
        """One request with a prompt that was never sent before."""
        text = load.prompts(1, self.wanted.prompt_tokens, f"{self.seed}/{next(self.numbers)}")[0]
        body = load.request_body(self.wanted, text)
        return await load.send(self.session, CHAT, body, time.perf_counter())


async def questions(light: Caller, count: int, dice: random.Random) -> list[load.Sample]:
    """One after the other, at no fixed distance; fewer than `count` where time runs out, but some."""
    samples: list[load.Sample] = []
    until = time.monotonic() + PHASE_S
    while len(samples) < LEAST or (len(samples) < count and time.monotonic() < until):
        await asyncio.sleep(dice.uniform(0, PAUSE_S))
        samples.append(await light.ask())
    return samples


@contextlib.asynccontextmanager
async def flooding(flood: Caller, streams: int) -> AsyncIterator[list[load.Sample]]:
    """The flood runs meanwhile; its finished requests are in the list."""
    done: list[load.Sample] = []

    async def client() -> None:
        while True:
            done.append(await flood.ask())

    clients = [asyncio.create_task(client()) for _ in range(streams)]
    try:
        yield done
    finally:
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)


async def measure(url: str, keys: Mapping[str, str], args: argparse.Namespace) -> dict[str, Any]:
    """One server: the questions alone, then under the flood."""
    dice = random.Random(args.seed)
    async with contextlib.AsyncExitStack() as stack:
        light, flood = [
            await stack.enter_async_context(_session(url, keys[name])) for name in TENANTS
        ]
        model = await load.first_model(light)
        short = load.Load(
            url, model, max_tokens=QUESTION_TOKENS, prompt_tokens=QUESTION_WORDS, seed=args.seed
        )
        long = replace(short, max_tokens=args.max_tokens, prompt_tokens=args.prompt_tokens)
        asking = Caller(light, short, f"{args.seed}/light")
        crowd = Caller(flood, long, f"{args.seed}/flood")
        await crowd.ask()
        await questions(asking, 3, dice)
        alone = await questions(asking, args.questions, dice)
        async with flooding(crowd, args.streams) as done:
            await asyncio.sleep(RAMP_S)
            before, began = len(done), time.perf_counter()
            loaded = await questions(asking, args.questions, dice)
            wall = time.perf_counter() - began
            flooded = done[before:]
    return {
        "unloaded": figures(alone),
        "loaded": figures(loaded),
        "flood": {
            **figures(flooded),
            "req_s": round(len(flooded) / wall, 3),
            "tok_s": round(sum(one.n_tokens + one.n_prompt_tokens for one in flooded) / wall, 1),
        },
        "wall_s": round(wall, 1),
    }


def figures(samples: Sequence[load.Sample]) -> dict[str, Any]:
    good = [one for one in samples if one.error is None and one.events]
    gaps = [later - earlier for one in good for earlier, later in itertools.pairwise(one.events)]
    return {
        "requests": len(samples),
        "errors": [one.error for one in samples if one.error],
        "ttft_ms": load.spread(one.events[0] - one.start for one in good),
        "itl_ms": load.spread(iter(gaps)),
        "step_found_ms": round(1000 * found(gaps), 3),
    }


def found(steps: Sequence[float]) -> float:
    """The mean length of the step that a random moment falls into: long ones are met more often."""
    total = sum(steps)
    return sum(step * step for step in steps) / total if total else 0.0


def judged(measured: Mapping[str, Any]) -> dict[str, Any]:
    """The promise, from one server's figures."""
    unloaded, loaded = (measured[name]["ttft_ms"]["p50"] for name in ("unloaded", "loaded"))
    step = measured["loaded"]["step_found_ms"]
    bound = 3 * unloaded + step
    return {
        "unloaded_ttft_p50_ms": unloaded,
        "loaded_ttft_p50_ms": loaded,
        "one_step_ms": step,
        "bound_ms": round(bound, 3),
        "holds": loaded <= bound,
    }


def _session(url: str, key: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        url,
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=600),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
    )


def tenants(folder: Path) -> tuple[Path, dict[str, str]]:
    """A keys file with both tenants, and their keys."""
    made = {name: keyfile.new_key(name, False, None) for name in TENANTS}
    path = folder / "keys.yaml"
    entries = {name: TenantEntry() for name in TENANTS}
    keyfile.write(path, KeysFile(tenants=entries, keys=tuple(entry for _, entry in made.values())))
    return path, {name: key for name, (key, _) in made.items()}


def side(args: argparse.Namespace, fair: bool, keys_file: Path) -> Side:
    port = free_port()
    command = (sys.executable, "-m", "gateway", "serve", "--profile", args.profile)
    ports = ("--port", str(port), "--admin-port", str(free_port()))
    own = {
        "GATEWAY_FAIR": str(fair).lower(),
        "GATEWAY_KEYS_FILE": str(keys_file),
        "GATEWAY_USAGE_URL": "off",
    }
    env = QUIET | own | dict(pair.split("=", 1) for pair in args.env)
    name = "fair" if fair else "first-come"
    return Side(name, (*command, *ports), env, f"http://127.0.0.1:{port}", "/health/ready")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="bench.fairness", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--streams", type=int, default=32, help="of the flood")
    parser.add_argument("--prompt-tokens", type=int, default=1500, help="of the flood")
    parser.add_argument("--max-tokens", type=int, default=32, help="of the flood's answers")
    parser.add_argument("--questions", type=int, default=30, help="of the other, in each phase")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=("fair", "first-come"), help="one side instead of both")
    parser.add_argument("--env", action="append", default=[], metavar="K=V", help="repeatable")
    parser.add_argument("--out", type=Path, help="default: stdout")
    return parser.parse_args(arguments)


def main() -> None:
    """The command. Exit status 1 if a question was not answered, or the promise does not hold."""
    # SIGTERM as Ctrl-C: the server is ended either way.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    args = parse()
    place = environment()
    sides: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        keys_file, keys = tenants(Path(folder))
        for fair in (True, False):
            one = side(args, fair, keys_file)
            if args.only not in (None, one.name):
                continue
            with running(one):
                measured = asyncio.run(measure(one.url, keys, args))
            sides[one.name] = {**judged(measured), **measured}
            sys.stderr.write(f"{one.name}: {judged(measured)}\n")
    asked = {name: str(value) for name, value in vars(args).items() if value is not None}
    command = "python -m bench.fairness " + " ".join(sys.argv[1:])
    load.write(
        {"command": command, "arguments": asked, "environment": place, "result": sides}, args.out
    )
    failed = any(one["loaded"]["errors"] or one["unloaded"]["errors"] for one in sides.values())
    if failed or not sides.get("fair", {"holds": True})["holds"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
