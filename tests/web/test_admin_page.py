"""The admin listener's page switches a model, with the admin API of its own origin."""

from pathlib import Path

from playwright.sync_api import Browser, expect

from engine_config.profile import FolderModel, Profile
from tests.browser import house, tab, violations
from tests.scripted import ScriptedEngine, make_profile
from tests.tenants import ADMIN, write_keys


def another(name: str) -> Profile:
    model = FolderModel(kind="folder", path="elsewhere")  # type: ignore[arg-type]
    return Profile(name=name, title="Another.", served_as="scripted", model=model)


def test_a_model_is_switched_and_the_switch_is_watched(
    engine: ScriptedEngine, browser: Browser, axe: str
) -> None:
    profiles = [make_profile("scripted"), another("faster")]
    with house(engine, *profiles) as home, tab(browser, home.admin_url) as opened:
        page = opened.page
        page.get_by_label("Switch to").select_option("faster")
        assert violations(page, axe) == []
        page.get_by_role("button", name="Switch").click()

        expect(page.locator("#operations")).to_contain_text("scripted → faster")
        expect(page.locator("#operations .tag")).to_have_text("done")
        expect(page.locator("#models")).to_contain_text("faster (bfloat16)")
        assert violations(page, axe) == []
        assert opened.problems == []
    assert home.gateway.model.profile.name == "faster"


def test_a_key_of_the_other_kind_is_told_so(
    engine: ScriptedEngine, browser: Browser, tmp_path: Path
) -> None:
    keys = write_keys(tmp_path / "keys.yaml", admin=True, somebody={})
    settings = {"keys_file": tmp_path / "keys.yaml"}
    with house(engine, **settings) as home, tab(browser, home.admin_url) as opened:
        page = opened.page
        page.get_by_label("API key").fill(keys["somebody"])
        page.get_by_role("button", name="Use it").click()

        expect(page.get_by_role("alert").first).to_contain_text("403 Forbidden")
        expect(page.get_by_role("alert").first).to_contain_text("the other kind of key")
        page.reload()
        page.get_by_label("API key").fill(keys[ADMIN])
        page.get_by_role("button", name="Use it").click()
        expect(page.locator(".model")).to_contain_text("scripted")
