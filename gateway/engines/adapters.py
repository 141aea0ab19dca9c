"""LoRA adapters of a running engine, loaded and unloaded by name.

A name is a subfolder of `GATEWAY_ADAPTERS_DIR`: no request names a path. A loaded adapter is a model name of
its own; it stays loaded when the engine is rebuilt or switched.
"""

import asyncio
import re

from gateway.engines.fleet import Fleet
from gateway.engines.served import ServedModel
from gateway.errors import Conflict, InvalidRequest, NotFound
from gateway.settings import Settings

POLL_S = 0.1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def available(settings: Settings) -> list[str]:
    """Names of the adapters in the operator's folder."""
    folder = settings.adapters_dir
    if folder is None or not folder.is_dir():
        return []
    return sorted(path.parent.name for path in folder.glob("*/adapter_config.json"))


async def load_adapter(fleet: Fleet, settings: Settings, model: ServedModel, name: str) -> None:
    """Load it; from now on requests may name it as their model.

    Raises:
        InvalidRequest: no such folder, or the engine does not take it.
        Conflict: the name is taken, or the engine is being replaced.
        EngineUnavailable: no engine is up.
    """
    if settings.adapters_dir is None:
        raise InvalidRequest("set GATEWAY_ADAPTERS_DIR to the folder that holds the adapters")
    there = await asyncio.to_thread(available, settings)
    if not NAME.fullmatch(name) or name not in there:
        listed = ", ".join(there) or "none"
        raise InvalidRequest(
            f"there is no adapter '{name}' in GATEWAY_ADAPTERS_DIR; there are: {listed}", "adapter"
        )
    if any(card["id"] == name for card in fleet.cards()):
        raise Conflict(f"a model or adapter named '{name}' is served already", "adapter")
    _refuse_during_change(model)
    path = settings.adapters_dir / name
    async with model.changing:
        slot = await model.take()
        await slot.engine.load_adapter(name, path)
        model.adapters[name] = path


async def unload_adapter(model: ServedModel, name: str) -> None:
    """Forget it, wait for the requests that use it, then free it: vLLM would load it again for them.

    Raises:
        NotFound: not loaded.
        Conflict: the engine is being replaced.
    """
    if name not in model.adapters:
        raise NotFound(f"'{model.name}' has no adapter '{name}' loaded", "adapter")
    _refuse_during_change(model)
    del model.adapters[name]
    while model.using[name]:  # noqa: ASYNC110 - a count, no event
        await asyncio.sleep(POLL_S)
    async with model.changing:
        # A switch or a rebuild meanwhile made an engine that never had it.
        if model.slot is not None and model.slot.engine.has_adapter(name):
            await model.slot.engine.unload_adapter(name)


def _refuse_during_change(model: ServedModel) -> None:
    if model.changing.locked():
        raise Conflict(f"the engine of '{model.name}' is being replaced; try again after that")
