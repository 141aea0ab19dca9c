"""Whether grammars compile: asked of `vllm_grammar_worker.py`, one by one, and remembered."""

import asyncio
import contextlib
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import cloudpickle
import orjson
from vllm.config import VllmConfig

from gateway.engines.vllm_checker import MODULE, Checker, CheckerGone, Verdict
from gateway.errors import EngineUnavailable, InvalidRequest
from gateway.policy.salt import SALTED_FOR
from gateway.policy.tenant import ANYBODY
from gateway.policy.turns import Turns

log = logging.getLogger(__name__)
# At once; each may use a core. Others wait, each tenant for its turn.
TRIALS = 2
# Of single grammars; an agent brings up to 100 tools.
REMEMBERED = 8192
WAIT_S = 30
READY_S = 120
# All grammars of a request may take so many times what one may.
TOGETHER = 20
# These say something of the grammar; the others may be the machine's doing, and are not remembered.
LASTING = ("good", "bad", "slow")
REASONS = {
    "slow": "it takes too much time to compile",
    "broken": "it takes too much memory to compile, or brings the compiler down",
}
BUSY = "the schema, regex or grammar of this request could not be tried now; try again"


class GrammarGuard:
    """One per engine, since a grammar is compiled for a model's tokens.

    `open()` starts the process, `ready()` gives it the engine's configuration, `aclose()` ends it. A process
    that ended is begun anew by the next request that needs it.
    """

    def __init__(self, checker: Checker, module: str = MODULE) -> None:
        self._checker, self._module = checker, module
        self._config = b""
        self._known: OrderedDict[bytes, Verdict] = OrderedDict()
        self._turns = Turns(TRIALS)
        self._opening: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    async def open(cls, module: str = MODULE) -> "GrammarGuard":
        """It loads for 5 s or more; meanwhile the engine does, too."""
        return cls(await Checker.open(module), module)

    async def ready(self, config: VllmConfig, within_s: float = READY_S) -> None:
        """Until the tokenizer is loaded. A model's own code, if it has any, is pickled by value.

        Raises:
            CheckerGone: it ended, or is not ready in time; then the engine must not be served.
        """
        self._config = cloudpickle.dumps(config)
        await self._checker.ready(self._config, within_s)

    async def check(self, specs: Sequence[Mapping[str, Any]], limit_s: float) -> None:
        """Refuse what does not compile: each within `limit_s` of processor time, all within 20 times that.

        What was found out until an `EngineUnavailable` is remembered, so the next try gets further.

        Raises:
            InvalidRequest: it does not.
            EngineUnavailable: the checker is gone, the machine or the checker is too busy.
        """
        taken_s = 0.0
        try:
            async with asyncio.timeout(WAIT_S):
                for spec in specs:
                    verdict = await self._verdict(spec, limit_s)
                    self._refuse(verdict, limit_s)
                    taken_s += verdict.cpu_s
                    if taken_s > TOGETHER * limit_s:
                        raise InvalidRequest(
                            "the schemas, regexes and grammars of this request together take too much time "
                            f"to compile (the limit is {TOGETHER * limit_s:g} s, {TOGETHER} times the "
                            "setting GATEWAY_GRAMMAR_TIMEOUT_S)"
                        )
        except (TimeoutError, CheckerGone, OSError) as error:
            raise EngineUnavailable(BUSY) from error

    def _refuse(self, verdict: Verdict, limit_s: float) -> None:
        if verdict.kind == "undecided":
            raise EngineUnavailable(BUSY)
        if verdict.kind != "good":
            raise InvalidRequest(
                "the schema, regex or grammar of this request cannot be used: "
                f"{REASONS.get(verdict.kind, verdict.why)} "
                f"(the limit is {limit_s:g} s, setting GATEWAY_GRAMMAR_TIMEOUT_S)"
            )

    async def _verdict(self, spec: Mapping[str, Any], limit_s: float) -> Verdict:
        job = {"spec": spec, "limit_s": limit_s}
        key = hashlib.sha256(orjson.dumps(job)).digest()
        if (known := self._known.get(key)) is not None:
            self._known.move_to_end(key)
            return known
        async with self._turns.place(SALTED_FOR.get() or ANYBODY.name):
            verdict = await self._ask(job)
        if verdict.kind in LASTING:
            self._known[key] = verdict
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return verdict

    async def _ask(self, job: dict[str, Any]) -> Verdict:
        """Once more when the process ends meanwhile, of a new one."""
        try:
            return await (await self._alive()).ask(job)
        except CheckerGone:
            return await (await self._alive()).ask(job)

    async def _alive(self) -> Checker:
        """All that wait for a new process wait for the same one; it does not end with who asked first."""
        if self._checker.gone and not self._closed:
            if self._opening is None or self._opening.done():
                self._opening = asyncio.create_task(self._reopen())
            await asyncio.shield(self._opening)
        return self._checker

    async def _reopen(self) -> None:
        log.warning("the grammar checker ended; it is started again")
        await self._checker.aclose()
        checker = await Checker.open(self._module)
        try:
            await checker.ready(self._config, READY_S)
        except CheckerGone as error:
            log.warning("%s; the next request with a schema tries again", error)
            await checker.aclose()
        except BaseException:
            await checker.aclose()
            raise
        else:
            self._checker = checker

    async def aclose(self) -> None:
        """Safe to call twice."""
        self._closed = True
        if self._opening is not None:
            self._opening.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await self._opening
        await self._checker.aclose()
