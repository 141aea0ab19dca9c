"""What metrics, logs and traces cost: the gateway with all of them on against itself with them off.

    python -m bench.observability --out bench/results/observability.json

Both sides run the same engine on the same profile. Of the side that has everything on, `/metrics` is read
every few seconds, as Prometheus does, and its traces go to a collector in this process that throws them
away. The rounds are those of `bench.compare`. Settings that differ are `ON` and `OFF` below.
"""

import argparse
import contextlib
import dataclasses
import signal
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from bench import compare, load, servers
from bench.environment import environment
from bench.servers import Side

STREAMS = 16
# "{collector}" is the URL of the one that throws everything away.
ON: Mapping[str, str] = {
    "GATEWAY_METRICS": "true",
    "GATEWAY_ACCESS_LOG": "true",
    "GATEWAY_TRACE_ENDPOINT": "{collector}",
    "GATEWAY_TRACE_SAMPLE": "1",
}
OFF: Mapping[str, str] = {"GATEWAY_METRICS": "false", "GATEWAY_ACCESS_LOG": "false"}


class _Accept(BaseHTTPRequestHandler):
    """Says yes to every export."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the load generator shares this process' stderr."""


@contextlib.contextmanager
def collector() -> Iterator[str]:
    """Its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Accept)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def scraped(side: Side, every_s: float) -> Iterator[list[int]]:
    """Its /metrics is read as long as the block runs; the list gets the size of each answer, bytes."""
    port = side.command[side.command.index("--admin-port") + 1]
    url = f"http://127.0.0.1:{port}/metrics"
    stop = threading.Event()
    sizes: list[int] = []

    def scrape() -> None:
        while not stop.wait(every_s):
            with urllib.request.urlopen(url, timeout=30) as answer:
                sizes.append(len(answer.read()))

    thread = threading.Thread(target=scrape, daemon=True)
    thread.start()
    try:
        yield sizes
    finally:
        stop.set()
        thread.join()


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="bench.observability", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--scrape-s", type=float, default=5.0, help="between two reads of /metrics")
    parser.add_argument("--out", type=Path, help="default: stdout")
    return parser.parse_args()


def sides_of(args: argparse.Namespace, collector_url: str) -> tuple[Side, Side]:
    """On and off."""
    flags = ["--a", "gateway", "--b", "gateway", "--profile", args.profile]
    for which, env in (("a", ON), ("b", OFF)):
        for name, value in env.items():
            flags += [f"--{which}-env", f"{name}={value.format(collector=collector_url)}"]
    asked = compare.parse(flags)
    on, off = compare.side_of(asked, "a"), compare.side_of(asked, "b")
    return dataclasses.replace(on, name="on"), dataclasses.replace(off, name="off")


def main() -> None:
    """The command. Exit status 1 if a request failed: such a file proves nothing."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    args = parse()
    place = environment()
    one = load.Load(url="", max_tokens=args.max_tokens, prompt_tokens=args.prompt_tokens)
    with contextlib.ExitStack() as stack:
        sides = sides_of(args, stack.enter_context(collector()))
        processes = [stack.enter_context(servers.running(side)) for side in sides]
        sizes = stack.enter_context(scraped(sides[0], args.scrape_s))
        pair = compare.Pair(sides, (processes[0], processes[1]))
        runs = compare.compare(pair, compare.Plan((STREAMS,), args.rounds, one))
    (row,) = compare.summary(runs, "on", "off")
    result = {
        "arguments": {name: str(value) for name, value in vars(args).items()},
        "environment": place,
        "sides": {"on": dict(ON), "off": dict(OFF)},
        "scrapes": {"count": len(sizes), "bytes": max(sizes, default=0)},
        "summary": row,
    }
    load.write(result | {"runs": runs}, args.out)
    told = row["figures"]["tok_s"]
    sys.stderr.write(
        f"tokens per second, on / off: {told['ratio']} ({told['ratio_min']} to {told['ratio_max']})\n"
    )
    if any(row["errors"].values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
