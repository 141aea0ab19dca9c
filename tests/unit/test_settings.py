"""Settings: what is set counts, what is mistyped is refused, and nobody is exposed by accident."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gateway.settings import Settings, is_loopback
from tests.scripted import make_settings


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder: no .env of the developer's."""
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(f"GATEWAY_{name}".upper(), raising=False)
    return tmp_path


def test_profiles_in_the_environment_are_separated_by_commas(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GATEWAY_PROFILES", "demo,nano-qwen3")

    assert Settings().profiles == ("demo", "nano-qwen3")


def test_profiles_given_as_a_list_stay_as_they_are() -> None:
    assert make_settings(profiles=["a", "b"]).profiles == ("a", "b")


def test_a_mistyped_variable_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_PROT", "8001")

    with pytest.raises(ValidationError, match="GATEWAY_PROT"):
        Settings()


def test_a_mistyped_variable_in_the_env_file_is_refused_by_name(folder: Path) -> None:
    (folder / ".env").write_text("GATEWAY_PROT=8001\n")

    with pytest.raises(ValidationError, match=r"(?i)gateway_prot"):
        Settings()


def test_the_env_file_may_hold_variables_of_others(folder: Path) -> None:
    (folder / ".env").write_text("COMPOSE_PROJECT_NAME=x\nGATEWAY_PORT=8123\n")

    assert Settings().port == 8123


@pytest.mark.parametrize("name", ["GATEWAY_CACHE_DIR", "GATEWAY_MODEL_SOURCES"])
def test_the_model_builders_variables_are_not_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "/somewhere")

    Settings()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.5", False),
        ("2001:db8::1", False),
        ("localhost.example.com", False),
        ("my-laptop", False),
        ("", False),
    ],
)
def test_only_this_machines_own_addresses_count_as_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize("field", ["host", "admin_host"])
def test_binding_beyond_loopback_without_a_key_is_refused_with_the_remedy(field: str) -> None:
    with pytest.raises(ValidationError, match=f"{field} 0.0.0.0.*GATEWAY_API_KEY"):
        make_settings(**{field: "0.0.0.0"})


@pytest.mark.parametrize("key", ["", "   "], ids=["empty", "blank"])
def test_a_key_without_a_character_does_not_count_as_a_key(key: str) -> None:
    with pytest.raises(ValidationError):
        make_settings(host="0.0.0.0", api_key=key)


def test_an_empty_key_in_a_copied_env_file_is_no_key(folder: Path) -> None:
    (folder / ".env").write_text("GATEWAY_API_KEY=\n")

    assert Settings().api_key is None


def test_with_a_key_any_address_may_be_bound() -> None:
    assert make_settings(host="0.0.0.0", admin_host="::", api_key="k" * 16).host == "0.0.0.0"


def test_the_key_is_not_in_the_printed_settings() -> None:
    urls = {"redis_url": "redis://:very-secret@h/0", "usage_url": "postgresql://u:very-secret@h/d"}
    settings = make_settings(api_key="very-secret-indeed", admin_key="very-secret-too", **urls)

    assert "very-secret" not in f"{settings!r} {settings} {settings.model_dump()}"


@pytest.mark.parametrize(
    "values",
    [
        {"port": -1},
        {"port": 65536},
        {"max_body_bytes": 0},
        {"max_n": 0},
        {"max_logprobs": -1},
        {"drain_timeout_s": -1},
        {"engine_hang_s": 0},
        {"profiles": ()},
        {"api_key": "guessable"},
        {"log_level": "LOUD"},
        {"redis_url": "127.0.0.1:6379"},
        {"redis_away": "guess"},
    ],
    ids=str,
)
def test_a_value_outside_its_limits_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        make_settings(**values)


def test_settings_cannot_be_changed_later() -> None:
    settings = make_settings()

    with pytest.raises(ValidationError, match="frozen"):
        settings.port = 1


def test_every_setting_says_what_it_is_for() -> None:
    silent = [name for name, field in Settings.model_fields.items() if not field.description]

    assert silent == []
