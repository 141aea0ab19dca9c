"""The heads of weight files: what they tell, and what is told of a broken one."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine_config.weights import BrokenWeights, tensors


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(2, 4), "b": torch.zeros(3, dtype=torch.int8)}, path)
    return path


def test_types_and_shapes_come_from_the_files_head(path: Path) -> None:
    assert tensors(path.parent) == {"a": ("F32", (2, 4)), "b": ("I8", (3,))}


def test_a_folder_without_weights_has_none(tmp_path: Path) -> None:
    assert tensors(tmp_path) == {}


@pytest.mark.parametrize("keep", [0, 7, 20, -1])
def test_a_file_that_is_cut_off_is_told(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])

    with pytest.raises(BrokenWeights, match=r"model\.safetensors is"):
        tensors(path.parent)


@pytest.mark.parametrize("content", [b"x" * 100, b"\x03" + b"\0" * 7 + b"[1]" + b"x" * 90])
def test_another_kind_of_file_is_told(path: Path, content: bytes) -> None:
    path.write_bytes(content)

    with pytest.raises(BrokenWeights, match=r"model\.safetensors is"):
        tensors(path.parent)
