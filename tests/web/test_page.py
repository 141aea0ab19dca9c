"""The page in a real browser, over an engine that follows a script."""

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Browser, Route, expect

from gateway.errors import EngineUnavailable
from tests.browser import House, Tab, house, tab
from tests.scripted import ScriptedEngine, text_of
from tests.service.server import PATIENCE_S, wait_for
from tests.web.conftest import ANSWER, QUESTION, THOUGHT, ask, finished, scripts, speech


@pytest.fixture
def gate(home: House) -> asyncio.Event:
    """Holds the engine before a delta of its script, until it is set."""
    return home.served.on_loop(asyncio.Event)


@pytest.fixture
def release(home: House, gate: asyncio.Event) -> Callable[[], None]:
    return lambda: home.served.on_loop(gate.set)


def test_thought_and_answer_stream_apart_while_the_budget_fills(
    home: House, opened: Tab, gate: asyncio.Event, release: Callable[[], None]
) -> None:
    home.engine.script = lambda job: speech(THOUGHT, ANSWER, gate=gate, gate_at=30)
    page = opened.page

    ask(opened)
    expect(page.locator(".thought .text")).to_contain_text("17 * 20 + 17 * 4")
    bar = page.locator("[role=progressbar]")
    part_way = int(bar.get_attribute("aria-valuenow") or 0)
    expect(page.locator(".state")).to_have_text("Thinking…")
    assert page.locator(".answer").inner_text().strip() == ""
    release()
    finished(opened)

    assert 0 < part_way < int(bar.get_attribute("aria-valuenow") or 0) <= len(THOUGHT) + 1
    expect(page.locator(".answer strong")).to_have_text("408")
    expect(page.locator(".answer li")).to_have_count(2)
    expect(page.locator(".end")).to_contain_text("closed by the model")


def test_steps_fold_have_kinds_and_are_counted(opened: Tab) -> None:
    page = opened.page
    ask(opened)
    finished(opened)

    steps = page.locator("details.step")
    kinds = page.locator("details.step .tag").all_inner_texts()
    assert kinds == ["plan", "compute", "backtrack", "conclude"]
    expect(steps.locator(".whole").first).to_be_hidden()
    page.get_by_role("button", name="Unfold all").click()
    expect(steps.locator(".whole").first).to_be_visible()


def test_answer_now_ends_the_thought(
    home: House, opened: Tab, gate: asyncio.Event, release: Callable[[], None]
) -> None:
    endless = speech("I wonder. " * 500, "", gate=gate, gate_at=20)
    home.engine.script = scripts(endless, speech("", "42", size=1))

    ask(opened)
    opened.page.wait_for_selector(".thought .piece")
    with opened.page.expect_response("**/answer_now") as told:
        opened.page.get_by_role("button", name="Answer now").click()
    release()
    finished(opened)

    assert told.value.json()["phase"] == "thinking"
    expect(opened.page.locator(".end")).to_contain_text("told to answer now")


def test_stop_aborts_the_engine(home: House, opened: Tab, gate: asyncio.Event) -> None:
    home.engine.script = lambda job: speech(THOUGHT, ANSWER, gate=gate, gate_at=10)

    ask(opened)
    opened.page.wait_for_selector(".thought .piece")
    opened.page.get_by_role("button", name="Stop").click()

    expect(opened.page.locator(".state")).to_have_text("Stopped")
    expect(opened.page.get_by_role("button", name="Ask again")).to_be_visible()
    wait_for(lambda: home.engine.aborted, PATIENCE_S, "the engine is told")


def cut(home: House) -> None:
    """Every connection breaks, as when a cable is pulled."""

    def abort() -> None:
        for server in home.served.servers:
            for connection in list(server.server_state.connections):
                connection.transport.abort()

    home.served.on_loop(abort)


def test_a_lost_connection_says_so_and_goes_on_from_what_came(
    home: House, browser: Browser, gate: asyncio.Event, release: Callable[[], None]
) -> None:
    answer = "It begins like this, and then"
    broken = speech("Hm.", answer, size=1, gate=gate, gate_at=len(answer))
    home.engine.script = scripts(broken, speech("Hm.", " it goes on."))
    with tab(browser, home.url) as opened:
        page = opened.page
        page.wait_for_selector("#ask:enabled")
        ask(opened)
        expect(page.locator(".answer")).to_contain_text("It begins")
        cut(home)

        expect(page.get_by_role("alert")).to_contain_text("The connection was lost")
        release()
        page.get_by_role("button", name="Go on from what came").click()
        page.wait_for_selector(".turn:nth-child(2) .report")

    prompt = text_of(home.engine.jobs[-1].prompt)
    assert f"<user>{QUESTION}<assistant>It begins" in prompt and "Go on exactly" in prompt


def test_a_lost_thought_can_be_asked_again(
    home: House, browser: Browser, gate: asyncio.Event, release: Callable[[], None]
) -> None:
    broken = speech(THOUGHT, ANSWER, gate=gate, gate_at=10)
    home.engine.script = scripts(broken, speech(THOUGHT, ANSWER))
    with tab(browser, home.url) as opened:
        opened.page.wait_for_selector("#ask:enabled")
        ask(opened)
        opened.page.wait_for_selector(".thought .piece")
        cut(home)
        expect(opened.page.get_by_role("button", name="Go on from what came")).to_have_count(0)
        release()
        opened.page.get_by_role("button", name="Ask again").click()
        finished(opened)

    first, second = (text_of(job.prompt) for job in home.engine.jobs)
    assert first == second


def test_a_gateway_that_is_away_is_told_and_tried_again(home: House, browser: Browser) -> None:
    with tab(browser, home.url) as opened:
        page = opened.page
        page.wait_for_selector("#ask:enabled")
        page.route("**/thinking", lambda route: route.abort())
        ask(opened)
        expect(page.get_by_role("alert")).to_contain_text("The connection was lost")
        page.unroute("**/thinking")
        page.get_by_role("button", name="Ask again").click()
        finished(opened)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("temperature", "3", ["400 Bad Request", "less than or equal to 2", "Field: temperature"]),
        ("seed", "abc", ["400 Bad Request", "Field: seed", "Change the field that is named"]),
        ("samples", "5000", ["400 Bad Request", "GATEWAY_MAX_N", "Request id: page-"]),
    ],
)
def test_a_refusal_is_readable(
    home: House, browser: Browser, field: str, value: str, told: list[str]
) -> None:
    with tab(browser, home.url) as opened:
        page = opened.page
        page.wait_for_selector("#ask:enabled")
        page.get_by_text("Model, budget, sampling").click()
        page.fill(f"#{field}", value)
        ask(opened)

        for part in told:
            expect(page.get_by_role("alert")).to_contain_text(part)
        page.fill(f"#{field}", "1")
        page.get_by_role("button", name="Ask again").click()
        finished(opened)


def test_an_engine_that_dies_in_the_middle_is_told(home: House, browser: Browser) -> None:
    failure = EngineUnavailable("the engine died", retry_after_s=7)
    home.engine.script = lambda job: speech(THOUGHT, ANSWER, failure=failure, fail_at=10)
    with tab(browser, home.url) as opened:
        opened.page.wait_for_selector("#ask:enabled")
        ask(opened)

        alert = opened.page.get_by_role("alert")
        expect(alert).to_contain_text("503 Service Unavailable")
        expect(alert).to_contain_text("the engine died")
        expect(opened.page.locator(".thought .text")).to_contain_text("Okay")


def test_a_second_question_is_asked_within_the_conversation(home: House, opened: Tab) -> None:
    ask(opened)
    finished(opened)
    ask(opened, "And times two?")
    opened.page.wait_for_selector(".turn:nth-child(2) .report")
    opened.page.get_by_role("button", name="New conversation").click()
    ask(opened, "Hello?")
    finished(opened)

    prompts = [text_of(job.prompt) for job in home.engine.jobs]
    assert prompts[1].startswith(f"<user>{QUESTION}<assistant>") and "And times two?" in prompts[1]
    assert prompts[2] == "<user>Hello?<assistant><think>\n"


def test_samples_think_side_by_side_and_vote(home: House, opened: Tab) -> None:
    home.engine.script = scripts(
        speech("Three.", "The answer is 7."),
        speech("Five.", "The answer is 8."),
        speech("Five.", "The answer is 8."),
    )
    page = opened.page
    page.get_by_text("Model, budget, sampling").click()
    page.fill("#samples", "3")
    ask(opened)
    finished(opened)

    expect(page.locator(".thought")).to_have_count(3)
    expect(page.locator(".answer")).to_contain_text("8")
    expect(page.locator(".tally li").first).to_contain_text("2 of 3")


def test_depth_and_sampling_reach_the_server(home: House, opened: Tab) -> None:
    page = opened.page
    page.get_by_text("Model, budget, sampling").click()
    page.locator("#thinking_depth").press("End")
    values = {"temperature": "0.5", "top_p": "0.9", "seed": "7", "max_tokens": "900"}
    for name, value in values.items():
        page.fill(f"#{name}", value)
    with page.expect_request("**/thinking") as asked:
        ask(opened)
    finished(opened)

    numbers: dict[str, Any] = {name: float(value) for name, value in values.items()}
    expected = {"question": QUESTION, "thinking_depth": 5, "stream": True, **numbers}
    assert asked.value.post_data_json == expected
    expect(page.locator("#depth-shown")).to_contain_text("5, xhigh")


def test_the_page_knows_what_the_server_allows(engine: ScriptedEngine, browser: Browser) -> None:
    with (
        house(engine, thinking_ceiling=123, max_n=4, thinking_default_depth=2) as home,
        tab(browser, home.url) as opened,
    ):
        page = opened.page
        page.wait_for_selector("#ask:enabled")

        expect(page.locator("#ceiling")).to_have_text(
            "The operator's ceiling: 123 thinking tokens."
        )
        assert page.get_attribute("#samples", "max") == "4"
        assert page.input_value("#thinking_depth") == "2"
        assert page.locator("#model option").all_text_contents() == ["scripted"]


@pytest.mark.parametrize("path", ["stats", "health"])
@pytest.mark.parametrize("broken", ["lost", "html"])
def test_live_says_that_it_gets_no_answer_and_tries_again(
    opened: Tab, path: str, broken: str
) -> None:
    """A cable that is pulled between two calls, or a proxy's own page in the place of an answer."""
    page = opened.page

    def answer(route: Route) -> None:
        if broken == "lost":
            route.abort()
        else:
            route.fulfill(status=200, content_type="text/html", body="<h1>Bad gateway</h1>")

    page.route(f"**/{path}", answer)
    page.get_by_role("tab", name="Live").click()
    expect(page.locator("#live-state")).to_contain_text("does not answer")
    page.unroute(f"**/{path}")

    expect(page.locator(".model")).to_contain_text("scripted")
    if broken == "lost":  # the browser's own words about it
        assert [each for each in opened.problems if "ERR_FAILED" not in each] == []
        opened.problems.clear()


def test_live_charts_follow_stats(opened: Tab) -> None:
    page = opened.page
    ask(opened)
    finished(opened)
    page.get_by_role("tab", name="Live").click()

    expect(page.locator("figure")).to_have_count(5)
    expect(page.locator("figure", has_text="Tokens: thinking")).to_contain_text(
        re.compile(r"\d{3}")
    )
    expect(page.locator("figure", has_text="Tokens: thinking")).not_to_contain_text("–")
    expect(page.locator(".model")).to_contain_text("scripted")
    drawn = page.locator("figure", has_text="KV cache").locator("path")
    expect(drawn).to_have_attribute("d", re.compile(r"^M\d.*L\d"))
