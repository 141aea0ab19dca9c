"""What the heads of safetensors files tell, without reading the weights.

Source of the format: https://github.com/huggingface/safetensors, "Format": eight bytes of length, a JSON
object of that length, then the tensors' bytes.
"""

import json
import struct
from pathlib import Path
from typing import Any


class BrokenWeights(Exception):
    """A file that no engine can load; the message says which and what is wrong."""


def tensors(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of every tensor in the folder's safetensors files, by name.

    Raises:
        BrokenWeights: a file is cut off, or none of that format.
    """
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, entry in _head(path).items():
            found[name] = (entry["dtype"], tuple(entry["shape"]))
    return found


def _head(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size:
                raise BrokenWeights(f"{path.name} is cut off, or no safetensors file")
            head = dict(json.loads(file.read(length)))
        head.pop("__metadata__", None)
        whole = 8 + length + max((entry["data_offsets"][1] for entry in head.values()), default=0)
    except (struct.error, ValueError, TypeError, KeyError) as error:
        raise BrokenWeights(f"{path.name} is no safetensors file") from error
    if size < whole:
        raise BrokenWeights(f"{path.name} is cut off: it has {size} bytes of {whole}")
    return head
