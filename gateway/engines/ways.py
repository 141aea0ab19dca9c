"""Which way a switch takes, and why: a decision on plain data."""

from dataclasses import dataclass
from pathlib import Path

from engine_config.profile import Profile
from engine_config.weights import tensors
from gateway.engines.operation import Way
from gateway.engines.slot import Slot

GIB = 1024**3
# What the gateway has read of a model folder besides its weights; all must be the same for `in_place`.
READ_ONCE = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
UNQUANTISED = ("bfloat16", "float16", "float32")
SAME = {
    "name",
    "title",
    "model",
    "calibration",
    "format",
    "rank",
    "elsewhere",
    "shape",
}  # of a profile, what may differ


class NoWay(Exception):
    """The switch cannot be made; the message says why and what would help."""


@dataclass(frozen=True)
class Room:
    """Memory in bytes, by the estimate of `gateway profiles plan`."""

    need: int  # of the new engine
    held: int  # by the model's engines now
    free: int | None  # on the device now; None: nobody can tell
    budget: int | None  # the operator's, for all engines together
    others: int = 0  # by the engines of other models

    def beside(self) -> str | None:
        """None if both engines fit at once, else why not."""
        together = self.others + self.held + self.need
        if self.budget is not None and together > self.budget:
            return (
                f"with it all engines need {_gib(together)}, and GATEWAY_ENGINE_MEMORY_BYTES allows "
                f"{_gib(self.budget)}"
            )
        if self.free is None and self.budget is None:
            return "how much is free cannot be told; GATEWAY_ENGINE_MEMORY_BYTES would"
        if self.free is not None and self.need > self.free:
            return f"the new engine needs {_gib(self.need)} and {_gib(self.free)} are free"
        return None

    def alone(self) -> str | None:
        """None if it fits once the old engine is gone, else why not."""
        together = self.others + self.need
        if self.budget is not None and together > self.budget:
            return (
                f"with it all engines need {_gib(together)}, and GATEWAY_ENGINE_MEMORY_BYTES allows "
                f"{_gib(self.budget)}"
            )
        if self.free is not None and self.need > self.free + self.held:
            return (
                f"it needs {_gib(self.need)}; {_gib(self.free + self.held)} would be free with the "
                "present engine gone"
            )
        return None


def choose(
    asked: Way, room: Room, old: Slot | None, new: tuple[Profile, Path | str]
) -> tuple[str, str]:
    """The way and the reason in words.

    Raises:
        NoWay: it fits neither beside nor alone, or the way that was asked for is not open.
    """
    if old is None or old.engine.dead():
        return "blue_green", "there is no engine in service to wait for"
    not_in_place = why_not_in_place(old, *new)
    if asked == "in_place" and not_in_place:
        raise NoWay(f"in_place is not possible: {not_in_place}")
    if asked in ("auto", "in_place") and not_in_place is None:
        return "in_place", "same shape and settings, unquantised: only the weights differ"
    if reason := room.alone():
        name = new[0].name
        raise NoWay(
            f"profile {name} does not fit: {reason}. `gateway profiles plan {name}` says what would"
        )
    return _by_memory(asked, room)


def _by_memory(asked: Way, room: Room) -> tuple[str, str]:
    crowded = room.beside()
    if asked == "blue_green" and crowded:
        raise NoWay(f"blue_green is not possible: {crowded}")
    if asked == "park":
        return "park", "asked for"
    if crowded:
        return "park", f"memory does not hold both: {crowded}"
    return "blue_green", f"memory holds both: the new engine needs {_gib(room.need)}"


def why_not_in_place(old: Slot, profile: Profile, location: Path | str) -> str | None:
    """None if only weights differ, and vLLM can replace them in a running engine."""
    if old.engine.format not in UNQUANTISED:
        return f"vLLM cannot replace quantised weights ({old.engine.format}) in a running engine"
    if not isinstance(location, Path) or not isinstance(old.location, Path):
        return "the weights are not in a folder of this machine"
    if old.location == location:
        return "it is the same folder; an engine of its own shows what changed in it"
    if profile.model_dump(exclude=SAME) != old.profile.model_dump(exclude=SAME):
        return "the profiles differ in more than the model's place"
    for name in READ_ONCE:
        if _bytes(old.location / name) != _bytes(location / name):
            return f"{name} differs"
    if tensors(old.location) != tensors(location):
        return "the weights have other names, shapes or types"
    return None


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
