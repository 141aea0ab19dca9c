"""Weight and speed. Times are told in the report (junit properties, and the terminal), not asserted.

But one, at many times what is measured: no task holds the page for a second.
"""

import asyncio
import contextlib
import itertools
import re
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any

import psutil
import pytest
from playwright.sync_api import Browser, Page

from gateway.engines.types import Delta, Job, TokenIds
from gateway.thinking.dialect import Dialect
from tests.browser import PATIENCE_MS, House, Report, first_token_ms, reporter, tab
from tests.scripted import Script, ScriptedEngine, text_of, tokens
from tests.service.server import PATIENCE_S, wait_for
from tests.web.conftest import ask, finished, speech

TOKENS = 10_000
HELD_MS = 1_000
# A token is a word with the space before it, or a sign: 4.2 characters in these lines, as in English.
LINE = "Perhaps that holds, or perhaps it does not; let me look at the whole argument once more."
PIECE = re.compile(r" ?\w+|.", re.DOTALL)
WORDS = sorted(set(PIECE.findall(f"{LINE} {LINE}")))
FIRST_WORD = 0xE010  # its id; those below are of `tokens()`
MAX_WEIGHT = 200_000  # bytes of all files that the page loads, uncompressed, libraries included

# Counts frames and long tasks while it streams. A frame is dropped when the next comes 1.5 frames late.
WATCH = """() => {
    const seen = window.seen = {frames: [], long: 0, worst: 0};
    new PerformanceObserver(list => {
        for (const entry of list.getEntries()) {
            seen.long += 1;
            seen.worst = Math.max(seen.worst, entry.duration);
        }
    }).observe({type: "longtask"});
    const frame = now => { seen.frames.push(now); if (!seen.over) requestAnimationFrame(frame); };
    requestAnimationFrame(frame);
}"""
SEEN = """() => {
    window.seen.over = true;
    const {frames, long, worst} = window.seen;
    const gaps = frames.slice(1).map((at, index) => at - frames[index]);
    return {frames: frames.length, dropped: gaps.filter(gap => gap > 25).length,
            worst_gap_ms: Math.round(Math.max(...gaps)), long_tasks: long,
            worst_task_ms: Math.round(worst), seconds: (frames.at(-1) - frames[0]) / 1000};
}"""


def encode(text: str) -> TokenIds:
    """A token for each word of LINE and each mark, and for each character of anything else."""
    ids: list[int] = []
    for piece in PIECE.findall("".join(map(chr, tokens(text)))):
        known = piece in WORDS
        ids += [FIRST_WORD + WORDS.index(piece)] if known else map(ord, piece)
    return tuple(ids)


def decode(ids: Sequence[int]) -> str:
    return "".join(
        text_of([each]) if each < FIRST_WORD else WORDS[each - FIRST_WORD] for each in ids
    )


class PacedEngine(ScriptedEngine):
    """Draws about 2,000 tokens a second, many times what an engine gives one caller."""

    async def generate(self, job: Job) -> AsyncGenerator[Delta, None]:
        async with contextlib.aclosing(super().generate(job)) as deltas:
            number = 0
            async for delta in deltas:
                number += 1
                if number % 10 == 0:
                    await asyncio.sleep(0.005)
                yield delta


@pytest.fixture
def engine() -> ScriptedEngine:
    words = Dialect(encode, decode, FIRST_WORD + len(WORDS))
    engine = PacedEngine("scripted", context=100_000, dialect=words)
    engine.opens_thought = True
    engine.script = lambda job: speech("Hm. Let me see.", "Yes.")
    return engine


@pytest.fixture
def report(record_property: Report, capsys: pytest.CaptureFixture[str]) -> Report:
    return reporter(record_property, capsys)


def prose(n: int) -> list[str]:
    """n tokens, in paragraphs."""
    paragraph = PIECE.findall(" ".join([LINE] * 5) + "\n\n")
    return list(itertools.islice(itertools.cycle(paragraph), n))


@pytest.fixture
def one_core(browser: Browser) -> Iterator[None]:
    """The browser's processes, all on one core; new ones inherit it."""

    def pin(cores: list[int]) -> None:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # one that ends just now
                if "chrom" in process.name():
                    process.cpu_affinity(cores)

    ours = psutil.Process().cpu_affinity()
    pin(ours[-1:])
    yield
    pin(ours)


@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize("where", ["thought", "answer"])
def test_ten_thousand_tokens_stream_and_the_page_still_answers(
    home: House, browser: Browser, report: Report, where: str
) -> None:
    """What the page does it does each time; what the machine does besides it does once."""
    worst = float(HELD_MS)
    for _ in range(3):
        if worst >= HELD_MS:
            worst = streamed(home, browser, report, where)
    assert worst < HELD_MS


def streamed(home: House, browser: Browser, report: Report, where: str) -> float:
    """The longest that the page's thread was held, in ms."""
    text = prose(TOKENS)
    said = {"thought": (["Hm.\n\n", *text], ["Yes."]), "answer": (["Hm."], text)}[where]
    gate = home.served.on_loop(asyncio.Event)
    texts = [*said[0], "</think>", *said[1]]
    script = Script(texts, gate=gate, gate_at=len(texts) - 1)
    home.engine.script = lambda job: script
    with tab(browser, home.url) as opened:
        page = opened.page
        page.wait_for_selector("#ask:enabled")
        page.evaluate(WATCH)
        ask(opened)
        page.wait_for_selector(".turn .thought")
        page.get_by_role("button", name="Theme: system").click()  # in the middle of it
        theme = page.get_attribute("html", "data-theme")
        home.served.on_loop(gate.set)  # the last token waits for it
        finished(opened)
        seen = page.evaluate(SEEN)
        report(f"10,000 tokens of {where}, {len(''.join(text)):,} characters", seen)

        assert theme == "dark"
        whole = 0.9 * len("".join(text))
        shown = page.locator(".whole, .markdown")
        wait_for(lambda: len("".join(shown.all_text_contents())) > whole, PATIENCE_S, "all of it")
        assert opened.problems == []
    return float(seen["worst_task_ms"])


def test_the_page_weighs_less_than_200_kb_and_asks_nobody_else(
    home: House, browser: Browser, report: Report
) -> None:
    weights: dict[str, int] = {}

    def weigh(response: Any) -> None:
        if response.request.method == "GET":
            weights[response.url.removeprefix(home.url)] = len(response.body())

    context = browser.new_context()
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.on("requestfinished", lambda request: weigh(request.response()))
    page.goto(home.url)
    page.wait_for_selector("#ask:enabled")
    page.click("#tab-live")
    page.wait_for_selector(".model")
    page.wait_for_load_state("networkidle")
    context.close()

    files = {path: size for path, size in weights.items() if path == "/" or "/page/" in path}
    libraries = sum(size for path, size in files.items() if "/vendor/" in path)
    total = sum(files.values())
    report("page weight, bytes", {"total": total, "libraries": libraries, "files": len(files)})
    assert total < MAX_WEIGHT and len(files) > 10
    assert all(path.startswith("/") for path in weights)


def first_paint_ms(page: Page) -> float:
    name = "first-contentful-paint"
    found = page.evaluate(f"performance.getEntriesByName('{name}').map(each => each.startTime)")
    return float(found[0])


def test_first_paint_and_first_token_are_told(
    home: House, browser: Browser, report: Report
) -> None:
    with tab(browser, home.url) as opened:
        opened.page.wait_for_selector("#ask:enabled")
        ask(opened)
        finished(opened)
        painted, first = first_paint_ms(opened.page), first_token_ms(opened.page)

    report("first contentful paint, ms", round(painted, 1))
    report("from asking to the first token on the page, ms", first)
    assert painted > 0 and first > 0
