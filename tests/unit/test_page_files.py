"""What is served, under which policy, and the rules that keep the page small and honest."""

import hashlib
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import httpx
import pytest

from gateway import web
from gateway.errors import GatewayError
from gateway.routes.page import POLICY
from tests.scripted import Gateway, ScriptedEngine, client_of, make_admin, make_gateway

FOLDER = Path(web.__file__).parent
ROOT = FOLDER.parents[1]
SERVED = {**web.PUBLIC_FILES, "/ (admin)": web.ADMIN_FILES["/"], "/page/admin.js": "admin.js"}
OWN = [path for path in FOLDER.rglob("*") if path.suffix in (".js", ".css", ".html")]
WRITTEN = [path for path in OWN if path.parent == FOLDER]


@pytest.fixture
def gateway() -> Gateway:
    return make_gateway(ScriptedEngine())


def test_the_policy_allows_our_own_files_only() -> None:
    rules = dict(rule.split(" ", 1) for rule in POLICY.split("; "))

    assert "unsafe" not in POLICY and "*" not in POLICY and "http" not in POLICY
    assert rules["default-src"] == "'none'"
    assert {rules[name] for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
    closed = ("base-uri", "form-action", "frame-ancestors")
    assert {rules[name] for name in closed} == {"'none'"}
    assert rules["require-trusted-types-for"] == "'script'"


@pytest.mark.parametrize("path", web.PUBLIC_FILES)
async def test_every_file_has_the_policy_and_is_kept_by_its_tag(
    gateway: Gateway, path: str
) -> None:
    first = await gateway.client.get(path)
    again = await gateway.client.get(path, headers={"if-none-match": first.headers["etag"]})
    head = await gateway.client.head(path)

    for answer in (first, again, head):
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-cache"
    assert first.status_code == 200 and first.content
    assert (again.status_code, again.content) == (304, b"")
    assert (head.status_code, head.content) == (200, b"")


async def test_each_listener_has_its_own_page(gateway: Gateway) -> None:
    admin = client_of(make_admin(gateway))

    assert "panel-ask" in (await gateway.client.get("/")).text
    assert "operations" in (await admin.get("/")).text
    assert (await admin.get("/page/app.js")).status_code == 404
    assert (await gateway.client.get("/page/admin.js")).status_code == 404


@pytest.mark.parametrize(
    "path", ["/page/", "/page/__init__.py", "/page/vendor/README.md", "/page/../app.py", "/page/x"]
)
async def test_what_is_not_named_is_not_served(gateway: Gateway, path: str) -> None:
    assert (await gateway.client.get(path)).status_code == 404


async def test_the_page_can_be_left_out() -> None:
    gateway = make_gateway(ScriptedEngine(), page=False)

    assert (await gateway.client.get("/")).status_code == 404
    assert (await client_of(make_admin(gateway)).get("/")).status_code == 404


async def test_page_loads_are_no_requests_of_the_api(gateway: Gateway) -> None:
    await gateway.client.get("/")
    await gateway.client.get("/page/app.js")

    stats: httpx.Response = await gateway.client.get("/stats")
    assert stats.json()["requests"]["total"] == 0


def test_every_file_in_the_folder_is_named_and_packaged() -> None:
    names = {str(path.relative_to(FOLDER)) for path in OWN}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["gateway.web"]

    assert names == set(SERVED.values())
    assert [name for name in names if not any(fnmatch(name, each) for each in patterns)] == []


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_a_file_is_at_most_400_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", [path for path in WRITTEN if path.suffix == ".html"])
def test_no_script_style_or_handler_is_inline(path: Path) -> None:
    text = path.read_text(encoding="utf-8")

    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", text)
    assert re.findall(r"<script(?![^>]*src=)", text) == []


@pytest.mark.parametrize(
    "path", [path for path in WRITTEN if path.suffix == ".js"], ids=lambda path: path.name
)
def test_no_script_of_ours_touches_html_or_storage(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function"
    kept = r"localStorage|sessionStorage|indexedDB|document\.cookie|caches\.|serviceWorker"

    assert re.findall(f"{forbidden}|{kept}", text) == []


def test_the_libraries_are_what_their_table_says() -> None:
    table = (FOLDER / "vendor" / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\S+)` .*`([0-9a-f]{64})`", table, re.MULTILINE))
    kept = (FOLDER / "vendor").glob("*.js")

    assert rows == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}
    for name in rows:
        assert (FOLDER / "vendor" / name.replace(".js", ".LICENSE")).is_file()


def strings(language: str) -> dict[str, str]:
    text = (FOLDER / f"strings.{language}.js").read_text(encoding="utf-8")
    return dict(re.findall(r'^  "?([\w.]+)"?: "(.*)",$', text, re.MULTILINE))


def test_both_languages_have_the_same_strings_with_the_same_places() -> None:
    english, chinese = strings("en"), strings("zh")

    assert english.keys() == chinese.keys() and len(english) > 100
    for key, text in english.items():
        assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", chinese[key])), key


def test_every_string_is_used_and_every_used_one_exists() -> None:
    sources = "".join(
        path.read_text(encoding="utf-8") for path in WRITTEN if "strings" not in path.name
    )
    known = strings("en").keys()
    said = set(re.findall(r'data-say(?:-\w+)?="([\w.]+)"', sources))
    said |= set(re.findall(r'\b(?:say|label)(?:: |\([\w.()]+, )\[?"([\w.]+)"', sources))
    families = {prefix for prefix in re.findall(r"`(\w+)\.\$\{", sources)}
    families |= {"confidence", "early_exit"}  # form.js: CHOICES
    unused = {
        key for key in known if f'"{key}"' not in sources and key.partition(".")[0] not in families
    }

    assert said - known == set()
    assert unused == set()


# Whom the page cannot meet: it sends a right method, JSON and short headers, at once.
NOT_OF_THE_PAGE = {
    "headers_too_large",
    "method_not_allowed",
    "slow_request",
    "unsupported_media_type",
    "url_too_long",
}


def test_every_error_has_a_remedy_that_a_person_understands() -> None:
    def codes(base: type[GatewayError]) -> set[str]:
        return {base.code}.union(*(codes(each) for each in base.__subclasses__()))

    told = {key.removeprefix("remedy.") for key in strings("en") if key.startswith("remedy.")}
    missing = codes(GatewayError) - NOT_OF_THE_PAGE - told
    assert (missing, told - codes(GatewayError)) == (set(), {"other"})
