"""Which CPU cores an engine is bound to, so that two that overlap do not fight for the same ones."""

from collections.abc import Sequence


class CoreSets:
    """The sets of `GATEWAY_SLOT_CORES`. An engine takes a free one and gives it back at its end."""

    def __init__(self, sets: Sequence[str] = ()) -> None:
        self._free = list(sets)

    def take(self) -> str | None:
        """A free set; None when none is left, or none was configured: then an engine is not bound."""
        return self._free.pop(0) if self._free else None

    def give_back(self, cores: str | None) -> None:
        if cores is not None:
            self._free.append(cores)
