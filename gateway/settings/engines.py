"""Engines, their profiles and their switching."""

from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, NoDecode


class Engines(BaseSettings):
    profiles: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("demo",),
        min_length=1,
        description="Profiles to serve, comma-separated; the first is the default model.",
    )
    profiles_dir: Path | None = Field(
        default=None,
        description="A folder of your own profiles, looked at before the shipped ones.",
    )
    engine_hang_s: float = Field(
        default=120,
        gt=0,
        description="Requests run but no token came for this long: not ready. Twice as long: restart.",
    )
    engine_start_s: float = Field(
        default=1800,
        gt=0,
        description="An engine that is not up after so long, with its weights on this machine, is given up: "
        "a failed start.",
    )
    rebuild_backoff_s: float = Field(
        default=1, ge=0, description="Wait before rebuilding a dead engine; doubles up to a minute."
    )
    rebuild_attempts: int = Field(
        default=5, ge=1, description="Failed rebuilds in a row after which /health/live fails."
    )
    switch_profiles: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Profiles that a model may be switched to, comma-separated. Unset: all that serve "
        "its name.",
    )
    switch_drain_s: float = Field(
        default=1800,
        gt=0,
        description="In a switch: how long running requests may take to finish on the old engine, seconds. "
        "While new ones wait for them: at most half of GATEWAY_PARK_TIMEOUT_S.",
    )
    max_parked: int = Field(
        default=1024,
        ge=0,
        description="Most requests that wait while an engine is replaced with no room for two; above: 503.",
    )
    park_timeout_s: float = Field(
        default=600, gt=0, description="How long one of them waits before it gets 503, seconds."
    )
    engine_memory_bytes: int | None = Field(
        default=None,
        ge=1,
        description="Most memory that all engines together may take. Unset: what the machine has free.",
    )
    slot_cores: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Sets of CPU cores, as 0-3;4-7: each engine is bound to a free one, so two do not "
        "share cores while they overlap. Unset: not bound.",
    )
    adapters_dir: Path | None = Field(
        default=None,
        description="A folder whose subfolders are LoRA adapters that may be loaded by name.",
    )
