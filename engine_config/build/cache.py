"""The model cache: folders that are complete or absent, never half there.

    <cache root>/models/
      smollm2-135m-v1/            a finished model with its MANIFEST.json
      .smollm2-135m-v1.lock       held while somebody builds it
      .smollm2-135m-v1.x7f3.tmp/  a build in progress, or what a crash left of one

A build fills a staging folder on the same file system and is renamed into place as its last
step. Builders are serialised by `filelock` (vLLM depends on it, so it is always there): the
kernel frees the lock of a process that dies, so whoever holds it may sweep every staging folder
of that model.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version as library_version
from pathlib import Path
from typing import Any

from filelock import FileLock

MANIFEST = "MANIFEST.json"
MANIFEST_FORMAT = 1
# What a user may do when the disk of the folder does not take a model.
OTHER_CACHE = "set GATEWAY_CACHE_DIR to a folder on another disk"
OTHER_FOLDER = "name another folder with --out"

Progress = Callable[[str, float], None]
"""Called with what is being done and how far it is, 0 to 1."""


class ModelCacheError(Exception):
    """A model cannot be had: the message says why and what to do."""


class ModelCorruptError(ModelCacheError):
    """A built model is not, byte for byte, what was built."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a model is made of. It is copied into the manifest."""

    name: str
    version: int  # of the recipe: a changed recipe gets a new folder
    source: dict[str, str]  # registry, package, version, sha256
    libraries: tuple[str, ...]  # distributions whose versions shape the result
    needed_bytes: int  # peak disk use of a build
    command: str = ""  # that builds it again; empty: `gateway models build NAME --force`


@dataclass(frozen=True, slots=True)
class Workspace:
    """Where a build writes: `model` is published, `scratch` is thrown away."""

    model: Path
    scratch: Path


def cache_root() -> Path:
    """`$GATEWAY_CACHE_DIR`, else `thinking-gateway` in `$XDG_CACHE_HOME` or in `~/.cache`."""
    if own := os.environ.get("GATEWAY_CACHE_DIR"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "thinking-gateway"


def model_dir(name: str, version: int) -> Path:
    """The folder of a built model, whether it is there or not."""
    return cache_root() / "models" / f"{name}-v{version}"


def part(progress: Progress, start: float, end: float) -> Progress:
    """A progress callback whose 0 to 1 is `start` to `end` of the given one."""
    return lambda text, fraction: progress(text, start + (end - start) * fraction)


def problem(folder: Path) -> str | None:
    """What a cheap look (manifest there, sizes right) finds wrong; None if nothing.

    Milliseconds, so it runs at every start. `verify` reads every byte.
    """
    try:
        files = _read_manifest(folder)["files"]
    except ModelCacheError as error:
        return str(error)
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry["bytes"]:
            return f"{name} has {path.stat().st_size} bytes, not {entry['bytes']}"
    return None


def verify(folder: Path) -> None:
    """Recompute the checksum of every file.

    Raises:
        ModelCacheError: there is no readable manifest.
        ModelCorruptError: a file is missing, differs, or was not there when the model was built.
    """
    manifest = _read_manifest(folder)
    again = manifest.get("command") or f"gateway models build {manifest['recipe']['name']} --force"
    remedy = f"Rebuild it with `{again}`, or delete {folder} and start again."
    if found := problem(folder):
        raise ModelCorruptError(f"{folder}: {found}. {remedy}")
    for name, entry in manifest["files"].items():
        if (actual := sha256_of(folder / name)) != entry["sha256"]:
            raise ModelCorruptError(
                f"{folder / name} has sha256 {actual}, not {entry['sha256']}. {remedy}"
            )
    if extra := sorted({*_files(folder)} - {*manifest["files"], MANIFEST}):
        raise ModelCorruptError(f"{folder} holds files nobody built: {', '.join(extra)}. {remedy}")


def publish(
    origin: Origin, fill: Callable[[Workspace], None], progress: Progress, force: bool = False
) -> Path:
    """Build a model with `fill` and put it into the cache in one step; return its folder.

    Safe to call from several processes: the first builds, the others wait and take its result.
    Whatever `fill` raises passes through, and then nothing of the build stays behind.

    Raises:
        ModelCacheError: the disk is full or the cache folder cannot be written.
    """
    target = model_dir(origin.name, origin.version)
    with _disk_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.parent / f".{target.name}.lock", _waiting(target, progress)):
            if force or problem(target) is not None:
                _sweep(target)
                _require_space(target.parent, origin)
                _build(target, origin, fill, progress)
    return target


def publish_at(
    target: Path,
    origin: Origin,
    fill: Callable[[Workspace], None],
    progress: Progress,
    force: bool = False,
) -> Path:
    """Build a model into a folder of the user's choice, as `publish` does into the cache.

    The folder must be absent or empty; with `force`, a model folder is replaced. The lock lies in
    the cache, so nothing but the model is left beside the user's files.

    Raises:
        ModelCacheError: the folder holds something, the disk is full, or it cannot be written.
    """
    target = target.expanduser().absolute()
    locks = cache_root() / "locks"
    name = f"{hashlib.sha256(str(target).encode()).hexdigest()}.lock"
    with _disk_errors(target.parent, OTHER_FOLDER):
        locks.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(locks / name, _waiting(target, progress)):
            require_free(target, force)
            _sweep(target)
            _require_space(target.parent, origin, OTHER_FOLDER)
            _build(target, origin, fill, progress)
    return target


def require_free(target: Path, force: bool) -> None:
    """See that a model may be put there.

    Raises:
        ModelCacheError: something is there, and it is no model, or `force` is not given.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise ModelCacheError(f"{target} is a file, not a folder")
    if not any(target.iterdir()):
        return
    if not force:
        raise ModelCacheError(f"{target} is not empty; name another folder, or give --force")
    # Replacing removes what was there, so a slip of the hand must not cost a home folder.
    if not any((target / name).is_file() for name in (MANIFEST, "config.json")):
        raise ModelCacheError(
            f"{target} holds files that are no model, and --force replaces models only. Name "
            "another folder, or empty this one."
        )


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _build(
    target: Path, origin: Origin, fill: Callable[[Workspace], None], progress: Progress
) -> None:
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    workspace = Workspace(staging / "model", staging / "scratch")
    try:
        workspace.model.mkdir()
        workspace.scratch.mkdir()
        fill(workspace)
        progress("writing checksums", 0.95)
        _write_manifest(workspace.model, origin)
        _swap_in(workspace.model, target, staging / "replaced")
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    progress("ready", 1.0)


def _swap_in(built: Path, target: Path, aside: Path) -> None:
    # A folder that is not empty cannot be renamed over, so the old one steps aside. An engine
    # that has it mapped keeps its pages.
    if target.exists():
        target.rename(aside)
    built.rename(target)
    _fsync(target.parent)


def _write_manifest(folder: Path, origin: Origin) -> None:
    entries = {}
    for name in _files(folder):
        path = folder / name
        path.chmod(0o644)  # safetensors writes 0600, and a container reads as another user
        _fsync(path)
        entries[name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    manifest: dict[str, Any] = {
        "format": MANIFEST_FORMAT,
        "recipe": {"name": origin.name, "version": origin.version},
        "source": origin.source,
        "libraries": {name: library_version(name) for name in origin.libraries},
        "files": entries,
    }
    if origin.command:
        manifest["command"] = origin.command
    write_json(folder / MANIFEST, manifest)
    _fsync(folder / MANIFEST)
    _fsync(folder)


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelCacheError(f"{folder} holds no built model ({MANIFEST} is missing)") from None
    except ValueError as error:
        raise ModelCacheError(f"{folder / MANIFEST} is not JSON: {error}") from error
    if manifest.get("format") != MANIFEST_FORMAT:
        raise ModelCacheError(f"{folder / MANIFEST} is of another format than {MANIFEST_FORMAT}")
    return manifest


def _files(folder: Path) -> list[str]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _sweep(target: Path) -> None:
    """Remove what crashed builds left. Call it with the lock held: then none of it is in use."""
    for stale in target.parent.glob(f".{target.name}.*.tmp"):
        shutil.rmtree(stale, ignore_errors=True)


def _require_space(folder: Path, origin: Origin, remedy: str = OTHER_CACHE) -> None:
    free = shutil.disk_usage(folder).free
    if free < origin.needed_bytes:
        raise ModelCacheError(
            f"building {origin.name} needs {origin.needed_bytes / 1e6:.0f} MB and {folder} has "
            f"{free / 1e6:.0f} MB free. Make room, or {remedy}."
        )


@contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of that file; `waiting` is called first when another process has it."""
    lock = FileLock(path)
    if not _try_lock(lock):
        waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _waiting(target: Path, progress: Progress) -> Callable[[], None]:
    return lambda: progress(f"waiting: another process is building {target.name}", 0.0)


def _try_lock(lock: FileLock) -> bool:
    try:
        lock.acquire(blocking=False)
    except TimeoutError:  # filelock's Timeout is one
        return False
    return True


@contextmanager
def _disk_errors(folder: Path, remedy: str = OTHER_CACHE) -> Iterator[None]:
    """Say in a sentence what a disk refuses; leave every other error alone."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ModelCacheError(
                f"the disk of {folder} is full. Make room, or {remedy}."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise ModelCacheError(
                f"no permission for {error.filename or folder}. The model is built in {folder}; "
                f"make it writable, or {remedy}."
            ) from error
        raise


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
