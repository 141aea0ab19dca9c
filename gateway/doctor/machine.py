"""Python, vLLM, torch, processor, memory, GPU, limits and clock. Nothing heavy is imported."""

import ctypes
import platform
import resource
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from engine_config.hardware import (
    CPU_BUILD,
    GIB,
    Hardware,
    driver_cuda,
    driver_version,
    free_bytes,
)
from gateway.doctor.finding import Finding, fail, good, warn

VLLM = "0.32.0"  # whose internals tests/unit/test_vllm_surface.py knows
PYTHONS = ((3, 11), (3, 14))  # pyproject.toml: from, and below
FREE_MEMORY = 2 * GIB
SHM = GIB // 2
SHM_FOLDER = Path("/dev/shm")
OPEN_FILES = 4096  # a socket each caller, and the engine's own
TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
TIMEX_BYTES = 256  # more than struct timex has on any Linux
INSTALL = "Install from the lock: `make install`."
RUNTIME = "nvidia-cuda-runtime"  # a distribution: the CUDA that PyTorch brings
# CUDA's major version -> the first driver that runs it; minor versions may differ. Source:
# https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
DRIVERS = {12: 525, 13: 580}


def machine(hardware: Hardware) -> Iterator[Finding]:
    yield python(sys.version_info[:2])
    yield from libraries()
    yield processor(hardware)
    yield memory(free_bytes("cpu") or 0)
    yield gpu(hardware, driver_version())
    if hardware.gpu is not None and (runtime := _version(RUNTIME)):
        yield driver(driver_cuda(), runtime)
    yield shared_memory(shutil.disk_usage(SHM_FOLDER).free if SHM_FOLDER.is_dir() else 0)
    yield open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield clock(_clock_state())


def python(version: tuple[int, int]) -> Finding:
    oldest, beyond = PYTHONS
    if oldest <= version < beyond:
        return good("python", platform.python_version())
    wanted = f"{oldest[0]}.{oldest[1]} or later, below {beyond[0]}.{beyond[1]}"
    return fail("python", platform.python_version(), f"Use Python {wanted}: make PYTHON=python3.11")


def libraries() -> Iterator[Finding]:
    """vLLM in the version that is known, and torch in the one that this vLLM asks for."""
    build = next((name for name in (CPU_BUILD, "vllm") if _version(name)), None)
    if build is None:
        yield fail("vllm", "not installed", INSTALL)
        return
    if (found := _version(build)) == VLLM:
        yield good("vllm", f"{build} {found}")
    else:
        yield fail("vllm", f"{build} {found}, and the gateway is made for {VLLM}", INSTALL)
    yield torch(metadata.requires(build) or [], _version("torch"))


def torch(requires: list[str], found: str | None) -> Finding:
    """`requires` are the requirement lines of the installed vLLM."""
    wanted = [each for each in map(Requirement, requires) if each.name == "torch"]
    needed = [each for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    if found is None:
        return fail("torch", "not installed", INSTALL)
    for each in needed:
        if not each.specifier.contains(found, prereleases=True):
            return fail("torch", f"{found}, and vLLM asks for {each.specifier}", INSTALL)
    return good("torch", found)


def processor(hardware: Hardware) -> Finding:
    told = f"{hardware.cores} cores, {hardware.vectors or 'neither AVX2 nor AVX-512'}"
    if hardware.gpu is None and not hardware.vectors:
        return fail("cpu", told, "vLLM for the CPU needs AVX2: take another machine or a GPU.")
    if hardware.cores < 2:
        return warn("cpu", told, "Give it 2 cores or more: engine and front end share one now.")
    return good("cpu", told)


def memory(free: int) -> Finding:
    told = f"{free / GIB:.1f} GiB free"
    if free >= FREE_MEMORY:
        return good("memory", told)
    return warn("memory", told, "End other programs, or raise the container's memory limit.")


def gpu(hardware: Hardware, driver: str | None) -> Finding:
    if not hardware.cpu_build and not hardware.gpus:
        return fail(
            "gpu",
            "this vLLM is the build for GPUs, and no NVIDIA driver tells of one",
            "Check `nvidia-smi`; in a container give `--gpus`. For the CPU: `make clean && make install`.",
        )
    if not hardware.gpus:
        return good("gpu", "none; engines run on the CPU")
    told = f"{', '.join(map(str, hardware.gpus))}, driver {driver}"
    if hardware.cpu_build:
        remedy = "To use it: `make clean && make install-gpu` (docs/deployment_guide.md)."
        return warn("gpu", f"{told}; this vLLM is the build for CPUs", remedy)
    return good("gpu", told)


def driver(cuda: tuple[int, int] | None, runtime: str) -> Finding:
    """`cuda`: the newest that NVIDIA's driver runs. `runtime`: the version that PyTorch brings."""
    wanted = int(runtime.partition(".")[0])
    if cuda is None:
        remedy = "In a container NVIDIA_DRIVER_CAPABILITIES must have `compute`."
        return warn("driver", "does not tell which CUDA it runs", remedy)
    told = f"runs CUDA {cuda[0]}.{cuda[1]}, and PyTorch brings {runtime}"
    if cuda[0] >= wanted:
        return good("driver", told)
    oldest = f"{DRIVERS[wanted]} or later" if wanted in DRIVERS else f"for CUDA {wanted}"
    return fail("driver", told, f"Install NVIDIA's driver {oldest} on the host.")


def shared_memory(free: int) -> Finding:
    told = f"{free / GIB:.2f} GiB free in {SHM_FOLDER}"
    if free >= SHM:
        return good("shm", told)
    return warn("shm", told, "vLLM's processes share tensors there: run with --shm-size=1g.")


def open_files(limit: int) -> Finding:
    if limit >= OPEN_FILES or limit == resource.RLIM_INFINITY:
        return good("open files", f"limit {limit}")
    remedy = f"Raise it: `ulimit -n {OPEN_FILES}`, or LimitNOFILE in the systemd unit."
    return warn("open files", f"limit {limit}", remedy)


def clock(state: int) -> Finding:
    """`state` is what adjtimex(2) returns; a wrong clock breaks tokens, key expiry and daily limits."""
    if state == TIME_ERROR:
        remedy = "Run an NTP client (chrony, systemd-timesyncd) on this machine."
        return warn("clock", "the kernel says that it is not synchronised", remedy)
    if state < 0:
        return warn("clock", "the kernel does not tell", "Check the time by hand: `date -u`.")
    return good("clock", "synchronised")


def _clock_state() -> int:
    state: int = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(TIMEX_BYTES))
    return state


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
