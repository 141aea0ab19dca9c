"""The pages: static files, no build step. Only what is named here is served, and answers without a key.

A file that is dropped into the folder is not public until somebody writes its name down.
"""

import hashlib
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

SHARED = (
    "api.js",
    "dom.js",
    "frame.js",
    "i18n.js",
    "problem.js",
    "strings.js",
    "strings.en.js",
    "strings.zh.js",
    "style.css",
)
PAGE = (
    "app.js",
    "chart.js",
    "form.js",
    "growing.js",
    "live.js",
    "markdown.js",
    "report.js",
    "snippets.js",
    "thought.js",
    "turn.js",
    "vendor/marked.js",
    "vendor/purify.js",
)
ADMIN = ("admin.js",)


def paths(*names: str) -> dict[str, str]:
    """URL path -> file."""
    return {f"/page/{name}": name for name in names}


# What each listener serves.
PUBLIC_FILES = {"/": "index.html", **paths(*SHARED, *PAGE)}
ADMIN_FILES = {"/": "admin.html", **paths(*SHARED, *ADMIN)}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file as it is sent. The tag changes with the content, so that a browser may keep it."""

    content: bytes
    media_type: str
    etag: str


def read(served: Mapping[str, str]) -> dict[str, Asset]:
    """The files, by URL path; they do not change while the gateway runs."""
    return {path: _asset(name) for path, name in served.items()}


def _asset(name: str) -> Asset:
    content = files(__name__).joinpath(name).read_bytes()
    media_type = mimetypes.types_map[f".{name.rpartition('.')[2]}"]
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    return Asset(content, f"{media_type}; charset=utf-8", etag)
