"""A thinking run over a scripted engine, for the tests of runs."""

from collections.abc import Callable
from typing import Any

import pytest

from gateway.engines.types import Job
from gateway.thinking.run import Piece, Request, ThinkingRun
from tests.scripted import DIALECTS, Script, ScriptedEngine, tokens

PROMPT = "<user>2+2?<assistant>"
OPENED = f"{PROMPT}<think>\n"
EOS = 0
LONG = Script(["x" * 40])
ANSWER = Script(["It is", " four."], tail=(EOS,), cached=32)
APART = Script(["Two."], tail=tokens("</think>"), stop_reason=tokens("</think>")[0], cached=5)
BLANK = Script([" \n"], tail=(EOS,))
each_dialect = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=list(DIALECTS))


def phases(**scripts: Script) -> Callable[[Job], Script]:
    """By the last part of a job's name; a trial is "probe1"."""
    return lambda job: scripts.get(job.request_id.rsplit("-", 1)[1], ANSWER)


def run_on(engine: ScriptedEngine, **changes: Any) -> ThinkingRun:
    fields: dict[str, Any] = {
        "request_id": "r",
        "prompt": engine.dialect.encode(PROMPT),
        "thinks": True,
        "level": 3,
        "budget": None,
        "ceiling": None,
        "max_tokens": 1000,
        "sampling": {},
        "context": engine.limits.max_model_len,
    }
    return ThinkingRun(engine, Request(**fields | changes))


async def finish(engine: ScriptedEngine, **changes: Any) -> tuple[ThinkingRun, list[Piece]]:
    run = run_on(engine, **changes)
    return run, [piece async for piece in run.pieces()]


def engine_with(script: Callable[[Job], Script], **options: Any) -> ScriptedEngine:
    engine = ScriptedEngine(**options)
    engine.script = script
    return engine


def text(pieces: list[Piece], phase: str) -> str:
    return "".join(piece.text for piece in pieces if piece.phase == phase)


def count(pieces: list[Piece], phase: str) -> int:
    return sum(len(piece.token_ids) for piece in pieces if piece.phase == phase)


def names(engine: ScriptedEngine) -> list[str]:
    return [job.request_id for job in engine.jobs]
