"""The texts a model is calibrated and measured with: the shipped ones, or a file of the user's."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from engine_config.build.checkpoint import QuantizeError

SHIPPED = Path(__file__).parent / "quantizing"
CALIBRATION, HELDOUT = SHIPPED / "calibration.jsonl", SHIPPED / "heldout.jsonl"
MAX_BYTES = 256 * 1024 * 1024
BYTES_PER_TOKEN = 8  # generous: what is left over costs a second, what is missing costs quality
ROLES = ("system", "user", "assistant", "tool")

Passage = str | list[dict[str, str]]  # a text, or a conversation


@dataclass(frozen=True, slots=True)
class Calibration:
    """Passages, and what the card says of where they are from."""

    name: str
    sha256: str
    passages: list[Passage]


def calibration(path: Path | None, tokens: int) -> Calibration:
    """Passages for about so many tokens, spread evenly over the file; the shipped text if None.

    Raises:
        QuantizeError: the file cannot be read, or a line of it is neither a text nor a conversation.
    """
    chosen = path or CALIBRATION
    raw = _read(chosen)
    passages = parse(raw, chosen)
    if not passages:
        raise QuantizeError(f"{chosen} holds no text")
    name = str(chosen) if path else "the text shipped with the project"
    return Calibration(name, _sha256(raw), thin(passages, tokens * BYTES_PER_TOKEN))


def heldout() -> tuple[dict[str, list[str]], str]:
    """The shipped text that nothing is calibrated with: passages by kind, and its sha256."""
    raw = HELDOUT.read_text(encoding="utf-8")
    kinds: dict[str, list[str]] = {}
    for line in raw.splitlines():
        record = json.loads(line)
        kinds.setdefault(record["kind"], []).append(record["text"])
    return kinds, _sha256(raw)


def parse(raw: str, path: Path) -> list[Passage]:
    """JSON lines with `text` or `messages`, or else plain text in paragraphs.

    Raises:
        QuantizeError: it begins as JSON lines and a line of it is something else.
    """
    if path.suffix not in (".jsonl", ".json") and not raw.lstrip().startswith("{"):
        return [part for part in raw.split("\n\n") if part.strip()]
    lines = enumerate(raw.splitlines(), 1)
    return [_passage(line, f"{path}, line {number}") for number, line in lines if line.strip()]


def thin(passages: list[Passage], budget: int) -> list[Passage]:
    """Every n-th passage, so that they come to about `budget` bytes."""
    total = sum(len(json.dumps(passage, ensure_ascii=False).encode()) for passage in passages)
    return passages[:: max(1, total // max(1, budget))]


def _passage(line: str, where: str) -> Passage:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise QuantizeError(f"{where}: not JSON ({error})") from error
    if isinstance(record, dict):
        if isinstance(text := record.get("text"), str):
            return text
        messages = record.get("messages")
        if _is_conversation(messages):
            return [{"role": one["role"], "content": one["content"]} for one in messages]
    raise QuantizeError(
        f'{where}: neither {{"text": "..."}} nor {{"messages": [{{"role": ..., "content": "..."}}]}}'
    )


def _is_conversation(messages: Any) -> TypeGuard[list[dict[str, Any]]]:
    return (
        isinstance(messages, list)
        and bool(messages)
        and all(
            isinstance(one, dict)
            and one.get("role") in ROLES
            and isinstance(one.get("content"), str)
            for one in messages
        )
    )


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise QuantizeError(f"{path} is larger than {MAX_BYTES // 1024**2} MiB; take a part")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise QuantizeError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise QuantizeError(f"calibration file {path}: {error.strerror}") from error


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
