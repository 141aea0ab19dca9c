"""Each file of examples/ runs as it is; only the address is this test's server's."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.routes import PAGES, admin_routes, public_routes
from tests.service.server import PATIENCE_S, Gateway

FOLDER = Path(__file__).parents[2] / "examples"
FILES = sorted(path.name for path in FOLDER.iterdir() if path.suffix in (".py", ".sh"))
PARAMETER = re.compile(r"\\{[^}]*\\}")  # as re.escape leaves it


@pytest.mark.parametrize("name", FILES)
def test_an_example_runs_and_prints(gateway: Gateway, name: str) -> None:
    command = ["sh" if name.endswith(".sh") else sys.executable, str(FOLDER / name)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env={**os.environ, "GW_URL": gateway.url, "GW_ADMIN_URL": gateway.admin_url},
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()


def test_many_callers_of_nobody_are_told_and_counted() -> None:
    done = subprocess.run(
        [sys.executable, str(FOLDER / "load.py")],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env={**os.environ, "GW_URL": f"http://127.0.0.1:{free_port()}"},
    )

    assert done.stdout.startswith("0 answers; failed: ConnectError"), done.stderr


def test_every_route_is_shown_with_curl() -> None:
    text = (FOLDER / "curl.sh").read_text(encoding="utf-8")
    routes = public_routes() | admin_routes()
    missing = [route for route in sorted(routes) if not shown(route, text)]

    assert [each for each in missing if each.partition(" ")[2] not in PAGES] == []


def shown(route: str, text: str) -> bool:
    """A line calls it: `get /path`, `ask PUT /path`; a variable for each parameter, a query behind."""
    method, path = route.split(" ")
    pattern = PARAMETER.sub(r"\\$\\w+", re.escape(path))
    call = rf"^\s*(begun=\$\()?({method.lower()}|ask {method}) \"?{pattern}[\"?\s]"
    return re.search(call, text, re.MULTILINE) is not None


def test_the_list_of_examples_is_whole() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")

    assert [name for name in FILES if f"[{name}]({name})" not in text] == []
