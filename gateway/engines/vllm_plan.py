"""What fits: weights, KV cache and concurrent requests of a profile, by vLLM's own formulae.

The KV cache is computed by the functions that vLLM's engine core calls at its start
(`vllm.v1.core.kv_cache_utils`), so on the CPU, where its size is set, the result is exact; a test holds it
against a running engine. On a GPU it is what `gpu_memory_utilization` leaves after weights, activations and
the process itself (vllm/v1/worker/gpu_worker.py determine_available_memory). vLLM measures the last two;
here they are estimated, and no figure of theirs was ever checked on a GPU.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vllm.utils.torch_utils import STR_DTYPE_TO_TORCH_DTYPE
from vllm.v1.core.kv_cache_utils import (
    estimate_max_model_len,
    get_kv_cache_capacity,
    get_kv_cache_config_from_groups,
    get_max_concurrency_for_kv_cache_config,
    max_memory_usage_bytes,
)
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheGroupSpec, get_kv_quant_mode
from vllm.v1.kv_cache_layout import KVCacheLayout

from engine_config.fitting import CLIENT_BYTES, CPU_ENGINE_BYTES, GPU_ENGINE_BYTES
from engine_config.hardware import here
from engine_config.profile import GB, Profile, card_of
from engine_config.shape import Shape, Weights, cpu_copy_bytes, shape_of, weights_of

# vLLM's defaults: config/cache.py, v1/attention/backends/cpu_attn.py, engine/arg_utils.py get_batch_defaults.
GPU_BLOCK, CPU_BLOCK = 16, 128
UTILIZATION = 0.92
BATCHED_TOKENS = 2048
GPU_SEQS, CPU_SEQS = 256, 128
# An H100's or larger; an A100 of 80 GB has BATCHED_TOKENS too, so its plan is on the safe side.
LARGE_MEMORY, LARGE_BATCH = 70 * 2**30, 8192
LENGTHS = (4096, 16_384, 32_768)
SHORTEST = 1024  # a shorter context helps nobody
# Per token of a step: gate, up and their product in the MLP, and four vectors of the hidden size; 16-bit.
MLP_VECTORS, HIDDEN_VECTORS, ACTIVATION_BYTES = 3, 4, 2
# Per logit of a step: two 32-bit copies, and the sort of top-k and top-p (32-bit value, 64-bit index).
LOGIT_BYTES = 20


@dataclass(frozen=True, slots=True)
class Plan:
    """What a profile needs and gives on a device. All sizes in bytes, all counts in tokens."""

    profile: str
    device: str  # "gpu" or "cpu"
    card: int | None  # GB; which of the profile's cards it is
    memory: int  # of the device
    budget: int | None  # what the engine may use of it; None where only the KV cache is bounded
    weights: int
    weights_source: str
    activations: int  # an estimate
    process: int  # an estimate on a GPU, measured on the CPU
    kv_cache: int
    bytes_per_token: int
    block_size: int
    blocks: int
    kv_tokens: int
    max_model_len: int
    max_num_seqs: int
    concurrent: dict[int, float]  # context length -> requests of that length at once
    missing: int  # what lacks for one request of max_model_len, or for the engine as a whole
    longest: int  # the longest context that fits

    @property
    def fits(self) -> bool:
        return self.missing == 0

    @property
    def total(self) -> int:
        """All that the engine takes."""
        return self.weights + self.activations + self.process + self.kv_cache

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "fits": self.fits, "total": self.total}


def plan(
    profile: Profile,
    location: Path | str,
    gpu_memory_bytes: int | None = None,
    context: int | None = None,
) -> Plan:
    """Plan a profile for a GPU with that much memory, or for the CPU.

    `location` is the model's folder, or any other text where the profile's `shape` is to be used;
    `context` takes the place of the profile's max_model_len.

    Raises:
        ProfileError: the model's shape or format is not known.
    """
    card = card_of(profile.cards, gpu_memory_bytes)
    settings = profile.settings(card)
    shape = shape_of(profile, location)
    weights = weights_of(profile, location, shape)
    frame = _Frame(settings, shape, gpu_memory_bytes, context)
    if not frame.gpu:
        frame.process += cpu_copy_bytes(shape, profile.format or "bf16")
    memory = gpu_memory_bytes or here().memory_bytes
    kv_cache = frame.kv_cache_bytes(memory, weights)
    kv_tokens, blocks = frame.capacity(kv_cache)
    lengths = sorted(
        {*(each for each in LENGTHS if each < frame.max_model_len), frame.max_model_len}
    )
    return Plan(
        profile=profile.name,
        device="gpu" if frame.gpu else "cpu",
        card=card,
        memory=memory,
        budget=frame.budget(memory),
        weights=weights.bytes,
        weights_source=weights.source,
        activations=frame.activations,
        process=frame.process,
        kv_cache=max(0, kv_cache),
        bytes_per_token=frame.bytes_per_token,
        block_size=frame.block_size,
        blocks=blocks,
        kv_tokens=kv_tokens,
        max_model_len=frame.max_model_len,
        max_num_seqs=frame.max_num_seqs,
        concurrent={length: frame.concurrent(kv_cache, length) for length in lengths},
        missing=max(frame.missing_bytes(kv_cache), frame.total(weights, kv_cache) - memory),
        longest=frame.longest(kv_cache),
    )


def remedies(
    profile: Profile, location: Path | str, made: Plan, others: Iterable[tuple[Profile, Path | str]]
) -> list[str]:
    """What would make it fit: a shorter context, a larger card, one of the other profiles."""
    gpu = made.memory if made.device == "gpu" else None
    found = []
    if made.longest >= SHORTEST and made.kv_cache and made.total <= made.memory:
        found.append(f"max_model_len of {made.longest:,}")
    for card in sorted(profile.cards) if gpu else ():
        if card * GB > made.memory and plan(profile, location, card * GB, made.max_model_len).fits:
            found.append(f"a card of {card} GB")
            break
    for other, place in others:
        if other.name != profile.name and plan(other, place, gpu, made.max_model_len).fits:
            found.append(f"profile {other.name}")
    return found


def footprint_bytes(profile: Profile, location: Path | str) -> int:
    """The memory that an engine of the profile takes on this machine, of RAM or of its GPU.

    Weights, KV cache and an estimate for the rest. On a GPU it is at least what `gpu_memory_utilization`
    allows: vLLM fills that up, and wants it free at its start even where the KV cache has a size of its own
    (vllm/v1/worker/utils.py request_memory). On the CPU the gateway's own growth is in it. Raises as `plan`.
    """
    gpu = here().gpu
    if gpu is None:
        return plan(profile, location).total
    made = plan(profile, location, gpu.memory_bytes)
    share: float = profile.settings(made.card).get("gpu_memory_utilization", UTILIZATION)
    return max(made.total, math.ceil(share * gpu.memory_bytes))


class _Frame:
    """A profile's settings with vLLM's defaults filled in, on a device, for a shape."""

    def __init__(
        self, settings: dict[str, Any], shape: Shape, gpu_memory: int | None, context: int | None
    ) -> None:
        self.gpu = gpu = gpu_memory is not None
        large = (gpu_memory or 0) >= LARGE_MEMORY
        self.batch: int = settings.get(
            "max_num_batched_tokens", LARGE_BATCH if large else BATCHED_TOKENS
        )
        self.settings = settings
        self.shape = shape
        self.max_model_len: int = context or settings.get(
            "max_model_len", shape.max_position_embeddings
        )
        self.max_num_seqs: int = settings.get("max_num_seqs", GPU_SEQS if gpu else CPU_SEQS)
        self.block_size: int = settings.get("block_size", GPU_BLOCK if gpu else CPU_BLOCK)
        self.utilization: float = settings.get("gpu_memory_utilization", UTILIZATION)
        self.process = GPU_ENGINE_BYTES if gpu else CPU_ENGINE_BYTES + CLIENT_BYTES
        spec = self._spec()
        self.specs = {f"layer.{index}": spec for index in range(shape.num_hidden_layers)}
        self.block_bytes = spec.page_size_bytes * shape.num_hidden_layers
        self.bytes_per_token = self.block_bytes // self.block_size

    def _spec(self) -> FullAttentionSpec:
        """As vllm/model_executor/layers/attention makes it for a layer that attends to all tokens."""
        cache = self.settings.get("kv_cache_dtype", "auto")
        chosen = self.settings.get("dtype", "auto")
        dtype = STR_DTYPE_TO_TORCH_DTYPE[self.shape.dtype if chosen == "auto" else chosen]
        return FullAttentionSpec(
            block_size=self.block_size,
            num_kv_heads=self.shape.num_key_value_heads,
            head_size=self.shape.head_dim,
            dtype=dtype if cache == "auto" else STR_DTYPE_TO_TORCH_DTYPE[cache],
            kv_quant_mode=get_kv_quant_mode(cache),
        )

    @property
    def activations(self) -> int:
        """The larger of a step's MLP and its sampler, at the most tokens and requests it may hold."""
        vectors = (
            MLP_VECTORS * self.shape.intermediate_size + HIDDEN_VECTORS * self.shape.hidden_size
        )
        sampler = self.max_num_seqs * self.shape.vocab_size * LOGIT_BYTES
        return int(max(self.batch * vectors * ACTIVATION_BYTES, sampler))

    def budget(self, memory: int) -> int | None:
        """vllm/v1/worker/utils.py request_memory, which a size that is set by itself goes past."""
        if "kv_cache_memory_bytes" in self.settings:
            return None
        return math.ceil(memory * self.utilization)

    def kv_cache_bytes(self, memory: int, weights: Weights) -> int:
        """What is left for the KV cache; below zero where not even the weights fit."""
        if (fixed := self.settings.get("kv_cache_memory_bytes")) is not None:
            return int(fixed)
        budget = math.ceil(memory * self.utilization)
        return budget - weights.bytes - self.activations - self.process

    def total(self, weights: Weights, kv_cache: int) -> int:
        return weights.bytes + self.activations + self.process + max(0, kv_cache)

    def _config(self, length: int | None = None) -> Any:
        """The few fields of a VllmConfig that vLLM's functions read here; a real one needs the model."""
        return SimpleNamespace(
            model_config=SimpleNamespace(max_model_len=length or self.max_model_len),
            parallel_config=SimpleNamespace(decode_context_parallel_size=1),
            attention_config=SimpleNamespace(hisparse_config=None),
            cache_config=SimpleNamespace(
                num_gpu_blocks_override=self.settings.get("num_gpu_blocks_override"),
                prefix_cache_retention_interval=0,
                # Which one does not matter where all layers are alike.
                get_resolved_kv_cache_layout=lambda: KVCacheLayout.LBNHC,
            ),
        )

    def _made(self, kv_cache: int, config: Any) -> Any:
        group = KVCacheGroupSpec(list(self.specs), next(iter(self.specs.values())))
        return get_kv_cache_config_from_groups(config, [group], max(0, kv_cache))

    def capacity(self, kv_cache: int) -> tuple[int, int]:
        """Tokens and blocks, as vLLM finds and logs them."""
        config = self._config()
        made = self._made(kv_cache, config)
        tokens, _ = get_kv_cache_capacity(config, made)
        return int(tokens), int(made.num_blocks)

    def concurrent(self, kv_cache: int, length: int) -> float:
        """Requests of that length that the cache holds at once."""
        config = self._config(length)
        made = self._made(kv_cache, config)
        return round(float(get_max_concurrency_for_kv_cache_config(config, made)), 2)

    def missing_bytes(self, kv_cache: int) -> int:
        """What lacks for one request of the whole length; vLLM refuses to start then.

        vLLM keeps one block for itself (get_kv_cache_configs, "the null block").
        """
        needed = max_memory_usage_bytes(self._config(), self.specs.values()) + self.block_bytes
        return max(0, int(needed) - kv_cache)

    def longest(self, kv_cache: int) -> int:
        """The longest context that would fit, up to the one that is set."""
        usable = kv_cache - self.block_bytes
        return int(estimate_max_model_len(self._config(), self.specs, usable)) if usable > 0 else 0
