"""Steps that are done in order and undone in reverse; and those that every target has."""

import asyncio
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from gateway.deploy.config import DeployError
from gateway.validate.report import Report
from gateway.validate.run import run
from gateway.validate.target import Address, TargetError, opened

CROWD = 4
PRIVATE = 0o600
TOOL_S = 60
Tell = Callable[[str], None]


class NotUndone(DeployError):
    """It failed, and not all is as it was before."""


class Step(Protocol):
    """`plan` is what a dry run shows. `undo` may be called after half a `do`, and never raises for that."""

    @property
    def plan(self) -> str: ...

    def do(self) -> str:
        """What was done, in a few words. Raises DeployError."""
        ...

    def undo(self) -> None: ...


def carry_out(steps: Sequence[Step], tell: Tell) -> None:
    """All of them, or none: what fails is undone, and everything before it, in reverse.

    Raises:
        DeployError: of the step that failed, after the rest was undone.
        NotUndone: the same, and of what could not be undone.
    """
    begun: list[Step] = []
    try:
        for step in steps:
            begun.append(step)
            tell(step.do())
    except BaseException as error:  # also Ctrl-C
        if left := undone(begun):
            why = str(error) or type(error).__name__
            raise NotUndone(f"{why}; and could not be undone: {'; '.join(left)}") from error
        raise


def undone(steps: Sequence[Step]) -> list[str]:
    """All of them in reverse, whatever becomes of one; what could not be, and why."""
    left = []
    for step in reversed(steps):
        try:
            step.undo()
        except Exception as error:  # noqa: BLE001 - the rest must be undone all the same
            left.append(f"{step.plan}: {error}")
    return left


@dataclass
class Files:
    """Files that are written whole, for their owner only, and put back as they were."""

    contents: Mapping[Path, str]
    mode: Mapping[Path, int] = field(default_factory=dict)
    before: dict[Path, tuple[str, int] | None] = field(default_factory=dict)

    @property
    def plan(self) -> str:
        return f"write {', '.join(map(str, self.contents))}"

    def do(self) -> str:
        try:
            for path, text in self.contents.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                there = path.is_file()
                self.before[path] = (
                    (path.read_text(encoding="utf-8"), path.stat().st_mode) if there else None
                )
                put(path, text, self.mode.get(path, PRIVATE))
        except OSError as error:
            raise DeployError(f"{error.filename} cannot be written: {error.strerror}") from error
        return f"written: {', '.join(map(str, self.contents))}"

    def undo(self) -> None:
        """Each one, whatever becomes of another. Raises DeployError that names those that are not back."""
        left = []
        for path, was in self.before.items():
            try:
                if was is None:
                    path.unlink(missing_ok=True)
                else:
                    put(path, *was)
            except OSError as error:
                left.append(f"{path} is not as it was: {error.strerror}")
        if left:
            raise DeployError("; ".join(left))


def put(path: Path, text: str, mode: int) -> None:
    """In one step, so that nobody reads half of it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    Path(name).chmod(mode & 0o777)
    os.replace(name, path)


@dataclass(frozen=True)
class Tool:
    """A program that must be there and answer."""

    command: Sequence[str]
    remedy: str

    @property
    def plan(self) -> str:
        return f"see that `{shlex.join(self.command)}` works"

    def do(self) -> str:
        if shutil.which(self.command[0]) is None:
            raise DeployError(f"{self.command[0]} is not installed. {self.remedy}")
        try:
            told = called(self.command, TOOL_S)
        except DeployError as error:
            raise DeployError(f"{error}. {self.remedy}") from error
        return f"{shlex.join(self.command)}: {told.strip().splitlines()[0] if told.strip() else 'good'}"

    def undo(self) -> None:
        pass


def called(command: Sequence[str], within_s: float, more: Mapping[str, str] | None = None) -> str:
    """The output of a program. Raises DeployError with its last lines if it fails."""
    environment = {**os.environ, **(more or {})}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=within_s, check=False, env=environment
        )
    except subprocess.TimeoutExpired as error:
        raise DeployError(f"`{shlex.join(command)}` did not end within {within_s:.0f} s") from error
    if done.returncode:
        said = " / ".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise DeployError(f"`{shlex.join(command)}` failed: {said}")
    return done.stdout


@dataclass(frozen=True)
class Validated:
    """The gateway answers as documented; the report goes into the folder."""

    address: Address
    key: str | None
    wait_s: float
    folder: Path

    @property
    def plan(self) -> str:
        return f"gateway validate --url {self.address.url} --out {self.folder}"

    def do(self) -> str:
        try:
            report = asyncio.run(self._report())
        except TargetError as error:
            raise DeployError(str(error)) from error
        written = report.write(self.folder)
        if report.failed:
            first = report.failed[0]
            raise DeployError(
                f"{len(report.failed)} checks failed, the first: {first.group} {first.name}: {first.told}"
            )
        return f"validated: {len(report.outcomes)} checks passed; {written[0]}"

    async def _report(self) -> Report:
        async with opened(self.address, self.key, None, self.wait_s) as target:
            return await run(target, None, CROWD, lambda text, fraction: None)

    def undo(self) -> None:
        pass
