"""One process of `vllm_grammar_worker.py`: begun, fed with the engine's configuration, asked, ended."""

import asyncio
import contextlib
import itertools
import os
import sys
from dataclasses import dataclass
from typing import Any, Literal

import orjson

MODULE = "gateway.engines.vllm_grammar_worker"
LINE_BYTES = 64 * 1024
# What writing to a pipe raises that the other side, or `aclose`, has closed: the second is uvloop's.
CLOSED = (OSError, RuntimeError)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one grammar. `slow`: it took more than its processor time. `broken`: it ran out of memory or
    brought the compiler down. `undecided`: the machine is to blame, not the grammar."""

    kind: Literal["good", "bad", "slow", "broken", "undecided"]
    why: str  # what the compiler said; empty if nothing
    cpu_s: float  # processor seconds that it took


class CheckerGone(Exception):
    """The process ended, or never got ready."""


class Checker:
    """`open()` starts the process, `ready()` feeds it, `aclose()` ends it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[Verdict]] = {}
        self._listening: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, module: str = MODULE) -> "Checker":
        """Importing vLLM takes it 5 s or more."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_BYTES,
            start_new_session=True,  # Ctrl-C is for the gateway, which drains first
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false", "VLLM_LOGGING_LEVEL": "ERROR"},
        )
        return cls(process)

    @property
    def gone(self) -> bool:
        return self._listening is None or self._listening.done()

    async def ready(self, config: bytes, within_s: float) -> None:
        """Until it has the tokenizer loaded; `config` is a pickled `VllmConfig`.

        Raises:
            CheckerGone: it ended instead (what it said is on standard error), or is not ready in time.
        """
        stdin, stdout = self._pipes()
        try:
            async with asyncio.timeout(within_s):
                stdin.write(config)
                await stdin.drain()
                if not await stdout.readline():
                    status = await self._process.wait()
                    raise CheckerGone(f"the grammar checker ended with {status}")
        except TimeoutError as error:
            late = f"the grammar checker was not ready within {within_s:g} s"
            raise CheckerGone(late) from error
        except CLOSED as error:
            raise CheckerGone(f"the grammar checker ended: {error}") from error
        self._listening = asyncio.create_task(self._listen())

    async def ask(self, job: dict[str, Any]) -> Verdict:
        """Raises:
        CheckerGone: it ended before it answered.
        """
        if self.gone:
            raise CheckerGone("the grammar checker is gone")
        stdin, _ = self._pipes()
        number = next(self._numbers)
        answer: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            stdin.write(orjson.dumps({**job, "id": number}) + b"\n")
            await stdin.drain()
            return await answer
        except CLOSED as error:
            raise CheckerGone("the grammar checker is gone") from error
        finally:
            del self._asked[number]

    async def _listen(self) -> None:
        _, stdout = self._pipes()
        try:
            while (line := await stdout.readline()).endswith(b"\n"):
                told = orjson.loads(line)
                answer = self._asked.get(told.pop("id"))
                if answer is not None and not answer.done():
                    answer.set_result(Verdict(**told))
        finally:
            for answer in self._asked.values():
                if not answer.done():
                    answer.set_exception(CheckerGone("the grammar checker is gone"))

    def _pipes(self) -> tuple[asyncio.StreamWriter, asyncio.StreamReader]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout

    async def aclose(self) -> None:
        """Safe to call twice."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        if self._listening is not None:
            self._listening.cancel()
