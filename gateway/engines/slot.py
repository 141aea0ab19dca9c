"""One loaded engine in service, and what is known of the model in it."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from engine_config.fingerprint import fingerprint
from engine_config.profile import HubModel, Profile
from gateway.engines.types import Engine
from gateway.policy.places import Places
from gateway.thinking.calibration import Calibration, fitting


class State(StrEnum):
    LOADING = "loading"
    READY = "ready"
    SWITCHING = "switching"  # requests wait while the engine is replaced or its weights are
    HUNG = "hung"  # requests run, no token comes
    DEAD = "dead"


@dataclass(frozen=True)
class Facts:
    """Which model it is, whatever its folder is called, and the calibration made for it."""

    fingerprint: str
    calibration: Calibration | None  # of confidence; None: none that fits this model

    @classmethod
    def of(cls, profile: Profile, location: Path | str) -> "Facts":
        """Reads some files of the model.

        Raises:
            CalibrationError: the profile names a calibration that is not of this model.
        """
        model = profile.model
        revision = model.revision if isinstance(model, HubModel) else ""
        print_ = fingerprint(location, revision)
        path = profile.calibration
        return cls(print_, fitting(path, print_) if path is not None else None)


@dataclass
class Slot:
    """One engine in service. `in_flight` counts requests inside it, streams included."""

    engine: Engine
    profile: Profile
    location: Path | str
    facts: Facts
    card: dict[str, Any]  # the entry of `/v1/models`
    number: int = 1  # of the model's engines since the start; tells it from the one before
    cores: str | None = None  # it is bound to, as "0-3,8"
    start_s: float = 5.0  # how long its start took; its successor's will be alike
    in_flight: int = 0
    places: Places = field(default_factory=Places)  # for requests that generate
    killed: bool = False  # because it hung; it will be seen as dead in a moment

    @property
    def format(self) -> str:
        """The profile's word for the weights' format, else the engine's."""
        return self.profile.format or self.engine.format

    def labels(self) -> Mapping[str, str]:
        """Of metrics: which engine served."""
        return {
            "profile": self.profile.name,
            "format": self.format,
            "slot": str(self.number),
        }

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the slot for one request, until the engine has nothing more to say to it."""
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1


@dataclass(frozen=True)
class Seat:
    """A request's place in a slot. `engine` has the adapter that the request named, if any."""

    slot: Slot
    engine: Engine
    name: str  # of the model, or of the adapter, as the caller knows it
    priority: int = 0  # for the engine's own scheduler; lower is earlier
