"""Where keys are set the page asks for one, keeps it in memory and writes it nowhere."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser import House, house, tab
from tests.scripted import ScriptedEngine
from tests.web.conftest import ask, finished

KEY = "the-key-of-our-house"
# All that a page can keep: cookies are looked at apart, since scripts do not see all of them.
KEPT = """async () => ({
    local: {...localStorage}, session: {...sessionStorage},
    databases: (await indexedDB.databases()).map(each => each.name),
    caches: await caches.keys(), workers: (await navigator.serviceWorker.getRegistrations()).length,
    name: window.name, state: history.state, address: location.href,
})"""


@pytest.fixture
def closed(engine: ScriptedEngine) -> Iterator[House]:
    with house(engine, api_key=KEY) as home:
        yield home


def give(page: Page, key: str) -> None:
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Use it").click()


def test_the_page_asks_for_the_key_and_keeps_it_in_memory_only(
    closed: House, browser: Browser
) -> None:
    with tab(browser, closed.url) as opened:
        page = opened.page
        expect(page.get_by_role("dialog")).to_contain_text("A key is needed")
        give(page, KEY)
        page.wait_for_selector("#ask:enabled")
        ask(opened)
        finished(opened)
        page.get_by_role("tab", name="Live").click()
        page.wait_for_selector(".model")

        kept = page.evaluate(KEPT)
        empty = {"local": {}, "session": {}, "databases": [], "caches": [], "workers": 0}
        assert kept == empty | {"name": "", "state": None, "address": f"{closed.url}/#tab=live"}
        assert page.context.cookies() == []
        assert KEY not in page.content() and page.input_value("#key") == ""
        assert not any(KEY in url for url in opened.asked)

        page.reload()
        expect(page.get_by_role("dialog")).to_contain_text("A key is needed")


def test_a_wrong_key_is_asked_for_again(closed: House, browser: Browser) -> None:
    with tab(browser, closed.url) as opened:
        give(opened.page, "wrong")
        expect(opened.page.get_by_role("dialog")).to_contain_text("the key is not valid")
        give(opened.page, KEY)
        opened.page.wait_for_selector("#ask:enabled")


def test_without_a_key_nothing_but_the_page_is_shown(closed: House, browser: Browser) -> None:
    with tab(browser, closed.url) as opened:
        opened.page.get_by_role("button", name="Cancel").click()

        expect(opened.page.get_by_role("alert")).to_contain_text("401 Unauthorized")
        assert opened.page.is_disabled("#ask")
        opened.page.get_by_role("button", name="Try again").click()
        expect(opened.page.get_by_role("dialog")).to_be_visible()


def test_somebody_without_a_key_is_not_asked_again_and_again(
    closed: House, browser: Browser
) -> None:
    with tab(browser, closed.url) as opened:
        page = opened.page
        page.clock.install()
        page.get_by_role("button", name="Cancel").click()
        page.get_by_role("tab", name="Live").click()
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("#live-state")).to_contain_text("a key is required")
        page.clock.fast_forward(60_000)

        expect(page.get_by_role("dialog")).to_be_hidden()
        assert len([url for url in opened.asked if url.endswith("/stats")]) == 1


def test_the_copied_requests_name_the_variable_and_not_the_key(
    closed: House, browser: Browser
) -> None:
    with tab(browser, closed.url) as opened:
        give(opened.page, KEY)
        opened.page.wait_for_selector("#ask:enabled")
        ask(opened)
        finished(opened)
        opened.page.get_by_text("The same request as curl").click()

        texts = opened.page.locator(".snippets pre").all_inner_texts()
        assert len(texts) == 3 and all("GATEWAY_API_KEY" in text for text in texts)
        assert not any(KEY in text for text in texts)


def test_the_admin_page_asks_for_a_key_as_well(closed: House, browser: Browser) -> None:
    with tab(browser, closed.admin_url) as opened:
        give(opened.page, KEY)
        expect(opened.page.locator(".model")).to_contain_text("scripted")
        assert opened.page.context.cookies() == []
