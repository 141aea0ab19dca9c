"""Which model this is, whatever its folder is called."""

import hashlib
from pathlib import Path

EDGE_BYTES = 1024 * 1024
WHOLE = ("config.json", "tokenizer.json", "tokenizer_config.json", "quantize_config.json")


def fingerprint(location: Path | str, revision: str = "") -> str:
    """A hash of a model folder: the small files whole, of each weight file its size and both ends.

    Two gigabytes would take seconds at every start; ends and sizes tell quantisations and fine-tunes
    apart. A hub id is hashed with its pinned revision.
    """
    digest = hashlib.sha256()
    if isinstance(location, str):
        digest.update(f"{location}@{revision}".encode())
        return digest.hexdigest()
    for name in WHOLE:
        path = location / name
        digest.update(name.encode() + (path.read_bytes() if path.is_file() else b""))
    for path in sorted(location.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(EDGE_BYTES))
            file.seek(max(0, size - EDGE_BYTES))
            digest.update(file.read(EDGE_BYTES))
    return digest.hexdigest()
