"""The profiles: do they fit this machine, and is each model here and whole?"""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path

from engine_config.build import cache, registry
from engine_config.build.cache import ModelCacheError
from engine_config.fitting import obstacle, suggestion
from engine_config.hardware import Hardware
from engine_config.profile import (
    BuiltModel,
    FolderModel,
    HubModel,
    Profile,
    ProfileError,
    available,
    load,
)
from gateway.doctor.finding import Finding, fail, good, warn
from gateway.settings import Settings

INDEX = "model.safetensors.index.json"


def models(settings: Settings, hardware: Hardware, checksums: bool) -> Iterator[Finding]:
    """`checksums`: read every byte of built models, not only names and sizes."""
    for name in settings.profiles:
        try:
            profile = load(name, settings.profiles_dir)
        except ProfileError as error:
            yield fail(
                f"profile {name}", str(error), "`gateway profiles list` names those there are."
            )
            continue
        yield fit(profile, hardware)
        yield model(profile, checksums)


def fit(profile: Profile, hardware: Hardware) -> Finding:
    name = f"profile {profile.name}"
    if (reason := obstacle(profile, hardware)) is None:
        return good(name, f"fits {hardware}")
    advice = suggestion(map(load, available()), hardware).rpartition(": ")[2]
    return fail(name, f"{reason}; here: {hardware}", f"Take another: {advice}.")


def model(profile: Profile, checksums: bool) -> Finding:
    name = f"model of {profile.name}"
    kind = profile.model
    if isinstance(kind, BuiltModel):
        return built(name, kind, checksums)
    if isinstance(kind, FolderModel):
        return folder(name, kind)
    return hub(name, kind)


def built(name: str, kind: BuiltModel, checksums: bool) -> Finding:
    again = f"gateway models build {kind.name}"
    try:
        where = registry.model_dir(kind.name)
        if not where.is_dir():
            return warn(name, "not built yet; the first start builds it", f"Now: `{again}`.")
        if found := cache.problem(where):
            return fail(name, f"{where}: {found}", f"`{again} --force`")
        if checksums:
            cache.verify(where)
    except ModelCacheError as error:
        return fail(name, str(error), f"`{again} --force`")
    return good(name, f"{where}{', every checksum right' if checksums else ''}")


def folder(name: str, kind: FolderModel) -> Finding:
    where = kind.folder
    remedy = "Copy the model there, or make it as `gateway profiles show` says."
    if not (where / "config.json").is_file():
        return fail(name, f"{where} has no config.json", remedy)
    if missing := missing_weights(where):
        return fail(name, f"{where}: {missing[0]} is missing", remedy)
    return good(name, str(where))


def missing_weights(where: Path) -> list[str]:
    """Files that the index names and that are not there; without an index any safetensors will do."""
    if not (where / INDEX).is_file():
        return [] if any(where.glob("*.safetensors")) else ["*.safetensors"]
    try:
        names = set(json.loads((where / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError):
        return [f"a readable {INDEX}"]
    return sorted(each for each in names if not (where / each).is_file())


def hub(name: str, kind: HubModel) -> Finding:
    library = importlib.import_module("huggingface_hub")
    files = ("config.json", INDEX)
    found = [
        library.try_to_load_from_cache(kind.repo, file, revision=kind.revision) for file in files
    ]
    paths = [Path(each) for each in found if isinstance(each, str)]
    if not paths or paths[0].name != files[0]:
        fetch = f"hf download {kind.repo} --revision {kind.revision}"
        told = f"{kind.repo} is not on this machine; the first start fetches it"
        return warn(name, told, f"Now: `{fetch}`. Without internet: HF_HOME with a copy.")
    where = paths[0].parent
    if missing := missing_weights(where):
        return fail(name, f"{where}: {missing[0]} is missing", f"Fetch {kind.repo} again.")
    return good(name, str(where))
