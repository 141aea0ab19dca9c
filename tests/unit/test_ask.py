"""`helm test`'s script, word for word as the chart gives it to its Pod."""

import asyncio
import subprocess
import sys
from pathlib import Path

from tests.listening import listening
from tests.scripted import ScriptedEngine, make_gateway

SCRIPT = Path(__file__).parents[2] / "deploy/helm/thinking-gateway/files/ask.py"
KEY = "a-key-of-sixteen-characters"
NAMES = "*.example.com,other.example.org"


async def ask(settings: dict[str, str], **environment: str) -> subprocess.CompletedProcess[str]:
    async with listening(make_gateway(ScriptedEngine(), **settings)) as url:
        return await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", SCRIPT.read_text(encoding="utf-8")],
            capture_output=True,
            text=True,
            check=False,
            env={"URL": url, **environment},
        )


async def test_it_calls_a_gateway_by_a_name_that_it_trusts() -> None:
    settings = {"api_key": KEY, "trusted_hosts": NAMES}
    done = await ask(settings, GATEWAY_TRUSTED_HOSTS=NAMES)

    assert done.returncode == 0, done.stderr


async def test_a_refusal_is_told_in_the_gateways_own_words() -> None:
    done = await ask({"api_key": KEY, "trusted_hosts": NAMES})

    assert done.returncode == 1 and "without a key it does not ask for one: 403" in done.stderr
    assert "GATEWAY_TRUSTED_HOSTS" in done.stderr


async def test_one_that_answers_without_a_key_fails_it() -> None:
    done = await ask({})

    assert done.returncode == 1 and done.stderr == "it answers without a key\n"


async def test_a_key_that_is_not_taken_fails_it() -> None:
    done = await ask({"api_key": KEY}, KEY="another-key-of-somebody")

    assert done.returncode == 1 and "with the key: 401" in done.stderr
