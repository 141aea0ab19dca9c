"""Each block of commands in the guides is run by tests/service/test_guides.py, or says why it is not."""

import io
import logging
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from gateway.cli import app
from gateway.observability.lines import handler
from tests.guides import DEPLOYMENT, DOCS, ERRORS, UNWALKED, WALKED, Block, blocks, walk
from tests.tenants import Tenants

GUIDES = [*WALKED, *UNWALKED]
EACH = [(path, block) for path in GUIDES for block in blocks(path)]
IDS = [f"{path.stem}-{number}" for number, (path, _) in enumerate(EACH)]
UNRUNNABLE = ("sudo ", "docker ", "kubectl ", "helm ", "systemctl ", "nvidia-smi")


def gateway_lines(text: str) -> Iterator[list[str]]:
    """Each call of our command in a block, without what a shell does with it."""
    for line in text.replace("\\\n", " ").splitlines():
        words = line.split("#")[0].split(">")[0].strip()
        words = re.sub(r"^(\w+=\S+ )+", "", words)
        if words.startswith("gateway "):
            yield shlex.split(words)[1:]


def mentions(path: Path) -> Iterator[str]:
    """Calls of our command between words: `gateway ...`."""
    prose = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for span in re.findall(r"`([^`]+)`", prose):
        yield " ".join(span.replace("...", "").replace("…", "").split())


def known(words: list[str]) -> None:
    """Asserts that there is such a command, with such options; a group of commands may stand alone."""
    command: Any = typer.main.get_command(app)
    rest = list(words)
    while hasattr(command, "commands") and rest:
        name = rest.pop(0)
        assert name in command.commands, f"no command {name} in {words}"
        command = command.commands[name]
    options = {option for each in command.params for option in each.opts}
    given = {word.partition("=")[0] for word in rest if word.startswith("--")}
    assert given <= options, f"{given - options} of {words}"


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.stem)
def test_every_block_of_commands_is_found(path: Path) -> None:
    text = path.read_text(encoding="utf-8")

    assert set(re.findall(r"^```(\w+)$", text, re.MULTILINE)) <= {"bash", "yaml"}
    assert len(blocks(path)) == text.count("```bash") > 0


def test_the_two_guides_are_mostly_run_and_the_other_pages_say_why_not() -> None:
    run = {path: [block for block in blocks(path) if not block.reason] for path in GUIDES}

    assert [path for path in WALKED if len(run[path]) < 6] == []
    assert [path for path in UNWALKED if run[path]] == []


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.stem)
def test_every_mark_has_its_block(path: Path) -> None:
    text = path.read_text(encoding="utf-8")

    assert text.count("not run here:") == sum(bool(block.reason) for block in blocks(path))


@pytest.mark.parametrize(("path", "block"), EACH, ids=IDS)
def test_a_block_is_for_a_shell_and_a_reason_is_one(path: Path, block: Block) -> None:
    done = subprocess.run(
        ["bash", "-n"], input=block.text, text=True, capture_output=True, check=False
    )

    assert done.returncode == 0, done.stderr
    if block.reason:
        assert len(block.reason) > 10
    else:
        lines = [line.strip() for line in block.text.splitlines()]
        assert [line for line in lines if line.startswith(UNRUNNABLE)] == []


@pytest.mark.parametrize(("path", "block"), EACH, ids=IDS)
def test_our_commands_and_their_options_exist(path: Path, block: Block) -> None:
    for words in gateway_lines(block.text):
        known(words)


@pytest.mark.parametrize("path", sorted({*GUIDES, *DOCS.glob("*.md")}), ids=lambda path: path.stem)
def test_our_commands_exist_where_a_sentence_names_them(path: Path) -> None:
    for text in mentions(path):
        for words in gateway_lines(text):
            known(words)


def who(log: Path, code: str) -> set[tuple[str, str]]:
    """What `who CODE` of the troubleshooting page tells of a log: how often, and which."""
    (block,) = blocks(ERRORS)
    (function,) = (line for line in block.text.splitlines() if line.startswith("who()"))
    script = f'log() {{ cat "{log}"; }}\n{function}\nwho {code}'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    pairs = (line.split(maxsplit=1) for line in done.stdout.splitlines())
    return {(count, what) for count, what in pairs}


async def test_the_operators_look_at_the_log_counts_an_error_code(tmp_path: Path) -> None:
    stream, ours = io.StringIO(), logging.getLogger("gateway")
    listener, before = handler("json", stream), ours.level
    tenants = Tenants(tmp_path, {"acme": {}, "corp": {}})
    ours.addHandler(listener)
    ours.setLevel("INFO")
    try:
        for tenant, prompt in (("acme", 7), ("acme", 8), ("corp", 9), ("corp", "ok")):
            await tenants.post(tenant, "/generate", {"prompt": prompt})
    finally:
        ours.removeHandler(listener)
        ours.setLevel(before)
    log = tmp_path / "log"
    log.write_text(stream.getvalue(), encoding="utf-8")

    told = who(log, "invalid_request")

    assert told == {
        ("3", '"route": "/generate"'),
        ("2", '"tenant": "acme"'),
        ("1", '"tenant": "corp"'),
    }


def test_the_walk_leaves_out_what_is_marked() -> None:
    script = walk(DEPLOYMENT)

    assert "gateway deploy --target local" in script and "docker compose up" not in script
