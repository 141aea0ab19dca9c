"""From what a user names to a model folder: a built-in name, a folder, or a hub id at a commit."""

import re
import tempfile
from pathlib import Path

from engine_config.build import registry, toolbox, worker_process
from engine_config.build.cache import Progress, part
from engine_config.build.checkpoint import QuantizeError, Source

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
COMMIT = re.compile(r"[0-9a-f]{40}")


def resolve(name: str, revision: str | None, progress: Progress) -> Source:
    """Find the model, build it if it is one of ours, fetch it if it is on the hub.

    Raises:
        QuantizeError: there is nothing of that name, or a hub id without its commit.
        ModelCacheError: it cannot be built or fetched.
    """
    if name in registry.BUILDERS or Path(name).is_dir():
        if revision:
            raise QuantizeError(f"--revision is for hub ids; {name} is on this machine")
        if name in registry.BUILDERS:
            return Source(name, registry.ensure(name, progress))
        return Source(name, Path(name).expanduser().absolute())
    if not HUB_ID.fullmatch(name):
        raise QuantizeError(
            f"no model {name!r}: it is no folder, no name from `gateway models list` "
            f"({', '.join(registry.BUILDERS)}) and no hub id (owner/name)"
        )
    if not revision or not COMMIT.fullmatch(revision):
        raise QuantizeError(
            f"{name} is a hub id (there is no such folder): pin it with --revision and the 40 "
            "hexadecimal digits of a commit, so that the card says what was quantised"
        )
    return _fetch(name, revision, progress)


def _fetch(name: str, revision: str, progress: Progress) -> Source:
    python = toolbox.ensure(part(progress, 0.0, 0.5))
    progress(f"fetching {name} from the hub", 0.5)
    job = {"action": "download", "repo": name, "revision": revision}
    with tempfile.TemporaryDirectory() as scratch:
        result = worker_process.run(python, job, Path(scratch), part(progress, 0.5, 1.0))
    return Source(name, Path(result["folder"]), revision)
