"""The documentation says what the code does: tables are fresh, examples parse, links lead somewhere."""

import ast
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from bench import render
from docs import generate

ROOT = generate.ROOT
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
FOLDERS = ("bench", "deploy", "docs", "engine_config", "examples", "gateway")
PAGES = sorted(
    [*ROOT.glob("*.md"), *(page for each in FOLDERS for page in ROOT.glob(f"{each}/**/*.md"))]
)
SEEDS = [
    '{"prompt": "什么是AES加密算法？", "max_length": 200, "temperature": 0.7}',
    '{"question": "RSA和AES的区别是什么？", "thinking_depth": 3, "include_reasoning": true}',
]


def fenced(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_generated_pages_are_fresh() -> None:
    assert generate.stale() == [], "run `python -m docs.generate`"


def test_a_stale_page_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.md"
    path.write_text("old", encoding="utf-8")
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "pages", lambda: {path: "new", tmp_path / "absent.md": "new"})

    assert generate.stale() == ["page.md", "absent.md"]


def test_only_what_is_between_markers_is_filled(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("before\n<!-- a:b -->\nold\n<!-- /a -->\nafter\n", encoding="utf-8")

    full = generate.filled(path, {"a:b": lambda: "new"})
    empty = generate.filled(path, {"a:b": lambda: ""})

    assert full == "before\n<!-- a:b -->\nnew\n<!-- /a -->\nafter\n"
    assert empty == "before\n<!-- a:b -->\n<!-- /a -->\nafter\n"
    with pytest.raises(ValueError, match=r"page\.md has no <!-- c -->"):
        generate.filled(path, {"c": lambda: "new"})


@pytest.mark.parametrize("path", READMES, ids=name)
def test_a_readme_quotes_the_committed_figures(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    between = text.partition("<!-- bench:demo -->")[2].partition("<!-- /bench -->")[0]

    if not generate.BENCH.is_file():
        assert between.strip() == ""
        return
    result = json.loads(generate.BENCH.read_text(encoding="utf-8"))
    assert between.startswith(f"\n{render.table(result)}\n")


@pytest.mark.parametrize("path", READMES, ids=name)
def test_a_readmes_examples_parse(path: Path) -> None:
    snippets = fenced(path, "python")
    bodies = re.findall(r"-d '(.*?)'", path.read_text(encoding="utf-8"), re.DOTALL)

    for snippet in snippets:
        ast.parse(snippet)
    for body in bodies:
        assert isinstance(json.loads(body), dict)
    assert len(snippets) == 3 and set(SEEDS) <= set(bodies)


def test_both_readmes_have_the_same_examples() -> None:
    english, chinese = (
        [fenced(path, "python"), re.findall(r"-d '.*?'", path.read_text(encoding="utf-8"))]
        for path in READMES
    )

    assert english == chinese


def prose(path: Path) -> str:
    """The page without its blocks of code."""
    return re.sub(
        r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )


def anchors(path: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE):
        text = re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        found.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return found


def links(path: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose(path))


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_to_files_lead_somewhere(path: Path) -> None:
    files = [link.partition("#")[0] for link in links(path) if "://" not in link]

    assert [file for file in files if not (path.parent / file).exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_to_a_heading_find_it(path: Path) -> None:
    local = [link.partition("#") for link in links(path) if "://" not in link and "#" in link]
    pages = [(path.parent / file if file else path, anchor) for file, _, anchor in local]

    lost = [
        f"{name(page.resolve())}#{anchor}"
        for page, anchor in pages
        if page.suffix == ".md" and anchor not in anchors(page)
    ]
    assert lost == []


def test_every_page_of_the_repository_is_looked_at() -> None:
    assert {
        ROOT / "docs" / "api.md",
        ROOT / "deploy" / "README.md",
        ROOT / "examples" / "README.md",
        ROOT / "bench" / "README.md",
    } <= set(PAGES)


@pytest.mark.parametrize("path", [ROOT / "docs" / "api.md", ROOT / "docs" / "errors.md"], ids=name)
def test_json_examples_parse(path: Path) -> None:
    for block in fenced(path, "json"):
        json.loads(block)


def test_tests_named_in_the_documentation_exist() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tests/*/test_*.py"))
    named = {
        found
        for path in PAGES
        for found in re.findall(
            r"`(?:tests/\w+/)?(test_\w+)(?:\.py)?`", path.read_text(encoding="utf-8")
        )
    }
    files = {path.stem for path in ROOT.glob("tests/*/test_*.py")}

    assert sorted(found for found in named - files if f"def {found}(" not in sources) == []
