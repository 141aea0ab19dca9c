"""From a profile to a loaded engine. vLLM is imported here, late: it costs five seconds and 600 MB, and
`gateway --help` needs none of it."""

import asyncio
import importlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from engine_config.build.registry import ensure
from engine_config.hardware import check_device
from engine_config.profile import BuiltModel, FolderModel, HubModel, Profile, ProfileError
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

# Copies of the weights in formats that vLLM does not take when there is safetensors.
NOT_LOADED = ["*.bin", "*.pt", "*.pth", "*.gguf", "*.onnx", "original/*"]

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
        if not (model.folder / "config.json").is_file():
            raise ProfileError(
                f"profile {profile.name}: {model.folder} is not a model folder (no config.json)"
                + _how_to_make(model)
            )
        return model.folder
    fetch(model, progress)
    return model.repo


def fetch(model: HubModel, progress: Progress) -> None:
    """Have the repository in the hub's cache, so that vLLM finds it there at once.

    Raises:
        ProfileError: it is not there and cannot be fetched.
    """
    hub = importlib.import_module("huggingface_hub")
    progress(f"fetching {model.repo} at {model.revision[:12]}", 0.0)
    try:
        hub.snapshot_download(model.repo, revision=model.revision, ignore_patterns=NOT_LOADED)
    except (OSError, ValueError) as error:  # its own errors are of these kinds
        sentence = str(error).strip().splitlines()[0]
        raise ProfileError(
            f"{model.repo} at {model.revision} cannot be fetched: {sentence}"
        ) from error


def _how_to_make(model: FolderModel) -> str:
    if model.make is None:
        return ""
    commands = model.make.replace("{folder}", str(model.folder)).strip().splitlines()
    return "\n".join([". It is made by:", *(f"  {command}" for command in commands)])


def prepare_environment(profiles: Iterable[Profile]) -> None:
    """Set what vLLM reads from the environment; what the operator has set stays.

    `profiles` are those that are served, or may be by a switch.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    if not any(isinstance(profile.model, HubModel) for profile in profiles):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # folders have all; do not ask a hub first


def check(profile: Profile, location: Path | str) -> None:
    """Let vLLM look at settings and model config; starts nothing.

    Raises:
        ProfileError: it is for another device.
        Exception: what vLLM says against them.
    """
    check_device(profile)
    importlib.import_module("gateway.engines.vllm_start").check(profile, location)


def footprint(profile: Profile, location: Path | str) -> int:
    """Memory of an engine of this profile, bytes, as `gateway profiles plan` estimates it."""
    planner = importlib.import_module("gateway.engines.vllm_plan")
    need: int = planner.footprint_bytes(profile, location)
    return need


async def open_engine(profile: Profile, location: Path | str, cores: str | None = None) -> Engine:
    """Load the model in vLLM; see `vllm_adapter.open_engine`.

    Raises:
        ProfileError: the profile is for another device, before vLLM is even imported.
    """
    check_device(profile)
    adapter = await asyncio.to_thread(importlib.import_module, "gateway.engines.vllm_adapter")
    engine: Engine = await adapter.open_engine(profile, location, cores)
    return engine
