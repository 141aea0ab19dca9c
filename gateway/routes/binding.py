"""What of one request depends on the engine that may serve it, tried by each such engine once."""

from collections.abc import Mapping
from typing import Any

from gateway.engines.fleet import Guard, unguarded
from gateway.engines.served import ServedModel
from gateway.engines.slot import Slot
from gateway.engines.types import Engine
from gateway.errors import EngineUnavailable
from gateway.policy import bounds, grammars
from gateway.settings import Settings


class Binding:
    """What binds the answer in `request`: grammars and token ids. `guard` runs what has to be waited for.

    Raises:
        InvalidRequest: it is too large to be tried.
    """

    def __init__(
        self, request: Mapping[str, Any], settings: Settings, guard: Guard = unguarded
    ) -> None:
        self._request, self._specs = request, grammars.specs(request)
        grammars.check(self._specs, settings)
        self._limit_s, self._guard = settings.grammar_timeout_s, guard
        self._tried_by: Engine | None = None

    async def before(self, model: ServedModel) -> None:
        """Before the request takes a place, which it may have to wait up to 30 s for a verdict in.

        Without an engine in service there is nobody to ask, and one that is replaced meanwhile may end
        before it answers; whoever gets the seat asks then.
        """
        if (slot := model.now()) is None:
            return
        try:
            await self.tried_by(slot)
        except EngineUnavailable:
            if model.now() is slot:
                raise

    async def tried_by(self, slot: Slot) -> None:
        """Nothing if that engine has tried them already.

        Raises:
            InvalidRequest: a token is none of the model's; a grammar does not compile, or not in time.
            EngineUnavailable: it cannot be tried now.
        """
        if slot.engine is self._tried_by:
            return
        # vLLM looks at them when a stream has begun, and a 400 comes too late.
        bounds.check_ids(self._request, slot.engine.limits.vocab_size)
        if self._specs:
            await self._guard(slot.engine.check_grammar(self._specs, self._limit_s))
        self._tried_by = slot.engine
