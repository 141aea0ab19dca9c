"""Two servers side by side: this gateway against stock vLLM on the same profile.

    python -m bench.compare --profile demo --streams 1,16,64 --rounds 5 --out bench/results/X.json

Both servers are started once and stay; while one is measured the other is idle (its CPU seconds
meanwhile are in the result as `idle_cpu_s`, so that it can be seen). Every round measures each
number of streams on both sides, A then B in one round and B then A in the next, so that a machine
that slows down hurts both alike. Ratios (A / B) are made within a round; the result holds their
median and their spread. Prompts are new in every round and the same for both sides.

`--a` and `--b` choose what is compared (`gateway` or `stock`), `--a-env`, `--b-env`, `--a-args` and
`--b-args` how it is started: the gateway against itself with another setting is one command, too.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import shlex
import signal
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from bench import load, servers
from bench.environment import REPOSITORY, environment
from bench.servers import Side, Usage
from engine_config.profile import load as load_profile

STOCK = ("-m", "vllm.entrypoints.launchers.api_server.entry")
QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
# Seeds of two rounds must be further apart than the numbers of streams, which are added to them.
SEEDS_PER_ROUND = 100_000
# Short runs say little; four requests per stream let each client be refilled three times.
REQUESTS_PER_STREAM, LEAST_REQUESTS = 4, 8


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What is measured on both sides."""

    streams: tuple[int, ...]
    rounds: int
    load: load.Load  # url, streams, requests and seed are filled in run by run


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """The two sides and, in the same order, their running processes."""

    sides: tuple[Side, Side]
    processes: tuple[psutil.Process, psutil.Process]


def load_of(plan: Plan, turn: int, streams: int, url: str) -> load.Load:
    """The load of one run. The same for both sides, new in every round and for every `streams`."""
    return dataclasses.replace(
        plan.load,
        url=url,
        streams=streams,
        requests=max(LEAST_REQUESTS, REQUESTS_PER_STREAM * streams),
        seed=plan.load.seed + turn * SEEDS_PER_ROUND + streams,
    )


def order(turn: int) -> tuple[int, int]:
    """Which side is first in this round: A B, B A, A B, ..."""
    return (0, 1) if turn % 2 == 0 else (1, 0)


def compare(pair: Pair, plan: Plan) -> list[dict[str, Any]]:
    """All runs, in the order they were made."""
    runs = []
    for turn in range(plan.rounds):
        for streams in plan.streams:
            for which in order(turn):
                run = measure(pair, which, load_of(plan, turn, streams, pair.sides[which].url))
                runs.append({"round": turn + 1, "side": pair.sides[which].name} | run)
                progress(runs[-1], plan.rounds)
    return runs


def measure(pair: Pair, which: int, one: load.Load) -> dict[str, Any]:
    """One run of one side, with what both servers used meanwhile."""
    busy, idle = pair.processes[which], pair.processes[1 - which]
    marks: list[tuple[Usage, Usage]] = []
    result = asyncio.run(
        load.measure(one, lambda: marks.append((servers.usage(busy), servers.usage(idle))))
    )
    (before, idle_before), (after, idle_after) = marks
    server = cost(before, after, result["output_tokens"])
    server["idle_cpu_s"] = round(idle_after.tree.cpu_s - idle_before.tree.cpu_s, 3)
    return {"streams": one.streams, "seed": one.seed, "result": result, "server": server}


def cost(before: Usage, after: Usage, tokens: int) -> dict[str, float | None]:
    """CPU seconds per 1,000 output tokens between two readings, and memory at the second."""

    figures: dict[str, float | None] = {}
    for name in ("front", "tree"):
        first, last = getattr(before, name), getattr(after, name)
        spent = last.cpu_s - first.cpu_s
        figures[f"{name}_cpu_s_per_1k"] = round(1000 * spent / tokens, 4) if tokens else None
        figures[f"{name}_rss_mb"] = round(last.rss_mb, 1)
        figures[f"{name}_private_mb"] = round(last.private_mb, 1)
    return figures


def progress(run: Mapping[str, Any], rounds: int) -> None:
    """One line on stderr: a comparison takes minutes."""
    result = run["result"]
    ttft = (result["ttft_ms"] or {}).get("p50")
    sys.stderr.write(
        f"round {run['round']}/{rounds}  {run['streams']:>3} streams  {run['side']:<10}"
        f"{result['tok_s']:>9.1f} tok/s  TTFT p50 {ttft} ms"
        f"  idle side {run['server']['idle_cpu_s']} CPU s"
        f"{'  ERRORS ' + str(result['errors']) if result['errors'] else ''}\n"
    )


def figures(run: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers of one run that are compared, by name."""
    result = run["result"]
    spreads = {
        f"{name}_{point}_ms": (result[f"{name}_ms"] or {}).get(point)
        for name, point in (
            ("ttft", "p50"),
            ("ttft", "p99"),
            ("itl", "p50"),
            ("itl", "p99"),
            ("tpot", "p50"),
            ("e2e", "p50"),
        )
    }
    server = {name: value for name, value in run["server"].items() if name != "idle_cpu_s"}
    return {"tok_s": result["tok_s"]} | spreads | server


def summary(runs: Sequence[Mapping[str, Any]], a: str, b: str) -> list[dict[str, Any]]:
    """Per number of streams: errors, and for every figure the medians and the ratios A / B."""
    rows = []
    for streams in dict.fromkeys(run["streams"] for run in runs):
        here = [run for run in runs if run["streams"] == streams]
        of = {side: [figures(run) for run in here if run["side"] == side] for side in (a, b)}
        errors = {
            side: sum(sum(run["result"]["errors"].values()) for run in here if run["side"] == side)
            for side in (a, b)
        }
        compared = {
            name: contrast([one[name] for one in of[a]], [one[name] for one in of[b]])
            for name in of[a][0]
        }
        rows.append({"streams": streams, "errors": errors, "figures": compared})
    return rows


def contrast(a: Sequence[float | None], b: Sequence[float | None]) -> dict[str, Any] | None:
    """Medians of both sides and of the per-round ratios, and the ratios' spread.

    None where a round has no figure: half a comparison would look like a whole one.
    """
    both = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y]
    if not both or len(both) < len(a):
        return None
    ratios = [x / y for x, y in both]
    return {
        "a": round(statistics.median(x for x, _ in both), 4),
        "b": round(statistics.median(y for _, y in both), 4),
        "ratio": round(statistics.median(ratios), 4),
        "ratio_min": round(min(ratios), 4),
        "ratio_max": round(max(ratios), 4),
        "ratios": [round(ratio, 4) for ratio in ratios],
    }


def side_of(args: argparse.Namespace, which: str) -> Side:
    """Side `a` or `b` as the command line asks for it, on ports of its own."""
    kind = getattr(args, which)
    port = servers.free_port()
    if kind == "stock":
        command = [*STOCK, *stock_flags(args), "--disable-uvicorn-access-log", "--port", str(port)]
        ready = "/health"
    else:
        command = ["-m", "gateway", "serve", "--profile", args.profile, "--port", str(port)]
        command += ["--admin-port", str(servers.free_port())]
        ready = "/health/ready"
    command += shlex.split(getattr(args, f"{which}_args"))
    profile = load_profile(args.profile)
    given = {key: str(entry.value) for key, entry in profile.environment.items()}
    env = QUIET | given | dict(pair.split("=", 1) for pair in getattr(args, f"{which}_env"))
    name = f"{kind}-b" if which == "b" and args.a == args.b else kind
    return Side(name, (sys.executable, *command), env, f"http://127.0.0.1:{port}", ready)


def stock_flags(args: argparse.Namespace) -> list[str]:
    """vLLM's own flags for the profile, one argument a line: the same engine on both sides."""
    if args.stock_args_file:
        text = args.stock_args_file.read_text(encoding="utf-8")
    else:
        command = [sys.executable, "-m", "gateway", "profiles", "args", args.profile]
        text = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [line for line in text.splitlines() if line]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="bench.compare", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--streams", default="1,16,64", help="numbers of clients, by commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--api", choices=tuple(load.ROUTES), default="chat")
    parser.add_argument("--extra", default="{}", help="fields of every request, as JSON")
    parser.add_argument("--stock-args-file", type=Path, help="instead of `gateway profiles args`")
    parser.add_argument("--out", type=Path, help="default: stdout")
    for which, kind, alias in (("a", "gateway", "--gateway-env"), ("b", "stock", "--stock-env")):
        parser.add_argument(f"--{which}", choices=("gateway", "stock"), default=kind)
        parser.add_argument(
            f"--{which}-env", alias, action="append", default=[], metavar="K=V", help="repeatable"
        )
        parser.add_argument(f"--{which}-args", default="", help="more flags for it, in one string")
    return parser.parse_args(arguments)


def plan_of(args: argparse.Namespace) -> Plan:
    """What the command line asks to measure."""
    one = load.Load(
        url="",
        max_tokens=args.max_tokens,
        prompt_tokens=args.prompt_tokens,
        seed=args.seed,
        api=args.api,
        extra=args.extra,
    )
    return Plan(tuple(int(part) for part in args.streams.split(",")), args.rounds, one)


def main() -> None:
    """The command. Exit status 1 if a request failed: such a file proves nothing."""
    # SIGTERM as Ctrl-C: the servers are ended either way.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    args = parse()
    place = environment()
    a, b = side_of(args, "a"), side_of(args, "b")
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(_started(side)) for side in (a, b)]
        runs = compare(Pair((a, b), (processes[0], processes[1])), plan_of(args))
    rows = summary(runs, a.name, b.name)
    sides = {which: _described(side) for which, side in (("a", a), ("b", b))}
    asked = {
        name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()
    }
    result = {"arguments": asked, "environment": place, "sides": sides, "summary": rows}
    load.write(result | {"runs": runs}, args.out)
    if any(sum(row["errors"].values()) for row in rows):
        raise SystemExit(1)


def _started(side: Side) -> contextlib.AbstractContextManager[psutil.Process]:
    sys.stderr.write(f"starting {side.name}: {shlex.join(side.command)}\n")
    return servers.running(side)


def _described(side: Side) -> dict[str, Any]:
    # Folders of this machine say nothing to a reader.
    command = shlex.join(("python", *side.command[1:]))
    command = command.replace(f"{REPOSITORY}/", "").replace(str(Path.home()), "~")
    return {"name": side.name, "command": command, "env": dict(side.env)}


if __name__ == "__main__":
    main()
