"""Which profile fits a machine. A quick estimate at every start; `gateway profiles plan` computes."""

from collections.abc import Iterable

from engine_config.build import registry
from engine_config.build.cache import ModelCacheError
from engine_config.hardware import GIB, Gpu, Hardware
from engine_config.profile import GB, BuiltModel, FolderModel, HubModel, Profile, card_of
from engine_config.shape import LINEAR, cpu_copy_bytes, shipped, weight_bytes

# vLLM's int4 op for the CPU is in its AVX-512 library only (_C.abi3.so, not _C_AVX2.abi3.so).
AVX512_FORMATS = frozenset({"gptq-int4", "awq-int4", "int4"})
# No CPU kernel: vllm/model_executor/kernels/linear/mixed_precision/cpu.py is for 4 bits only.
GPU_FORMATS = frozenset({"gptq-int8", "fp8"})
# Kernels of the quantised formats: vllm/model_executor/layers/quantization, get_min_capability.
TURING = (7, 5)
# The rest is for other programs and the page cache; no more than a rule of thumb.
RAM_SHARE = 0.8
# Measured on 2 cores, PSS of EngineCore less weights and KV cache: 776 MB with the demo profile, 702 to
# 729 MB with nano-qwen3.
CPU_ENGINE_BYTES = 800_000_000
# What the gateway grows by for a tokenizer of 150,000 tokens: 1,007 MB with nano-qwen3, 614 with demo.
CLIENT_BYTES = 400_000_000
# CUDA context, libraries and graphs. An assumption: nothing here was run on a GPU.
GPU_ENGINE_BYTES = 2 * GIB


def obstacle(profile: Profile, hardware: Hardware) -> str | None:
    """Why the profile does not fit this machine; None where it does."""
    if hardware.gpu is None:
        return _on_cpu(profile, hardware)
    return _on_gpu(profile, hardware.gpu)


def _on_cpu(profile: Profile, hardware: Hardware) -> str | None:
    if profile.device == "gpu" or profile.format in GPU_FORMATS:
        return "needs a GPU"
    if profile.cards:
        return "made for a GPU"
    if profile.format in AVX512_FORMATS and hardware.vectors != "AVX-512":
        return "needs AVX-512"
    cache = profile.settings().get("kv_cache_memory_bytes", 0)
    need = known_bytes(profile) + cache + CPU_ENGINE_BYTES + CLIENT_BYTES
    if profile.shape is not None:
        need += cpu_copy_bytes(shipped(profile), profile.format or "bf16")
    room = hardware.memory_bytes * RAM_SHARE
    return None if need <= room else f"needs {need / RAM_SHARE / GIB:.1f} GiB RAM"


def _on_gpu(profile: Profile, gpu: Gpu) -> str | None:
    if profile.device == "cpu":
        return "made for a CPU"
    if profile.format not in (None, "bf16") and gpu.capability < TURING:
        return "needs compute capability 7.5"
    if profile.cards and card_of(profile.cards, gpu.memory_bytes) is None:
        return f"needs a GPU of {min(profile.cards)} GB"
    need = known_bytes(profile) + GPU_ENGINE_BYTES
    return None if need <= gpu.memory_bytes else f"needs a GPU of {need / GB:.0f} GB"


def known_bytes(profile: Profile) -> int:
    """The size of the weights as far as it is known without the model; 0 if not at all."""
    if isinstance(profile.model, BuiltModel):
        try:
            return registry.recipe(profile.model.name).bytes
        except ModelCacheError:
            return 0
    if profile.shape is None or (profile.format or "bf16") not in LINEAR:
        return 0
    return weight_bytes(shipped(profile), profile.format or "bf16")


def suggestion(profiles: Iterable[Profile], hardware: Hardware) -> str:
    """One line: what this machine is, the best profile that needs no download, the best that does."""
    fit = [profile for profile in profiles if profile.rank and obstacle(profile, hardware) is None]
    fit.sort(key=lambda profile: profile.rank)
    at_hand = [each for each in fit if not isinstance(each.model, HubModel) and present(each)]
    online = [each for each in fit if isinstance(each.model, HubModel)]
    parts = [f"profile {at_hand[-1].name} fits"] if at_hand else []
    if online and (not at_hand or online[-1].rank > at_hand[-1].rank):
        parts.append(f"with internet {online[-1].name} is the next step")
    return f"hardware: {hardware}: {'; '.join(parts) or 'no shipped profile fits'}"


def present(profile: Profile) -> bool:
    """Its model is on this machine, or is built here when it is needed."""
    model = profile.model
    if isinstance(model, FolderModel):
        return (model.folder / "config.json").is_file()
    return isinstance(model, BuiltModel)
