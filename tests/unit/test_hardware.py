"""What a machine is, read from made-up files and a made-up driver, and which profile fits it."""

import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine_config import hardware
from engine_config.fitting import obstacle, suggestion
from engine_config.hardware import (
    GIB,
    Gpu,
    GpuLoad,
    Groups,
    Hardware,
    card_here,
    check_device,
    here,
)
from engine_config.profile import GB, ProfileError, available, load

LAPTOP = Hardware(cores=4, memory_bytes=8 * GIB, vectors="AVX2")
BOX = Hardware(cores=2, memory_bytes=24 * GIB, vectors="AVX-512")
L4 = Gpu("NVIDIA L4", 24_152_899_584, (8, 9))
SERVER = Hardware(16, 64 * GIB, "AVX-512", (L4,), cpu_build=False)
PROFILES = [load(name) for name in available()]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def groups(root: Path, membership: str) -> Groups:
    write(root / "membership", membership)
    return Groups(root / "cgroup", root / "membership")


def test_the_least_limit_of_a_group_and_those_above_counts(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    write(root / "a" / "b" / "memory.max", "max\n")
    write(root / "a" / "memory.max", f"{4 * GIB}\n")
    write(root / "memory.max", f"{8 * GIB}\n")
    write(root / "a" / "b" / "cpu.max", "150000 100000\n")
    write(root / "cpu.max", "max 100000\n")

    found = groups(tmp_path, "0::/a/b\n")

    assert (found.memory_bytes(), found.cores()) == (4 * GIB, 1.5)


def test_version_one_keeps_a_tree_for_each_controller(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    write(root / "memory" / "job" / "memory.limit_in_bytes", f"{2 * GIB}\n")
    write(root / "cpu" / "cpu.cfs_quota_us", "-1\n")
    write(root / "cpu" / "cpu.cfs_period_us", "100000\n")

    found = groups(tmp_path, "4:memory:/job\n2:cpu,cpuacct:/\n0::/\n")

    assert (found.memory_bytes(), found.cores()) == (2 * GIB, math.inf)


def test_without_groups_nothing_is_limited(tmp_path: Path) -> None:
    found = Groups(tmp_path / "nothing", tmp_path / "nobody")

    assert (found.memory_bytes(), found.cores()) == (math.inf, math.inf)


def test_what_is_left_counts_pages_of_files_as_free(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    write(root / "a" / "memory.max", f"{4 * GIB}\n")
    write(root / "a" / "memory.current", f"{3 * GIB}\n")
    write(root / "a" / "memory.stat", f"anon {2 * GIB}\ninactive_file {GIB}\n")
    write(root / "memory.max", "max\n")
    write(root / "memory.current", f"{9 * GIB}\n")
    write(root / "memory.stat", "anon 1\n")

    assert groups(tmp_path, "0::/a\n").memory_left() == 2 * GIB
    assert Groups(tmp_path / "nothing", tmp_path / "nobody").memory_left() == math.inf


def test_what_version_one_leaves(tmp_path: Path) -> None:
    root = tmp_path / "cgroup" / "memory" / "job"
    write(root / "memory.limit_in_bytes", f"{2 * GIB}\n")
    write(root / "memory.usage_in_bytes", f"{GIB}\n")
    write(root / "memory.stat", "total_inactive_file 5\n")

    assert groups(tmp_path, "4:memory:/job\n").memory_left() == GIB + 5


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu avx2 avx512f", "AVX-512"), ("fpu avx avx2", "AVX2"), ("fpu avx", "")],
)
def test_vectors_are_read_from_the_processors_flags(
    tmp_path: Path, flags: str, expected: str
) -> None:
    write(tmp_path / "cpuinfo", f"model name\t: X\nflags\t\t: {flags}\n")

    assert hardware.vectors(tmp_path / "cpuinfo") == expected
    assert hardware.vectors(tmp_path / "nothing") == ""


class NoDriver(Exception):
    pass


def driver(*gpus: Gpu) -> Any:
    """NVIDIA's module, as far as it is used."""

    def start() -> None:
        if not gpus:
            raise NoDriver

    return SimpleNamespace(
        NVMLError=NoDriver,
        nvmlInit=start,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: len(gpus),
        nvmlDeviceGetHandleByIndex=lambda index: gpus[index],
        nvmlDeviceGetMemoryInfo=lambda gpu: SimpleNamespace(
            total=gpu.memory_bytes, free=gpu.memory_bytes // 4, used=gpu.memory_bytes * 3 // 4
        ),
        NVML_TEMPERATURE_GPU=0,
        nvmlDeviceGetIndex=lambda gpu: gpus.index(gpu),
        nvmlDeviceGetTemperature=lambda gpu, sensor: 61,
        nvmlDeviceGetUtilizationRates=lambda gpu: SimpleNamespace(gpu=87),
        nvmlDeviceGetCudaComputeCapability=lambda gpu: gpu.capability,
        nvmlDeviceGetName=lambda gpu: gpu.name,
        nvmlSystemGetCudaDriverVersion_v2=lambda: 12090,
    )


def test_the_gpu_that_engines_use_tells_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_nvml", lambda: driver(L4, A100))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    free = hardware.free_bytes("cuda")
    monkeypatch.setattr(hardware, "_nvml", driver)

    assert (free, hardware.free_bytes("cuda")) == (A100.memory_bytes // 4, None)
    assert (hardware.free_bytes("cpu") or 0) > 0


def test_the_driver_tells_which_cuda_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_nvml", lambda: driver(L4))
    told = hardware.driver_cuda()
    monkeypatch.setattr(hardware, "_nvml", driver)

    assert (told, hardware.driver_cuda()) == ((12, 9), None)


A100 = Gpu("NVIDIA A100-SXM4-80GB", 85_899_345_920, (8, 0))


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, [L4, A100]),
        ("1", [A100]),
        ("1,0", [A100, L4]),
        ("", []),
        ("0,-1,1", [L4]),
        ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", [L4, A100]),
    ],
)
def test_gpus_are_those_that_cuda_would_see(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: list[Gpu]
) -> None:
    monkeypatch.setattr(hardware, "_nvml", lambda: driver(L4, A100))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    assert hardware._gpus() == expected


def test_a_gpu_tells_how_it_is_doing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_nvml", lambda: driver(L4, A100))

    loads = hardware.gpu_loads()

    used, total = L4.memory_bytes * 3 // 4, L4.memory_bytes
    assert loads[0] == GpuLoad(0, used, total, 61, 0.87)
    assert [load.index for load in loads] == [0, 1]


def test_a_part_of_a_gpu_has_memory_and_no_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any) -> None:
        raise NoDriver

    nvml = driver(L4)
    nvml.nvmlDeviceGetTemperature = nvml.nvmlDeviceGetUtilizationRates = unknown
    monkeypatch.setattr(hardware, "_nvml", lambda: nvml)

    (load,) = hardware.gpu_loads()

    assert (load.temperature_celsius, load.utilization_ratio) == (None, None)
    assert load.memory_total_bytes == L4.memory_bytes


@pytest.mark.parametrize("nvml", [None, driver()])
def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch, nvml: Any) -> None:
    monkeypatch.setattr(hardware, "_nvml", lambda: nvml)

    assert hardware._gpus() == []


def test_a_driver_that_does_not_tell_is_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(_: Gpu) -> None:
        raise NoDriver

    nvml = driver(L4)
    nvml.nvmlDeviceGetMemoryInfo = silent
    monkeypatch.setattr(hardware, "_nvml", lambda: nvml)

    assert hardware._gpus() == []


def test_this_machine_is_found_without_torch_or_vllm() -> None:
    code = (
        "import sys; from engine_config.fitting import suggestion; "
        "from engine_config.hardware import here; from engine_config.profile import available, load; "
        "sys.stdout.write(suggestion(map(load, available()), here())); "
        "sys.exit(bool({'torch', 'vllm', 'transformers', 'numpy'} & {*sys.modules}))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"hardware: {here().cores} cores, ")


@pytest.mark.parametrize(
    ("name", "machine", "expected"),
    [
        ("demo", BOX, None),
        ("demo", LAPTOP, None),
        ("demo", SERVER, None),
        ("demo-int8", LAPTOP, None),
        ("demo-gptq-int4", LAPTOP, "needs AVX-512"),
        ("demo-gptq-int4", BOX, None),
        ("qwen3-0.6b", LAPTOP, None),
        ("qwen3-0.6b", Hardware(2, 4 * GIB, "AVX2"), "needs 6.7 GiB RAM"),
        ("qwen3-0.6b", SERVER, "made for a CPU"),
        ("qwen3-0.6b-gptq-int8", BOX, "needs a GPU"),
        ("qwen3-0.6b-gptq-int8", SERVER, None),
        ("qwen3-4b-thinking-bf16", BOX, "made for a GPU"),
        ("qwen3-4b-thinking-bf16", SERVER, None),
        (
            "qwen3-4b-thinking-bf16",
            Hardware(8, 32 * GIB, "AVX2", (Gpu("small", 8 * GB, (8, 6)),), cpu_build=False),
            "needs a GPU of 16 GB",
        ),
        (
            "qwen3-4b-thinking-int4",
            Hardware(8, 32 * GIB, "AVX2", (Gpu("V100", 17 * GB, (7, 0)),), cpu_build=False),
            "needs compute capability 7.5",
        ),
    ],
)
def test_what_keeps_a_profile_from_fitting_is_said(
    name: str, machine: Hardware, expected: str | None
) -> None:
    assert obstacle(load(name), machine) == expected


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        (
            BOX,
            "hardware: 2 cores, AVX-512, 24 GiB RAM, no GPU: profile demo fits; "
            "with internet qwen3-0.6b is the next step",
        ),
        (
            SERVER,
            "hardware: 16 cores, AVX-512, 64 GiB RAM, NVIDIA L4 (24 GB): profile demo fits; "
            "with internet qwen3-4b-thinking-bf16 is the next step",
        ),
        (
            Hardware(4, 16 * GIB, "AVX2", (L4,)),
            "hardware: 4 cores, AVX2, 16 GiB RAM, NVIDIA L4 (24 GB) (not used: this vLLM is the build "
            "for CPUs): profile demo fits; with internet qwen3-0.6b is the next step",
        ),
        (
            Hardware(1, 1 * GIB, ""),
            "hardware: 1 cores, 1 GiB RAM, no GPU: no shipped profile fits",
        ),
    ],
)
def test_one_line_says_what_is_here_and_what_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: Hardware, expected: str
) -> None:
    monkeypatch.setenv("GATEWAY_CACHE_DIR", str(tmp_path))

    assert suggestion(PROFILES, machine) == expected


def test_a_model_that_somebody_made_is_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_CACHE_DIR", str(tmp_path))
    write(tmp_path / "models" / "qwen3-4b-thinking-awq-int4" / "config.json", "{}")

    assert "profile qwen3-4b-thinking-awq-int4 fits" in suggestion(PROFILES, SERVER)


def test_a_profile_is_refused_on_the_other_device_with_what_to_take() -> None:
    check_device(load("qwen3-0.6b"), BOX)
    check_device(load("demo"), SERVER)

    with pytest.raises(ProfileError, match="for a GPU, and an engine would run on the CPU here"):
        check_device(load("qwen3-0.6b-gptq-int8"), BOX)
    with pytest.raises(ProfileError, match=r"On a GPU take qwen3-0\.6b-gptq-int8"):
        check_device(load("qwen3-0.6b"), SERVER)


def test_the_card_is_that_of_the_gpu_an_engine_would_use() -> None:
    profile = load("qwen3-4b-thinking-int8")

    assert card_here(profile, SERVER) == 24
    assert card_here(profile, BOX) is None
    assert card_here(load("demo"), SERVER) is None
