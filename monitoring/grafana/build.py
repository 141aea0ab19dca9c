"""Writes the dashboards that Grafana reads, from the code beside this file.

python -m monitoring.grafana.build           write dashboards/*.json
python -m monitoring.grafana.build --check   write nothing; exit 1 and name each stale file
"""

import argparse
import json
import sys
from pathlib import Path

from monitoring.grafana.engine_gpu import ENGINE_GPU
from monitoring.grafana.overview import OVERVIEW
from monitoring.grafana.tenants import TENANTS
from monitoring.grafana.thinking import THINKING

BOARDS = {
    "overview": OVERVIEW,
    "thinking": THINKING,
    "engine-gpu": ENGINE_GPU,
    "tenants": TENANTS,
}
DASHBOARDS = Path(__file__).resolve().parent / "dashboards"


def pages() -> dict[Path, str]:
    """Each dashboard's file and what it should hold."""
    return {
        DASHBOARDS / f"{name}.json": json.dumps(board.json(), indent=1, ensure_ascii=False) + "\n"
        for name, board in BOARDS.items()
    }


def stale() -> list[str]:
    """Names of files that are not as they would be made now."""
    return [
        path.name
        for path, text in pages().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="monitoring.grafana.build", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only name what is stale")
    if not parser.parse_args().check:
        DASHBOARDS.mkdir(exist_ok=True)
        for path, text in pages().items():
            path.write_text(text, encoding="utf-8")
        return
    if names := stale():
        sys.stdout.write(f"stale: {', '.join(names)}; run `python -m monitoring.grafana.build`\n")
        raise SystemExit(1)


if __name__ == "__main__":
    main()
