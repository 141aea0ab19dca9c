"""The models the gateway can build by itself, and the two calls that give you one."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from engine_config.build import cache, quantize, toolbox
from engine_config.build.cache import ModelCacheError, Origin, Progress, Workspace
from engine_config.build.checkpoint import Source
from engine_config.build.packages import QWEN3_TOKENIZER, SMOLLM2_WHEEL, Package


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one model is made, and what a user wants to know before it is."""

    name: str
    version: int  # raise it when the result changes: the old folder is then left alone
    title: str
    licence: str
    seconds: float  # a build, without the download, on two cores
    bytes: int  # of the built folder
    package: Package
    module: str  # has `build(workspace, progress)`; of a quantised model empty
    libraries: tuple[str, ...]
    base: str = ""  # of a quantised model: what it is made from,
    target: str = ""  # and the format, one of checkpoint.TARGETS

    def origin(self) -> Origin:
        # While it builds, the download and what is unpacked from it lie beside the result; or the
        # tool's own copy of the weights.
        needed = 3 * self.bytes if self.base else self.bytes + 3 * self.package.size
        source = self.package.as_source()
        if self.base:
            source |= {"model": self.base, "target": self.target, "tools": toolbox.lock_hash()}
        return Origin(self.name, self.version, source, self.libraries, needed)


BUILDERS: dict[str, Recipe] = {
    "smollm2-135m": Recipe(
        name="smollm2-135m",
        version=1,
        title="SmolLM2-135M-Instruct in bfloat16: answers, on any laptop",
        licence="Apache-2.0",
        seconds=12,
        bytes=272_600_000,
        package=SMOLLM2_WHEEL,
        module="engine_config.build.smollm2",
        libraries=("gguf", "numpy", "safetensors", "tokenizers", "torch"),
    ),
    "nano-qwen3": Recipe(
        name="nano-qwen3",
        version=1,
        title="Qwen3's tokenizer and template on random weights: for tests",
        licence="Apache-2.0",
        seconds=4,
        bytes=31_100_000,
        package=QWEN3_TOKENIZER,
        module="engine_config.build.nano_qwen3",
        libraries=("numpy", "safetensors", "torch"),
    ),
    "qwen3-4b-shape": Recipe(
        name="qwen3-4b-shape",
        version=1,
        title="Qwen3-4B-Thinking's shape in GPTQ int4, without weights: for tests",
        licence="Apache-2.0",
        seconds=4,
        bytes=11_440_000,
        package=QWEN3_TOKENIZER,
        module="engine_config.build.qwen3_shape",
        libraries=(),
    ),
}


def _quantised(base: Recipe, target: str, seconds: float, size: int) -> Recipe:
    what = base.title.split(":")[0].removesuffix(" in bfloat16")
    return replace(
        base,
        name=f"{base.name}-{target}",
        version=1,
        title=f"{what}, quantised to {target}",
        seconds=seconds,
        bytes=size,
        module="",
        libraries=(),
        base=base.name,
        target=target,
    )


for _base, _target, _seconds, _bytes in (
    ("smollm2-135m", "int8", 60, 166_760_000),
    ("smollm2-135m", "gptq-int4", 60, 118_150_000),
    ("smollm2-135m", "awq-int4", 60, 117_530_000),
    ("smollm2-135m", "int4", 50, 116_710_000),
    ("nano-qwen3", "gptq-int4", 12, 30_950_000),
    ("nano-qwen3", "awq-int4", 12, 30_950_000),
):
    BUILDERS[f"{_base}-{_target}"] = _quantised(BUILDERS[_base], _target, _seconds, _bytes)


def recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        ModelCacheError: there is none; the message lists those there are.
    """
    if name not in BUILDERS:
        raise ModelCacheError(f"no recipe builds {name!r}; there are: {', '.join(BUILDERS)}")
    return BUILDERS[name]


def model_dir(name: str) -> Path:
    """The folder a recipe's model is, or will be, in."""
    return cache.model_dir(name, recipe(name).version)


def ensure(name: str, progress: Progress) -> Path:
    """The folder of a model, built first if it is absent or visibly damaged.

    Raises:
        ModelCacheError: no such recipe, or the model cannot be fetched, built or written.
    """
    folder = model_dir(name)
    return folder if cache.problem(folder) is None else build(name, progress)


def build(name: str, progress: Progress, force: bool = False) -> Path:
    """Build a model into the cache; with `force` even if it is there. Raises as `ensure`."""
    chosen = recipe(name)
    if chosen.base:
        return _quantise(chosen, progress, force)

    def fill(workspace: Workspace) -> None:
        # The one import that is not at the top: torch costs seconds, and `ensure` runs at every
        # start, where nearly always there is nothing to build.
        progress("loading the libraries", 0.0)
        module = importlib.import_module(chosen.module)
        make = cast(Callable[[Workspace, Progress], None], module.build)
        make(workspace, cache.part(progress, 0.02, 0.95))

    return cache.publish(chosen.origin(), fill, progress, force)


def _quantise(chosen: Recipe, progress: Progress, force: bool) -> Path:
    folder = ensure(chosen.base, cache.part(progress, 0.0, 0.2))
    source, options = Source(chosen.base, folder), quantize.Options(chosen.target)

    def fill(workspace: Workspace) -> None:
        quantize.quantize(source, options, workspace, cache.part(progress, 0.2, 0.95))

    return cache.publish(chosen.origin(), fill, progress, force)


def verify(name: str) -> Path:
    """Check every byte of a built model and return its folder.

    Raises:
        ModelCacheError: it is not built, or (ModelCorruptError) a file differs.
    """
    folder = model_dir(name)
    cache.verify(folder)
    return folder
