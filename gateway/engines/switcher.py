"""Starts switches, remembers them, cancels them."""

import asyncio
import logging
from collections.abc import Callable, Iterator

from gateway.engines.catalogue import Catalogue
from gateway.engines.fleet import Fleet
from gateway.engines.operation import Operation, Phase, Way
from gateway.engines.switch import Switch, Tools
from gateway.errors import Conflict, NotFound

log = logging.getLogger(__name__)

REMEMBERED = 100


class Switcher:
    """One switch at a time over all models: two that load at once fight for memory and cores."""

    def __init__(self, fleet: Fleet, catalogue: Catalogue, tools: Tools) -> None:
        self.fleet = fleet
        self.catalogue = catalogue
        self.tools = tools
        self.operations: dict[str, Operation] = {}
        self.told: Callable[[Operation], None] = lambda operation: None  # of each that ended
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._switches: dict[str, Switch] = {}
        self._turn = asyncio.Lock()

    def start(self, model_name: str, profile_name: str, way: Way = "auto") -> Operation:
        """Begin a switch; it goes on by itself.

        Raises:
            ModelNotFound: no such model.
            InvalidRequest: not a profile it may be switched to.
            Conflict: this model is being changed already, or the server ends.
        """
        model = self.fleet.find(model_name)
        profile = self.catalogue.choose(model.name, profile_name)
        if self.fleet.draining:
            raise Conflict("the server is shutting down")
        if starting := [name for name, each in self.fleet.models.items() if each.built == 0]:
            raise Conflict(
                f"'{starting[0]}' is still starting; GET /health/ready tells when it is up"
            )
        if running := next(self._running(model.name), None):
            raise Conflict(
                f"'{model.name}' is being switched to {running.profile} ({running.id}, "
                f"{running.phase}); cancel that or wait for its end"
            )
        operation = Operation(model.name, profile.name, model.profile.name, way)
        switch = Switch(operation, self.fleet, model, profile, self.tools)
        self._remember(operation)
        self._switches[operation.id] = switch
        task = asyncio.create_task(self._run(switch), name=operation.id)
        self._tasks[operation.id] = task
        return operation

    def _running(self, model: str) -> Iterator[Operation]:
        for operation in self.operations.values():
            if operation.model == model and operation.state == "running":
                yield operation

    def _remember(self, operation: Operation) -> None:
        self.operations[operation.id] = operation
        done = [each for each in self.operations.values() if each.state != "running"]
        for old in done[: max(0, len(self.operations) - REMEMBERED)]:
            del self.operations[old.id]

    async def _run(self, switch: Switch) -> None:
        operation = switch.operation
        try:
            await self._in_turn(switch)
            operation.end("succeeded", None)
            log.warning("%s: %s serves %s", operation.id, operation.model, operation.profile)
        except asyncio.CancelledError:
            self._cut_short(switch)
        except Exception as error:  # told by the operation; the old engine serves on
            operation.end("failed", _told(error))
            log.exception("%s: switch of %s failed", operation.id, operation.model)
        finally:
            self._tasks.pop(operation.id, None)
            self._switches.pop(operation.id, None)
            self.told(operation)

    def _cut_short(self, switch: Switch) -> None:
        operation = switch.operation
        why = "the server is shutting down" if switch.closing_down else "cancelled by request"
        if operation.published:
            operation.notes.append(f"{why}; the old engine's last requests were not waited for")
            operation.end("succeeded", None)
        else:
            operation.end("cancelled", why)
        log.warning("%s: %s", operation.id, why)

    async def _in_turn(self, switch: Switch) -> None:
        """The turn ends when the new engine serves; its predecessor may drain for long."""
        async with self._turn:
            retired = await switch.replace()
        if retired is not None:
            await switch.retire(retired)

    def get(self, operation_id: str) -> Operation:
        """The operation of that id, running or among the last hundred.

        Raises:
            NotFound: none of that id.
        """
        if operation_id not in self.operations:
            raise NotFound(f"no operation '{operation_id}'; GET /admin/operations lists them")
        return self.operations[operation_id]

    async def cancel(self, operation_id: str) -> Operation:
        """Call it off and wait until everything is as before.

        Raises:
            NotFound: no such operation.
            Conflict: it has ended, or the new engine serves already.
        """
        operation = self.get(operation_id)
        if operation.state != "running":
            raise Conflict(f"{operation_id} has ended: it {operation.state}")
        if operation.published:
            raise Conflict(
                f"{operation_id}: {operation.profile} serves already; switch back instead"
            )
        task = self._tasks[operation_id]
        if not task.cancelling() and operation.phase is not Phase.RESTORING:
            task.cancel()  # once: a second one would hit what puts things back
        await asyncio.wait({task})
        return operation

    async def stop(self) -> None:
        """The server ends: call off whatever runs, restore nothing."""
        for switch in self._switches.values():
            switch.close_down()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _told(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text if len(text) <= 1000 else f"{text[:1000]} ..."
