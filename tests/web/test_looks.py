"""Light and dark, wide and 360 px, English and Chinese, by keyboard, for screen readers."""

from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from gateway.engines.types import Job
from tests.browser import House, Tab, house, tab, violations
from tests.scripted import Script, ScriptedEngine
from tests.web.conftest import QUESTION, ask, finished, speech

PHONE = {"width": 360, "height": 740}
LOOKS: dict[str, dict[str, Any]] = {
    "light": {},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": PHONE},
    "dark phone in Chinese": {"viewport": PHONE, "color_scheme": "dark", "locale": "zh-CN"},
}
ANSWER = """

# A heading

| a | b |
|---|---|
| 1 | 2 |

A [link](https://example.org/), `code`, and averyveryverylongwordthatdoesnotfitintoasmallscreenatall.

```
a line of code that is a good deal longer than a telephone is wide, so it has to be broken somewhere
```
"""


def rich(job: Job) -> Script:
    return speech("Let me see. " * 30 + "\n\nSo the answer is 408. " * 3, ANSWER)


def width(page: Page) -> int:
    return int(page.evaluate("document.scrollingElement.scrollWidth"))


@pytest.mark.parametrize("look", LOOKS)
def test_nothing_is_too_wide_and_axe_finds_nothing(
    home: House, browser: Browser, axe: str, look: str
) -> None:
    home.engine.script = rich
    with tab(browser, home.url, **LOOKS[look]) as opened:
        page = opened.page
        page.wait_for_selector("#ask:enabled")
        page.locator("form summary").click()
        assert violations(page, axe) == []
        page.fill("#samples", "2")
        ask(opened)
        finished(opened)
        for summary in page.locator(".turn summary").all():
            summary.click()
        assert violations(page, axe) == []
        widths = [width(page)]
        page.click("#tab-live")
        page.wait_for_selector(".model")
        assert violations(page, axe) == []
        widths.append(width(page))

        assert max(widths) <= page.viewport_size["width"]  # type: ignore[index]
        assert opened.problems == []


def test_axe_finds_nothing_in_errors_and_dialogs(
    engine: ScriptedEngine, browser: Browser, axe: str
) -> None:
    with house(engine, api_key="k" * 20) as closed, tab(browser, closed.url) as opened:
        expect(opened.page.get_by_role("dialog")).to_be_visible()
        assert violations(opened.page, axe) == []
        opened.page.keyboard.press("Escape")
        expect(opened.page.get_by_role("alert")).to_be_visible()
        assert violations(opened.page, axe) == []


def background(page: Page) -> str:
    return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))


def test_the_theme_follows_the_system_until_somebody_chooses(opened: Tab) -> None:
    page = opened.page
    light = background(page)
    page.emulate_media(color_scheme="dark")
    dark = background(page)
    page.get_by_role("button", name="Theme: system").click()
    page.emulate_media(color_scheme="light")
    chosen = background(page)
    page.get_by_role("button", name="Theme: dark").click()
    page.emulate_media(color_scheme="dark")

    assert light != dark == chosen
    assert background(page) == light


def test_everything_speaks_both_languages_also_what_is_there_already(opened: Tab) -> None:
    page = opened.page
    ask(opened)
    finished(opened)
    english = page.inner_text("body")
    page.get_by_role("button", name="中文").click()
    chinese = page.inner_text("body")

    assert page.get_attribute("html", "lang") == "zh-CN"
    assert "Not calibrated" in english and "Not calibrated" not in chinese
    assert "未校准" in chinese and QUESTION in chinese
    assert page.title() == "看它思考"
    page.reload()
    expect(page.locator("h1")).to_have_text("看它思考")
    page.get_by_role("button", name="English").click()
    expect(page.locator("h1")).to_have_text("Watch it think")


def test_a_browser_that_prefers_chinese_gets_it(home: House, browser: Browser) -> None:
    with tab(browser, home.url, locale="zh-TW") as opened:
        expect(opened.page.locator("#ask")).to_have_text("提问")


def test_all_of_it_works_by_keyboard(opened: Tab) -> None:
    page = opened.page
    page.keyboard.press("Tab")
    expect(page.locator(":focus")).to_have_text("To the question")
    page.keyboard.press("Enter")
    expect(page.locator("#question")).to_be_focused()
    page.keyboard.type(QUESTION)
    page.keyboard.press("Control+Enter")
    finished(opened)
    page.locator("#tab-ask").focus()
    page.keyboard.press("ArrowRight")

    expect(page.locator("#tab-live")).to_be_focused()
    expect(page.locator("#panel-live")).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#panel-ask")).to_be_visible()


def test_screen_readers_are_told_phases_and_not_tokens(opened: Tab) -> None:
    opened.page.evaluate(
        """() => {
            window.told = [];
            const status = document.getElementById("status");
            new MutationObserver(() => window.told.push(status.textContent))
                .observe(status, {childList: true, characterData: true, subtree: true});
        }"""
    )
    ask(opened)
    finished(opened)

    told = opened.page.evaluate("window.told")
    assert told[0] == "Waiting for the engine…" and told[-1] == "Done" and len(told) <= 4
    live = opened.page.locator("[aria-live], [role=status], [role=alert], [role=log]")
    assert live.count() == 1
