"""The page with the real engine behind it: what it shows, and that what it offers to copy works."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.browser import (
    Report,
    Tab,
    axe_source,
    chromium,
    first_token_ms,
    reporter,
    tab,
    violations,
)
from tests.service.server import DEMO, NANO, Gateway


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def opened(gateway: Gateway, browser: Browser) -> Iterator[Tab]:
    with tab(browser, gateway.url) as opened:
        opened.page.wait_for_selector("#ask:enabled")
        opened.page.get_by_text("Model, budget, sampling").click()
        yield opened
        assert opened.problems == []


def ask(opened: Tab, **fields: str) -> None:
    page = opened.page
    depth = fields.pop("thinking_depth", "1")
    page.locator("#thinking_depth").fill(depth)
    page.select_option("#model", fields.pop("model", DEMO))
    for name, value in fields.items():
        page.fill(f"#{name}", value)
    page.fill("#question", "What is the capital of France?")
    page.click("#ask")


def finished(opened: Tab) -> None:
    opened.page.wait_for_selector(".turn:last-child .report", timeout=120_000)


def test_it_streams_a_thought_and_an_answer_and_shows_the_checks(
    opened: Tab, record_property: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(opened, max_tokens="160", temperature="0")
    finished(opened)

    page = opened.page
    # A short thought may be over, and its text be steps, before we can look.
    expect(page.locator(".thought .piece, .thought .step")).not_to_have_count(0)
    assert page.locator(".answer").inner_text().strip()
    expect(page.locator(".checks li")).to_have_count(9)
    expect(page.locator(".score b")).to_contain_text("%")
    used, budget = (
        int(page.get_attribute("[role=progressbar]", f"aria-value{name}") or 0)
        for name in ("now", "max")
    )
    assert 0 < used <= budget <= 80
    report = reporter(record_property, capsys)
    report("demo model: from asking to the first token on the page, ms", first_token_ms(page))


def test_depth_none_answers_at_once(opened: Tab) -> None:
    ask(opened, thinking_depth="0", max_tokens="40", seed="1")
    finished(opened)

    expect(opened.page.locator(".thought .piece, .step")).to_have_count(0)
    assert opened.page.locator(".answer").inner_text().strip()


def test_answer_now_makes_an_endless_thinker_answer(opened: Tab) -> None:
    ask(opened, model=NANO, thinking_depth="5", max_tokens="30000")
    opened.page.wait_for_selector(".thought .piece")
    opened.page.get_by_role("button", name="Answer now").click()
    expect(opened.page.locator(".end")).to_contain_text("told to answer now", timeout=60_000)
    opened.page.wait_for_selector(".answer :not(:empty)", timeout=60_000)


def test_what_is_copied_works(opened: Tab) -> None:
    ask(opened, max_tokens="80", seed="3")
    finished(opened)
    opened.page.get_by_text("The same request as curl").click()
    curl, httpx, openai = opened.page.locator(".snippets pre").all_inner_texts()

    def run(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "event: thinking.completed" in run("bash", "-c", curl)
    assert run(sys.executable, "-c", httpx).strip()
    assert run(sys.executable, "-c", openai).strip()


def test_an_error_of_the_real_engine_is_readable(gateway: Gateway, browser: Browser) -> None:
    with tab(browser, gateway.url) as opened:
        opened.page.wait_for_selector("#ask:enabled")
        opened.page.get_by_text("Model, budget, sampling").click()
        ask(opened, max_tokens="999999")

        expect(opened.page.get_by_role("alert")).to_contain_text("400 Bad Request")
        expect(opened.page.get_by_role("alert")).to_contain_text("Field: max_tokens")


def test_dark_at_360_px_axe_finds_nothing(gateway: Gateway, browser: Browser) -> None:
    phone = {"width": 360, "height": 740}
    with tab(browser, gateway.url, color_scheme="dark", viewport=phone) as opened:
        page = opened.page
        page.wait_for_selector("#ask:enabled")
        page.get_by_text("Model, budget, sampling").click()
        ask(opened, max_tokens="64", samples="2", seed="1")
        finished(opened)
        axe = axe_source()
        found = violations(page, axe)
        page.get_by_role("tab", name="Live").click()
        expect(page.locator(".model")).to_have_count(2)
        found += violations(page, axe)

        assert found == []
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 360
        assert opened.problems == []
