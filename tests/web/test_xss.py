"""Nothing that a model or a person says is executed, loaded or sent; with the policy, and without it."""

import pytest
from playwright.sync_api import Browser, Page

from tests.browser import House, tab
from tests.scripted import MARKS, Script
from tests.web.conftest import ask, finished, speech

# Each calls `hit`, or loads /hit, if it is let. Forms after OWASP's cheat sheet and Markdown renderers' CVEs.
CORPUS = [
    "<script>hit(1)</script>",
    "<ScRiPt src=/hit></sCrIpT>",
    "<img src=x onerror=hit(1)>",
    '"><img src=/hit onload=hit(1)>',
    "<svg onload=hit(1)><animate onbegin=hit(1) attributeName=x dur=1s>",
    "<svg><script>hit(1)</script></svg>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=hit(1)&gt;'>",
    "<form><math><mtext></form><form><mglyph><style></math><img src onerror=hit(1)>",
    "<iframe srcdoc='<script>parent.hit(1)</script>'></iframe>",
    "<iframe src=javascript:parent.hit(1)></iframe>",
    "<object data=/hit></object><embed src=/hit>",
    "<link rel=stylesheet href=/hit><style>@import '/hit'; body{background:url(/hit)}</style>",
    "<base href=//example.org/><meta http-equiv=refresh content='0;url=/hit'>",
    "<form action=/hit><button autofocus onfocus=hit(1)>x</button></form>",
    "<input autofocus onfocus=hit(1)><details open ontoggle=hit(1)>x</details>",
    "<video src=x onerror=hit(1)></video><audio src=/hit autoplay onerror=hit(1)></audio>",
    "<a href='javascript:hit(1)'>click</a> <a href=' java\tscript:hit(1)'>click</a>",
    "[click](javascript:hit(1)) [click](JaVaScRiPt:hit(1)) [click](java&#10;script:hit(1))",
    "[click](data:text/html;base64,PHNjcmlwdD5oaXQoMSk8L3NjcmlwdD4=) [click](vbscript:hit(1))",
    "[click](<javascript:hit(1)>) <javascript:hit(1)>",
    '[click](https://example.org/"onmouseover="hit(1)) [x](/hit)',
    '![x](/hit) ![x](javascript:hit(1)) ![x](x"onerror="hit(1))',
    '![x](https://example.org/hit "title\\" onerror=hit(1) ")',
    "[ref]: javascript:hit(1)\n\n[ref]",
    '```"><img src=x onerror=hit(1)>\n<script>hit(1)</script>\n```',
    "```html onmouseover=hit(1)\n<img src=x onerror=hit(1)>\n```",
    "`<img src=x onerror=hit(1)>` | <img src=x onerror=hit(1)>",
    "| a |\n|---|\n| <img src=x onerror=hit(1)> |",
    "# <img src=x onerror=hit(1)>\n- <svg/onload=hit(1)>",
    "<div style='position:fixed;inset:0;background:url(/hit)' class=problem id=ask name=body>x</div>",
    "<img name=getElementById><form id=form><input name=attributes></form>",
    "<template><script>hit(1)</script></template><noscript><img src=x onerror=hit(1)></noscript>",
    "&lt;img src=x onerror=hit(1)&gt; &#60;script&#62;hit(1)&#60;/script&#62;",
    "{{constructor.constructor('hit(1)')()}} ${hit(1)} <%= hit(1) %>",
    "</p></div></article><script>hit(1)</script>",
    "\u0000<scr\u0000ipt>hit(1)</scr\u0000ipt> \u202e<script>hit(1)</script>",
    "<x onclick=hit(1) style=position:fixed;inset:0 tabindex=1 autofocus onfocus=hit(1)>x",
    "<a href=https://example.org target=_self ping=/hit>x</a>",
    "<dialog open oncancel=hit(1)>x</dialog><marquee onstart=hit(1)>x</marquee>",
]
INNOCENT = {
    "P",
    "BR",
    "HR",
    "H4",
    "UL",
    "OL",
    "LI",
    "BLOCKQUOTE",
    "PRE",
    "CODE",
    "EM",
    "STRONG",
    "DEL",
}
INNOCENT |= {"A", "TABLE", "THEAD", "TBODY", "TR", "TH", "TD", "DIV"}
TRAP = "window.hits = []; window.hit = what => { window.hits.push(what); };"


def spoken(text: str) -> Script:
    """Everywhere a model's text is shown: thought, steps, answer; in pieces that cut tags apart."""
    return speech(f"{text}\n\nSo the answer is: {text}", f"{text}\n\nBehind it.\n", size=3)


def trapped(page: Page) -> None:
    page.add_init_script(TRAP)
    page.reload()
    page.wait_for_selector("#ask:enabled")


# Each alone where only the sanitising holds; all in one where the policy does, too.
@pytest.mark.parametrize(
    ("bypass", "texts"),
    [(True, CORPUS), (False, ["\n\n".join(CORPUS)])],
    ids=["without the policy", "with the policy"],
)
def test_nothing_that_is_said_is_executed(
    home: House, browser: Browser, bypass: bool, texts: list[str]
) -> None:
    said = iter([*texts, *texts])
    home.engine.script = lambda job: spoken(next(said))
    with tab(browser, home.url, bypass_csp=bypass) as opened:
        page = opened.page
        trapped(page)
        known = len(opened.asked)
        for text in texts:
            if page.is_visible("#new"):
                page.click("#new")
            ask(opened, text)
            finished(opened)
            page.get_by_role("button", name="Unfold all").click()
            page.mouse.move(300, 300)

            assert tags(page) <= INNOCENT, text
            assert attributes(page) <= {"href", "start", "target", "rel", "class"}, text
            for link in page.locator(".markdown a").all():
                assert (link.get_attribute("href") or "https:").startswith(("https:", "mailto:"))
                assert link.get_attribute("rel") == "noopener noreferrer nofollow"
        assert page.evaluate("window.hits") == []

    assert [url for url in opened.asked[known:] if not url.endswith("/thinking")] == []
    assert opened.problems == []


def tags(page: Page) -> set[str]:
    where = "'.markdown *, .whole *, .text p *, .first *, .turn h3 *'"
    return set(page.evaluate(f"[...document.querySelectorAll({where})].map(e => e.tagName)"))


def attributes(page: Page) -> set[str]:
    return set(
        page.evaluate(
            "[...document.querySelectorAll('.markdown *')].flatMap(e => e.getAttributeNames())"
        )
    )


def test_the_trap_works(home: House, browser: Browser) -> None:
    """Without the page's care the corpus does fire, so a silent trap is none."""
    with tab(browser, home.url, bypass_csp=True) as opened:
        opened.page.add_init_script(TRAP)
        opened.page.goto("about:blank")
        opened.page.set_content(CORPUS[2])
        opened.page.wait_for_function("window.hits.length === 1")


def test_values_of_a_refusal_are_shown_as_text(home: House, browser: Browser) -> None:
    with tab(browser, home.url) as opened:
        page = opened.page
        trapped(page)
        page.get_by_text("Model, budget, sampling").click()
        page.fill("#seed", "<img src=x onerror=hit(1)>")
        ask(opened)
        page.wait_for_selector("[role=alert]")

        assert page.locator("[role=alert] img").count() == 0
        assert page.evaluate("window.hits") == []
        assert "<img src=x" in page.locator("[role=alert]").inner_text()


def test_an_inline_script_does_not_run_on_the_page(home: House, browser: Browser) -> None:
    with tab(browser, home.url) as opened:
        page = opened.page
        trapped(page)
        refused = page.evaluate(
            """() => {
                const script = document.createElement("script");
                try { script.textContent = "hit(1)"; } catch (error) { return error.name; }
                document.body.append(script);
                return "taken";
            }"""
        )

        assert refused == "TypeError"  # Trusted Types
        assert page.evaluate("window.hits") == []


def test_no_mark_of_the_script_is_in_the_corpus() -> None:
    assert not any(mark in text for mark in MARKS for text in CORPUS)
