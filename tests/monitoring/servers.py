"""Real Prometheus and Alertmanager processes for tests, what they scrape and whom they call."""

import http.server
import json
import queue
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import httpx
import yaml

from tests.monitoring.tools import ALERTMANAGER, ALERTS, MONITORING, RULES, program, read
from tests.ports import free_port
from tests.service.server import PATIENCE_S, wait_for

Config = dict[str, Any]
START_S = 60
# What a test would otherwise wait for: how long a condition must hold and messages are gathered.
SHORT = "1s"


class Server:
    """One process with a port; ended by its pid."""

    ready_path = "/-/ready"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE_S)

    def command(self) -> list[str]:
        raise NotImplementedError

    def __enter__(self) -> Self:
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            wait_for(self._ready, START_S, f"{type(self).__name__} ready")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()

    def _ready(self) -> bool:
        assert self.process.poll() is None, (self.folder / "log").read_text()
        try:
            return self.client.get(self.ready_path).status_code == 200
        except httpx.TransportError:
            return False

    def write(self, name: str, content: Config) -> Path:
        path = self.folder / name
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return path


class Alertmanager(Server):
    """With the routes of monitoring/alertmanager.yml; messages go to `webhook` without being gathered."""

    def __init__(self, folder: Path, webhook: str) -> None:
        super().__init__(folder)
        config = read(ALERTMANAGER)
        for receiver in config["receivers"]:
            for hook in receiver["webhook_configs"]:
                hook["url"] = f"{webhook}/{hook['url'].rpartition('/')[2]}"
        for route in (config["route"], *config["route"]["routes"]):
            route |= {"group_wait": SHORT, "group_interval": SHORT}
        self.config = self.write("alertmanager.yml", config)

    def command(self) -> list[str]:
        return [
            program("prometheus-alertmanager", "alertmanager"),
            f"--config.file={self.config}",
            f"--storage.path={self.folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--cluster.listen-address=",
        ]

    def post(self, *alerts: Mapping[str, str]) -> None:
        """Alerts by their labels, as Prometheus sends them."""
        body = [{"labels": dict(labels)} for labels in alerts]
        self.client.post("/api/v2/alerts", json=body).raise_for_status()

    def muted(self, n: int) -> list[dict[str, str]]:
        """Labels of the alerts that are told nobody, once there are n; a cause mutes a moment later."""

        def now() -> list[dict[str, str]]:
            alerts = self.client.get("/api/v2/alerts").json()
            return [each["labels"] for each in alerts if each["status"]["inhibitedBy"]]

        wait_for(lambda: len(now()) == n, PATIENCE_S, f"{n} muted")
        return now()


class Prometheus(Server):
    """monitoring/prometheus.yml with the files beside it, scraping every three seconds.

    Of the rules only the `for` of EngineDead is shorter; every expression is as it stands in the file.
    """

    def __init__(self, folder: Path, targets: Mapping[str, str], key: str, manager: str) -> None:
        super().__init__(folder)
        config = read(MONITORING / "prometheus.yml")
        config["global"] = {
            "scrape_interval": "3s",
            "scrape_timeout": "3s",
            "evaluation_interval": "1s",
        }
        alerts = read(ALERTS)
        for rule in (rule for group in alerts["groups"] for rule in group["rules"]):
            if (
                rule["alert"] == "EngineDead"
            ):  # a scrape that is late must not fire GatewayDown, which mutes it
                rule["for"] = SHORT
        config["rule_files"] = [str(RULES), str(self.write("alerts.yml", alerts))]
        (folder / "metrics.key").write_text(key, encoding="utf-8")
        (job,) = config["scrape_configs"]
        job["static_configs"] = [{"targets": [targets["gateway"]]}]
        others = [
            {"job_name": name, "static_configs": [{"targets": [target]}]}
            for name, target in targets.items()
            if name != job["job_name"]
        ]
        config["scrape_configs"] += others
        config["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": [manager]}]}]
        self.config = self.write("prometheus.yml", config)

    def command(self) -> list[str]:
        return [
            program("prometheus"),
            f"--config.file={self.config}",
            f"--storage.tsdb.path={self.folder / 'data'}",
            "--rules.alert.resend-delay=1s",  # what got lost on the way to Alertmanager is sent again
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]

    def get(self, path: str, **params: str) -> Any:
        """The `data` of an API call.

        Raises AssertionError with Prometheus' own words when it refuses.
        """
        body = self.client.get(f"/api/v1/{path}", params=params).json()
        assert body["status"] == "success", (params, body)
        return body["data"]

    def values(self, expr: str) -> list[float]:
        """Of every series that the expression has now; no NaN."""
        found = [float(each["value"][1]) for each in self.get("query", query=expr)["result"]]
        return [value for value in found if value == value]


class Listener:
    """A small HTTP server in a thread of its own; `with` ends it."""

    def __init__(self) -> None:
        listener = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(listener.page())

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                listener.take(self.path, json.loads(body))
                self._answer(b"")

            def _answer(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("content-type", "text/plain; version=0.0.4")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """A test's output is no access log."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(PATIENCE_S)

    def page(self) -> bytes:
        return b""

    def take(self, path: str, body: Config) -> None:
        raise NotImplementedError


class Page(Listener):
    """Serves a fixed page of metrics: what only a GPU or a certificate would show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def page(self) -> bytes:
        return self.text.encode()


class Webhook(Listener):
    """What Alertmanager calls. Keeps each alert with the path that it came by."""

    def __init__(self) -> None:
        super().__init__()
        self.told: queue.SimpleQueue[tuple[str, Config]] = queue.SimpleQueue()

    def take(self, path: str, body: Config) -> None:
        for alert in body["alerts"]:
            self.told.put((path, alert))

    def wait_for(self, name: str, status: str) -> tuple[str, Config]:
        """The next message of this alert: its path and the alert. Other messages are dropped."""
        while True:
            path, alert = self.told.get(timeout=PATIENCE_S)
            if (alert["labels"]["alertname"], alert["status"]) == (name, status):
                return path, alert
