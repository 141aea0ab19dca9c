"""What the command prints."""

import os
import subprocess
import sys

import httpx

from tests.service.server import START_S, Gateway


def gateway_command(*args: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "gateway", *args]
    wide = {**os.environ, "COLUMNS": "300"}
    return subprocess.run(
        line, capture_output=True, text=True, timeout=START_S, check=False, env=wide
    )


def test_profiles_are_listed_and_shown_with_reasons() -> None:
    listed = gateway_command("profiles", "list").stdout
    shown = gateway_command("profiles", "show", "demo").stdout

    assert "demo" in listed and "nano-qwen3" in listed
    assert "enforce_eager" in shown and "Boots in about 20 s" in " ".join(shown.split())


def test_profile_args_are_stock_vllms() -> None:
    args = gateway_command("profiles", "args", "demo").stdout.splitlines()

    assert args[0].startswith("--model=/") and "--served-model-name=smollm2-135m" in args
    assert "--enforce-eager" in args and all(arg.startswith("--") for arg in args)


def test_help_says_what_each_command_does() -> None:
    shown = gateway_command("--help").stdout

    assert all(word in shown for word in ("serve", "profiles", "models", "version"))


def test_the_start_screen_says_where_what_and_how_to_try(
    gateway: Gateway, http: httpx.Client
) -> None:
    lines = gateway.log.read_text().splitlines()
    screen = "\n".join(line for line in lines if not line.startswith("{"))  # without the log

    assert f"ready: {gateway.url}" in screen
    assert "smollm2-135m, nano-qwen3" in screen
    assert "curl " in screen and "openai.OpenAI(" in screen
    assert "starting the engine of smollm2-135m" in screen
    assert len(screen.splitlines()) < 40, screen
