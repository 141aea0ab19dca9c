"""Writes docs/images/*.png anew: the page, with the demo model thinking behind it.

    python -m docs.screenshots              # a gateway with the demo profile; about two minutes
    python -m docs.screenshots --scripted   # an engine that follows a script; seconds

Not part of any test.
"""

import asyncio
import io
import itertools
import sys
import tempfile
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Locator, Page

from gateway.engines.types import Delta, Job
from tests.browser import chromium, house, tab
from tests.scripted import KNOWS_MARKS, Entry, Script, ScriptedEngine, said, tokens
from tests.service.server import Gateway

THOUGHT = """Okay, the question has two parts: why the sky is blue, and why the sunset is red.

First, sunlight holds all colours, and air scatters short waves far more than long ones.

The strength goes with one over the fourth power of the wavelength: (700 / 450)^4 = 5.86. So blue is
scattered about six times as much as red.

Wait, violet is shorter still. But the sun gives less of it, and our eyes are less sensitive to it, so
we see blue.

In the evening the light comes through much more air; the blue is scattered out of the way, and red is
left.

So the answer is Rayleigh scattering, seen from two sides."""
ANSWER = """Both are **Rayleigh scattering**:

1. *By day* we see the light that the air scatters, and of blue it scatters six times as much as of red.
2. *In the evening* we see what is left behind a long way through the air, and that is red.
"""
IMAGES = Path(__file__).parent / "images"
COLOURS = 160  # of the palette: a third of the size, and nobody sees it
WIDE = {"width": 900, "height": 640}
LOW = {"width": 900, "height": 320}
PHONE = {"width": 360, "height": 640}
SETTLED = ".turn:last-child .report"


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    scripted = "--scripted" in sys.argv
    with demo() if not scripted else house(narrator()) as served, chromium() as browser:
        ask_tab(browser, served.url, 1500 if scripted else 500)
        if not scripted:  # it has no counters that a chart could show
            live_tab(browser, served.url)
        phone(browser, served.url, 900 if scripted else 120)
        admin(browser, served.admin_url)


def demo() -> Gateway:
    return Gateway(Path(tempfile.mkdtemp()) / "serve.log", "demo")


class Narrator(ScriptedEngine):
    """Says the same whatever it is asked, at the pace of a small model."""

    async def generate(self, job: Job) -> AsyncGenerator[Delta, None]:
        async with aclosing(super().generate(job)) as deltas:
            async for delta in deltas:
                await asyncio.sleep(0.02)
                yield delta


def narrator() -> ScriptedEngine:
    engine = Narrator("scripted")
    engine.opens_thought = True
    engine.script = lambda job: told()
    return engine


def told() -> Script:
    """The story, with a certainty that differs from step to step."""
    script = said(KNOWS_MARKS, tokens(f"{THOUGHT}</think>\n\n{ANSWER}"), itertools.repeat(4))
    ids = [token for group in script.ids or () for token in group]
    doubt = itertools.cycle((0.02, 0.3, 0.08, 0.6))
    rows = [(token, place) for place, token in enumerate(ids)]
    levels = [next(doubt) for _ in range(len(ids) // 90 + 1)]
    script.logprobs = [
        {token: Entry(-levels[place // 90]), token + 1: Entry(-1.5)} for token, place in rows
    ]
    return script


def ask(page: Page, question: str, depth: str, **fields: str) -> None:
    page.wait_for_selector("#ask:enabled")
    page.locator("form summary").click()
    for name, value in fields.items():
        page.fill(f"#{name}", value)
    page.locator("form summary").click()
    page.locator("#thinking_depth").fill(depth)
    page.fill("#question", question)
    page.click("#ask")


def ask_tab(browser: Browser, url: str, total: int) -> None:
    with tab(browser, url, viewport=WIDE) as opened:
        page = opened.page
        ask(page, "Why is the sky blue, and the sunset red?", "3", seed="4", max_tokens=str(total))
        page.wait_for_selector("[role=progressbar][aria-valuenow]")
        part_full(page)
        save(page, "thinking")
        page.wait_for_selector(SETTLED, timeout=120_000)
        page.locator("details.step summary").first.click()
        save(page, "steps")
        page.locator(".report").scroll_into_view_if_needed()
        page.evaluate("document.querySelector('.report').scrollIntoView()")
        save(page, "checks")


def part_full(page: Page) -> None:
    """Wait until two fifths of the budget are used."""
    bar = page.locator("[role=progressbar]")
    while int(value(bar, "now")) < 0.4 * int(value(bar, "max")):
        page.wait_for_timeout(50)


def value(bar: Locator, which: str) -> str:
    return bar.get_attribute(f"aria-value{which}") or "0"


def live_tab(browser: Browser, url: str) -> None:
    with (
        tab(browser, url, "/#tab=live&theme=dark", viewport=WIDE) as watched,
        tab(browser, url) as asking,
    ):
        watched.page.wait_for_selector(".model")
        ask(asking.page, "Tell me a story.", "3", samples="4", max_tokens="400")
        asking.page.wait_for_selector(SETTLED, timeout=180_000)
        watched.page.wait_for_timeout(5000)  # two more points
        save(watched.page, "live")


def phone(browser: Browser, url: str, total: int) -> None:
    with tab(browser, url, viewport=PHONE, locale="zh-CN", color_scheme="dark") as opened:
        ask(opened.page, "法国的首都是哪里？", "3", max_tokens=str(total), seed="1")
        opened.page.wait_for_selector(SETTLED, timeout=120_000)
        opened.page.evaluate("document.querySelector('.turn').scrollIntoView()")
        save(opened.page, "phone")


def admin(browser: Browser, url: str) -> None:
    with tab(browser, url, viewport=LOW) as opened:
        opened.page.wait_for_selector(".model")
        save(opened.page, "admin")


def save(page: Page, name: str) -> None:
    image = Image.open(io.BytesIO(page.screenshot()))
    palette = image.convert("RGB").quantize(COLOURS)
    palette.save(IMAGES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
