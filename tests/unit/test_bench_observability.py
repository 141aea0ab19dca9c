"""The two sides differ by what is said, exports are taken, and /metrics is really read."""

import argparse
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

from bench import observability
from bench.servers import Side

ARGS = argparse.Namespace(profile="demo")


def test_both_sides_serve_the_same_and_differ_by_their_settings() -> None:
    on, off = observability.sides_of(ARGS, "http://127.0.0.1:1")

    differ = {key for key in {*on.env, *off.env} if on.env.get(key) != off.env.get(key)}
    assert differ == {*observability.ON, *observability.OFF}
    assert (on.name, off.name) == ("on", "off")
    assert on.command[:6] == off.command[:6]


def test_the_collector_takes_every_export() -> None:
    with observability.collector() as url:
        request = urllib.request.Request(f"{url}/v1/traces", data=b"x" * 10_000)
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert (answer.status, answer.read()) == (200, b"")


def test_metrics_are_read_while_the_block_runs() -> None:
    asked = threading.Event()

    class Metrics(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"a 1\n")
            asked.set()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Metrics)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    side = Side("on", ("x", "--admin-port", str(server.server_port)), {}, "", "")
    try:
        with observability.scraped(side, 0.001) as sizes:
            assert asked.wait(60)
        assert sizes and set(sizes) == {4}
    finally:
        server.shutdown()
        serving.join()
        server.server_close()
