"""What the grammar checker is asked, what is remembered, what its end does; verdicts of real children."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.engines.vllm_checker import Checker, CheckerGone
from gateway.engines.vllm_grammar import TRIALS, GrammarGuard
from gateway.engines.vllm_grammar_worker import _judged
from gateway.errors import EngineUnavailable, InvalidRequest
from gateway.policy.salt import SALTED_FOR
from tests.unit.test_fleet import until

WORKER = "tests.grammar_worker"


@pytest.fixture
async def guard(tmp_path: Path) -> AsyncIterator[GrammarGuard]:
    guard = await GrammarGuard.open(WORKER)
    config: Any = tmp_path
    await guard.ready(config)
    yield guard
    await guard.aclose()


def counted(folder: Path, what: str) -> int:
    return (folder / what).stat().st_size


def regexes(*texts: str) -> list[dict[str, Any]]:
    return [{"regex": text} for text in texts]


async def test_sixty_ordinary_tools_are_good_and_tried_once(
    guard: GrammarGuard, tmp_path: Path
) -> None:
    tools = regexes(*(f"good{number} 0.1" for number in range(60)))

    await guard.check(tools, 0.5)  # 6 s in all: more than one may take
    await guard.check(tools[::-1], 0.5)

    assert counted(tmp_path, "asked") == 60


async def test_all_together_have_a_limit_too(guard: GrammarGuard) -> None:
    tools = regexes(*(f"good{number} 0.4" for number in range(60)))

    for _ in range(2):  # what is remembered counts as well
        with pytest.raises(InvalidRequest, match=r"together .* limit is 10 s.*GRAMMAR_TIMEOUT_S"):
            await guard.check(tools, 0.5)


@pytest.mark.parametrize(
    ("kind", "refusal", "asked"),
    [
        ("bad", InvalidRequest, 1),
        ("slow", InvalidRequest, 1),
        ("broken", InvalidRequest, 2),
        ("undecided", EngineUnavailable, 2),
    ],
)
async def test_only_what_is_the_grammars_own_doing_is_remembered(
    guard: GrammarGuard, tmp_path: Path, kind: str, refusal: type[Exception], asked: int
) -> None:
    for _ in range(2):
        with pytest.raises(refusal):
            await guard.check(regexes(kind), 0.5)

    assert counted(tmp_path, "asked") == asked


async def test_a_checker_that_ends_is_begun_anew_and_asked_again(
    guard: GrammarGuard, tmp_path: Path
) -> None:
    await guard.check(regexes("die_once"), 0.5)
    await guard.check(regexes("good"), 0.5)

    assert counted(tmp_path, "started") == 2


async def test_what_ends_every_checker_is_asked_twice_and_harms_nobody_after(
    guard: GrammarGuard, tmp_path: Path
) -> None:
    with pytest.raises(EngineUnavailable):
        await guard.check(regexes("die"), 0.5)
    assert counted(tmp_path, "asked") == 2

    await guard.check(regexes("good"), 0.5)


async def test_a_closed_guard_starts_nothing(guard: GrammarGuard, tmp_path: Path) -> None:
    await guard.aclose()

    with pytest.raises(EngineUnavailable):
        await guard.check(regexes("good"), 0.5)

    assert counted(tmp_path, "started") == 1


async def test_a_checker_that_hangs_does_not_hang_the_start(tmp_path: Path) -> None:
    (tmp_path / "hangs").touch()
    guard = await GrammarGuard.open(WORKER)
    config: Any = tmp_path
    try:
        with pytest.raises(CheckerGone, match=r"not ready within 0\.1 s"):
            await guard.ready(config, 0.1)
    finally:
        await guard.aclose()


async def test_one_tenants_slow_grammars_do_not_keep_others_out(
    guard: GrammarGuard, tmp_path: Path
) -> None:
    """Each request of a tenant's flood has a new grammar, and the checker takes its time for each."""

    async def check(tenant: str, text: str) -> None:
        SALTED_FOR.set(tenant)  # in the context of its own task, as each request has one
        await guard.check(regexes(text), 0.5)

    (tmp_path / "holds").touch()
    flood = [asyncio.create_task(check("a", f"good{number}")) for number in range(20)]
    await until(lambda: len(guard._checker._asked) == TRIALS)
    other = asyncio.create_task(check("b", "good99"))
    await until(lambda: "b" in guard._turns._waiting)
    (tmp_path / "holds").unlink()
    await other

    assert sum(task.done() for task in flood) < len(flood) // 2
    await asyncio.gather(*flood)


class Pipe:
    """As uvloop's, closed."""

    def write(self, content: bytes) -> None:
        raise RuntimeError("unable to perform operation; the handler is closed")


async def test_a_pipe_that_is_closed_is_a_checker_that_is_gone() -> None:
    process: Any = SimpleNamespace(stdin=Pipe(), stdout=object())
    checker = Checker(process)

    with pytest.raises(CheckerGone):
        await checker.ready(b"", 1)
    checker._listening = asyncio.create_task(asyncio.Event().wait())  # type: ignore[arg-type]
    with pytest.raises(CheckerGone):
        await checker.ask({})

    checker._listening.cancel()
    assert not checker._asked


class Compiler:
    """In the place of `Trial`: does to its process what a grammar may do."""

    def compile(self, spec: dict[str, Any]) -> None:
        what = spec["regex"]
        if isinstance(what, int):
            os.kill(os.getpid(), what)
        while what == "loops":
            pass
        errors = {"refuses": ValueError("no"), "memory": MemoryError(), "machine": OSError("full")}
        if what in errors:
            raise errors[what]


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        ("is fine", "good"),
        ("refuses", "bad"),
        ("loops", "slow"),
        ("memory", "broken"),
        (signal.SIGSEGV, "broken"),
        (signal.SIGABRT, "broken"),
        ("machine", "undecided"),
        (signal.SIGALRM, "undecided"),  # the wall clock's
        (signal.SIGKILL, "undecided"),  # the kernel's, when memory runs out
    ],
    ids=str,
)
def test_a_child_is_judged_by_how_it_ended(
    monkeypatch: pytest.MonkeyPatch, what: Any, kind: str
) -> None:
    monkeypatch.setattr("gateway.engines.vllm_grammar_worker.WALL_FACTOR", 1000)
    trial: Any = Compiler()
    before = signal.getsignal(signal.SIGCHLD)
    try:
        told = _judged(trial, {"spec": {"regex": what}, "limit_s": 0.2 if what == "loops" else 5})
    finally:
        signal.signal(signal.SIGCHLD, before)

    assert told["kind"] == kind
    assert told["why"] == {"bad": "no", "undecided": told["why"]}.get(kind, "")
    assert len(json.dumps(told)) < 4096
