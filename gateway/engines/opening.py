"""From a profile to a loaded engine. vLLM is imported here, late: it costs five seconds and 600 MB, and
`gateway --help` needs none of it."""

import asyncio
import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from engine_config.build.registry import ensure
from engine_config.profile import BuiltModel, FolderModel, Profile, ProfileError
from gateway.engines.types import Engine

# What vLLM reads from the environment and an operator would be surprised by otherwise.
DEFAULTS = {
    "VLLM_NO_USAGE_STATS": "1",  # nothing leaves this machine unasked
    "VLLM_LOGGING_LEVEL": "ERROR",  # its warnings of a start are two screens; set it to see them
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TORCH_LOGS": "-torch._library",  # errors only: it tells each process that there is no Triton
    "PYTHONWARNINGS": "ignore::FutureWarning",  # of libraries, in the engine processes
    "TOKENIZERS_PARALLELISM": "false",
}

Progress = Callable[[str, float], None]


def locate(profile: Profile, progress: Progress) -> Path | str:
    """Where the profile's model is; builds it when it is one of ours and absent.

    Raises:
        ProfileError: the folder is not there.
    """
    model = profile.model
    if isinstance(model, BuiltModel):
        return ensure(model.name, progress)
    if isinstance(model, FolderModel):
        if not (model.path / "config.json").is_file():
            raise ProfileError(
                f"profile {profile.name}: {model.path} is not a model folder (no config.json)"
            )
        return model.path
    return model.repo


def prepare_environment(locations: Sequence[Path | str]) -> None:
    """Set what vLLM reads from the environment; what the operator has set stays."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    if all(isinstance(location, Path) for location in locations):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # folders have all; do not ask a hub first


async def open_engine(profile: Profile, location: Path | str) -> Engine:
    """Load the model in vLLM; see `vllm_adapter.open_engine`."""
    adapter = await asyncio.to_thread(importlib.import_module, "gateway.engines.vllm_adapter")
    engine: Engine = await adapter.open_engine(profile, location)
    return engine
