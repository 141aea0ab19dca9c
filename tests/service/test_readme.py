"""The README's lines work as printed; only the address is this test's server's."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.service.server import Gateway

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
TRY_IT = README.split("## Try it")[1].split("## Routes")[0]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TRY_IT, re.DOTALL)


def run(command: list[str], gateway: Gateway) -> str:
    """The output, with this server in place of the printed one."""
    here = [part.replace("http://127.0.0.1:8000", gateway.url) for part in command]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # `python` is the installed one
    done = subprocess.run(
        here,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env={**os.environ, "PATH": path},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("line", [line for block in blocks("bash") for line in block.split("\n\n")])
def test_each_curl_line_is_answered(gateway: Gateway, line: str) -> None:
    answer = json.loads(run(["bash", "-c", line], gateway))

    assert answer.keys() & {"text", "answer", "results"}


@pytest.mark.parametrize("code", blocks("python"), ids=["openai", "thinking", "anthropic"])
def test_each_sdk_example_prints_an_answer(gateway: Gateway, code: str) -> None:
    assert run([sys.executable, "-c", code], gateway).strip()


def test_the_lines_of_the_start_screen_work(gateway: Gateway) -> None:
    screen = gateway.log.read_text()
    curl, python = re.findall(
        r"^  (curl .*?|python -c .*?)(?=\n  python|\nstop)", screen, re.S | re.M
    )

    assert json.loads(run(["bash", "-c", curl], gateway))["answer"].strip()
    assert run(["bash", "-c", python], gateway).strip()
