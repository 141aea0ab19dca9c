"""One browser for the package; each test has a context of its own, without cache or storage."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser

from gateway.engines.types import Job
from tests.browser import PATIENCE_MS, House, Tab, axe_source, chromium, house, tab
from tests.scripted import KNOWS_MARKS, Script, ScriptedEngine, said, tokens

THOUGHT = (
    "Okay, we need 17 times 24. It is not a number that one knows by heart.\n\n"
    "By parts, 17 * 24 = 17 * 20 + 17 * 4, which is 340 + 68 = 408.\n\n"
    "Wait, check that once more, since it went quickly: 24 * 17 = 408. It is the same.\n\n"
    "So the answer is 408, and nothing else is asked for."
)
ANSWER = "\n\nIt is **408**.\n\n1. `17 * 20 = 340`\n2. `17 * 4 = 68`\n"
QUESTION = "What is 17 times 24?"


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def axe() -> str:
    return axe_source()


@pytest.fixture
def engine() -> ScriptedEngine:
    """Thinks, closes its thought, answers; five tokens at a time."""
    engine = ScriptedEngine("scripted", context=100_000)
    engine.opens_thought = True
    engine.script = lambda job: speech(THOUGHT, ANSWER)
    return engine


def speech(thought: str, answer: str, size: int = 5, **more: Any) -> Script:
    """What a model says that closes its own thought."""
    text = f"{thought}</think>{answer}"
    return said(KNOWS_MARKS, tokens(text), itertools.repeat(size), **more)


def scripts(*given: Script) -> Callable[[Job], Script]:
    """One script for each job, in turn; the last one stays."""
    waiting = list(given)
    return lambda job: waiting.pop(0) if len(waiting) > 1 else waiting[0]


@pytest.fixture
def home(engine: ScriptedEngine) -> Iterator[House]:
    with house(engine) as home:
        yield home


@pytest.fixture
def opened(home: House, browser: Browser) -> Iterator[Tab]:
    """The page, ready to be asked; nothing may have gone wrong on it in the end."""
    with tab(browser, home.url) as opened:
        opened.page.wait_for_selector("#ask:enabled")
        yield opened
        assert opened.problems == []


def ask(opened: Tab, question: str = QUESTION) -> None:
    opened.page.fill("#question", question)
    opened.page.click("#ask")


def finished(opened: Tab) -> None:
    opened.page.wait_for_selector(".turn:last-child .report", timeout=4 * PATIENCE_MS)
