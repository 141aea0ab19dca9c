"""A change of engine as the operator sees it: what is being done, how far it is, how it ended."""

import time
import uuid
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

Way = Literal["auto", "blue_green", "park", "in_place"]


class Phase(StrEnum):
    QUEUED = "queued"  # another change is under way
    LOCATING = "locating"  # the checkpoint is found, or built
    CHECKING = "checking"  # does it fit, and which way is taken
    DRAINING = "draining"  # the last requests of the old engine run
    CLOSING = "closing"  # the old engine shuts down
    LOADING = "loading"  # the new engine starts
    RELOADING = "reloading"  # new weights go into the running engine
    WARMING_UP = "warming_up"  # a first answer, not shown to anybody
    RESTORING = "restoring"  # the old engine is started again, or gets its weights back
    DONE = "done"


@dataclass
class Operation:
    """One switch. Times are seconds since the epoch in `body()`, monotonic inside."""

    model: str
    profile: str
    before: str  # the profile it replaces
    asked: Way
    id: str = field(default_factory=lambda: f"switch-{uuid.uuid4().hex[:12]}")
    way: str | None = None
    why: str = ""  # this way
    state: Literal["running", "succeeded", "failed", "cancelled"] = "running"
    phase: Phase = Phase.QUEUED
    published: bool = False  # the new engine serves; from here on there is no way back
    error: str | None = None
    notes: list[str] = field(default_factory=list)
    detail: str = ""  # of the phase: "downloading ...", "3 requests left"
    expected_s: float | None = None  # how long this phase usually takes
    created: float = field(default_factory=time.time)
    phases: list[tuple[Phase, float]] = field(default_factory=list)
    ended: float | None = None

    def __post_init__(self) -> None:
        self.enter(Phase.QUEUED)

    def enter(self, phase: Phase, expected_s: float | None = None) -> None:
        """The next phase begins."""
        self.phase, self.detail, self.expected_s = phase, "", expected_s
        self.phases.append((phase, time.monotonic()))

    def end(self, state: Literal["succeeded", "failed", "cancelled"], error: str | None) -> None:
        """Nothing more happens."""
        self.enter(Phase.DONE)
        self.state, self.error, self.ended = state, error, time.time()

    def seconds(self) -> dict[str, float]:
        """How long each phase took, or takes so far."""
        ends = [at for _, at in self.phases[1:]] + [time.monotonic()]
        spans = zip(self.phases, ends, strict=True)
        taken: dict[str, float] = {}
        for (phase, began), end in spans:
            if phase is not Phase.DONE:
                taken[phase.value] = round(taken.get(phase.value, 0.0) + end - began, 3)
        return taken

    def body(self) -> dict[str, Any]:
        """As the admin API tells it."""
        return {
            "id": self.id,
            "object": "operation",
            "kind": "switch",
            "model": self.model,
            "from_profile": self.before,
            "to_profile": self.profile,
            "state": self.state,
            "phase": self.phase.value,
            "phase_detail": self.detail,
            "phase_expected_s": self.expected_s,
            "phase_seconds": self.seconds(),
            "way": self.way,
            "why": self.why,
            "published": self.published,
            "error": self.error,
            "notes": list(self.notes),
            "created": round(self.created, 3),
            "ended": None if self.ended is None else round(self.ended, 3),
        }
