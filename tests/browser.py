"""The system's Chromium, driven by Playwright; and a gateway over scripted engines on a real port."""

import asyncio
import shutil
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
import uvicorn
from fastapi import FastAPI
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from engine_config.build.packages import Package
from tests.scripted import Gateway, ScriptedEngine, make_admin, make_gateway
from tests.sources import kept

T = TypeVar("T")
PATIENCE_MS = 120_000
expect.set_options(timeout=PATIENCE_MS)
AXE = Package(
    "npm",
    "axe-core",
    "4.14.1",
    "axe-core-4.14.1.tgz",
    "e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745",
    708_405,
)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's browser. Playwright's own download is not needed."""
    found = shutil.which("chromium")
    if found is None:
        pytest.fail("chromium is missing: apt-get install chromium")
    with sync_playwright() as playwright:
        # A container has no user namespaces to make a sandbox of, and little /dev/shm.
        flags = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=found, args=flags)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Tab:
    """A page, and what went wrong on it."""

    page: Page
    problems: list[str] = field(default_factory=list)  # console errors and warnings, exceptions
    asked: list[str] = field(default_factory=list)  # URLs
    weight: dict[str, int] = field(default_factory=dict)  # URL -> bytes of the page's own files


@contextmanager
def tab(browser: Browser, url: str, path: str = "/", **options: Any) -> Iterator[Tab]:
    """The page, open in a context of its own: no cookie, no storage, no cache of another test."""
    context: BrowserContext = browser.new_context(**{"locale": "en-US", **options})
    context.set_default_timeout(PATIENCE_MS)
    opened = Tab(context.new_page())
    page = opened.page
    page.on("pageerror", lambda error: opened.problems.append(str(error)))
    page.on(
        "console",
        lambda message: (
            opened.problems.append(message.text) if message.type in ("error", "warning") else None
        ),
    )
    page.on("request", lambda request: opened.asked.append(request.url))
    try:
        page.goto(url + path)
        yield opened
    finally:
        context.close()


Report = Callable[[str, object], None]


def reporter(record_property: Report, capsys: pytest.CaptureFixture[str]) -> Report:
    """Puts a figure into the test's report (junit's properties) and onto the terminal."""

    def tell(name: str, value: object) -> None:
        record_property(name, value)
        with capsys.disabled():
            sys.stderr.write(f"\n    {name}: {value}")

    return tell


def first_token_ms(page: Page) -> float:
    """From asking to the first token on the page, as the page itself measured it."""
    measure = "performance.getEntriesByName('time-to-first-token')[0].duration"
    return round(float(page.evaluate(measure)), 1)


def axe_source() -> str:
    """axe-core's script, pinned; https://github.com/dequelabs/axe-core. Kept for the next run."""
    with tarfile.open(kept(AXE)) as archive:
        member = archive.extractfile("package/axe.min.js")
        assert member is not None
        return member.read().decode()


def violations(page: Page, axe: str) -> list[str]:
    """What axe finds wrong, best practices included: rule, and where."""
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{rule['id']}: {node['target']} {node['failureSummary']}"
        for rule in found["violations"]
        for node in rule["nodes"]
    ]


class Served:
    """Apps on ports of their own, in a thread with an event loop of its own."""

    def __init__(self, *apps: FastAPI) -> None:
        self.servers = [
            uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off"))
            for app in apps
        ]
        self.started = threading.Event()
        self.thread = threading.Thread(target=asyncio.run, args=(self._serve(),), daemon=True)

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        for server in self.servers:
            config = server.config
            config.load()
            server.lifespan = config.lifespan_class(config)
            await server.startup()
        self.started.set()
        await asyncio.gather(*(server.main_loop() for server in self.servers))
        for server in self.servers:
            await server.shutdown()

    @property
    def urls(self) -> list[str]:
        ports = [server.servers[0].sockets[0].getsockname()[1] for server in self.servers]
        return [f"http://127.0.0.1:{port}" for port in ports]

    def __enter__(self) -> "Served":
        self.thread.start()
        assert self.started.wait(PATIENCE_MS / 1000)
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.servers:
            server.should_exit = server.force_exit = True
        self.thread.join(PATIENCE_MS / 1000)

    def on_loop(self, work: Callable[[], T]) -> T:
        """What `work` returns, called on the servers' loop: engines and gates are not thread-safe."""

        async def call() -> T:
            return work()

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(PATIENCE_MS / 1000)


@dataclass
class House:
    """A gateway over one scripted engine, both listeners served."""

    engine: ScriptedEngine
    gateway: Gateway
    served: Served
    url: str
    admin_url: str


@contextmanager
def house(engine: ScriptedEngine, *profiles: Any, **settings: Any) -> Iterator[House]:
    gateway = make_gateway(engine, **settings)
    with Served(gateway.app, make_admin(gateway, *profiles)) as served:
        url, admin_url = served.urls
        yield House(engine, gateway, served, url, admin_url)
