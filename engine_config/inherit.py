"""Profiles that extend others: what a file says over what it extends, key by key, before it is checked.

`extends: NAME` or a list of names; of two that set the same key the later wins, and the file itself wins
over all. A name is looked for in `bases/` first and then among the profiles, in the file's own folder and
then in the shipped one. So a file of your own may be called `demo` and extend the shipped `demo`. An empty
value (`enforce_eager:` and nothing behind it) takes away what is extended.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

SHIPPED = Path(__file__).parent / "profiles"
BASES = "bases"
NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")
EXTENDS = "extends"
# Merged key by key; `cards` even two levels deep. All else is replaced as a whole.
DEPTHS = {"vllm": 1, "environment": 1, "cards": 2}


class ProfileError(Exception):
    """A profile that cannot be used; the message says which, where and how to mend it."""


def resolved(path: Path) -> Any:
    """What is in a profile's file, with all that it extends filled in.

    Raises:
        ProfileError: a file is not YAML, extends what is not there, or extends itself.
    """
    return _resolved(path, ())


def _resolved(path: Path, chain: tuple[Path, ...]) -> Any:
    if path in chain:
        names = " extends ".join(step.stem for step in (*chain, path))
        raise ProfileError(f"{chain[0]}: extends itself: {names}")
    raw = _raw(path)
    if not isinstance(raw, dict) or EXTENDS not in raw:
        return raw
    merged: dict[str, Any] = {}
    for name in _names(path, raw.pop(EXTENDS)):
        parent = _resolved(_find(path, name), (*chain, path))
        merged = _merged(merged, parent) if isinstance(parent, dict) else merged
    return _merged(merged, raw)


def _raw(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ProfileError(f"{path}: not YAML: {error}") from error


def _names(path: Path, given: object) -> Iterator[str]:
    for name in given if isinstance(given, list) else [given]:
        if not (isinstance(name, str) and NAME.fullmatch(name)):
            raise ProfileError(f"{path}: extends: the name of a profile or a base, not {name!r}")
        yield name


def _find(path: Path, name: str) -> Path:
    candidates = list(_candidates(path, name))
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    there = sorted({found.stem for each in candidates for found in each.parent.glob("*.yaml")})
    raise ProfileError(
        f"{path}: extends '{name}', which is not there; there are: {', '.join(there)}"
    )


def _candidates(path: Path, name: str) -> Iterator[Path]:
    own = path.parent.parent if path.parent.name == BASES else path.parent
    for folder in dict.fromkeys((own, SHIPPED)):
        for place in (folder / BASES, folder):
            # A file is not its own base: this is how one of yours extends its shipped namesake.
            if (candidate := place / f"{name}.yaml") != path or folder == SHIPPED:
                yield candidate


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        key: _deep(below[key], above[key], depth)
        for key, depth in DEPTHS.items()
        if key in below and key in above
    }
    return _without_none({**below, **above, **both})


def _deep(below: Any, above: Any, depth: int) -> Any:
    """Two mappings as one, `depth` levels deep; what is no mapping is replaced."""
    if depth == 0 or not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    both = {key: _deep(below[key], above[key], depth - 1) for key in below.keys() & above.keys()}
    return _without_none({**below, **above, **both})


def _without_none(mapping: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if value is not None}
