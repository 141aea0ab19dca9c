"""The blocks of commands in the guides: two are walked, the other pages say of each why it is not run."""

import re
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
DEPLOYMENT = DOCS / "deployment_guide.md"
OPERATIONS = DOCS / "operations_guide.md"
ERRORS = DOCS / "troubleshooting_errors.md"
WALKED = (DEPLOYMENT, OPERATIONS)
UNWALKED = (
    DOCS / "troubleshooting_guide.md",
    ERRORS,
    *(DOCS / f"{name}.md" for name in ("monitoring", "quantizing", "switching")),
    DOCS.parent / "deploy" / "README.md",
)
BLOCK = re.compile(
    r"(?:<!-- not run here: (?P<reason>[^\n]*) -->\n)?```bash\n(?P<text>.*?)```", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Block:
    """`reason`: why it is not run; empty where it is."""

    text: str
    reason: str


def blocks(path: Path) -> list[Block]:
    found = BLOCK.finditer(path.read_text(encoding="utf-8"))
    return [Block(each["text"], each["reason"] or "") for each in found]


def walk(path: Path) -> str:
    """All blocks that are run, as one script; it ends with the first command that fails."""
    return "\n".join(["set -eu", *(each.text for each in blocks(path) if not each.reason)])
