"""A profile that extends others: what it says wins, key by key, and mistakes are told."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from engine_config.inherit import BASES, SHIPPED
from engine_config.profile import ProfileError, available, load, read

MINE: dict[str, Any] = {
    "name": "mine",
    "title": "A profile of mine.",
    "served_as": "my-model",
    "model": {"kind": "folder", "path": "/nowhere"},
}


def value(given: object) -> dict[str, Any]:
    return {"value": given, "reason": "A reason why.", "source": "a test"}


def write(folder: Path, stem: str, **content: Any) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{stem}.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def base(folder: Path, stem: str, **content: Any) -> None:
    write(folder / BASES, stem, **content)


def test_a_child_wins_key_by_key(tmp_path: Path) -> None:
    base(tmp_path, "low", served_as="theirs", vllm={"seed": value(1), "dtype": value("auto")})
    path = write(tmp_path, "mine", extends="low", **MINE, vllm={"seed": value(2)})

    profile = read(path)

    assert profile.served_as == "my-model"
    assert profile.settings() == {"seed": 2, "dtype": "auto"}


def test_cards_are_merged_by_size_and_key(tmp_path: Path) -> None:
    two = {"seed": value(1), "max_num_seqs": value(4)}
    base(tmp_path, "low", cards={16: two, 24: two})
    path = write(tmp_path, "mine", extends="low", **MINE, cards={24: {"seed": value(2)}})

    profile = read(path)

    assert profile.settings(16) == {"seed": 1, "max_num_seqs": 4}
    assert profile.settings(24) == {"seed": 2, "max_num_seqs": 4}
    assert profile.settings() == {}


def test_of_two_bases_the_later_wins(tmp_path: Path) -> None:
    base(tmp_path, "first", vllm={"seed": value(1), "dtype": value("auto")})
    base(tmp_path, "second", vllm={"seed": value(2)})
    path = write(tmp_path, "mine", extends=["first", "second"], **MINE)

    assert read(path).settings() == {"seed": 2, "dtype": "auto"}


def test_an_empty_value_takes_away_what_is_extended(tmp_path: Path) -> None:
    base(tmp_path, "low", vllm={"seed": value(1), "dtype": value("auto")}, cards={16: {}})
    path = write(tmp_path, "mine", extends="low", **MINE, vllm={"seed": None}, cards=None)

    profile = read(path)

    assert (profile.settings(), profile.cards) == ({"dtype": "auto"}, {})


def test_a_folder_of_ones_own_may_extend_what_is_shipped_even_its_namesake(tmp_path: Path) -> None:
    write(tmp_path, "demo", extends="demo", vllm={"seed": value(7)})

    mine, shipped = load("demo", tmp_path), load("demo")

    assert mine.settings() == {**shipped.settings(), "seed": 7}
    assert mine.served_as == shipped.served_as


def test_a_base_of_ones_own_does_not_change_a_shipped_profile(tmp_path: Path) -> None:
    base(tmp_path, "cpu", vllm={"seed": value(7)})

    assert "seed" not in load("demo", tmp_path).settings()


def test_bases_are_no_profiles() -> None:
    bases = {path.stem for path in (SHIPPED / BASES).glob("*.yaml")}

    assert bases and not bases & set(available())
    with pytest.raises(ProfileError, match="no profile named"):
        load(sorted(bases)[0])


def test_a_cycle_is_told_with_its_way(tmp_path: Path) -> None:
    base(tmp_path, "low", extends="high")
    base(tmp_path, "high", extends="low")
    path = write(tmp_path, "mine", extends="low", **MINE)

    with pytest.raises(
        ProfileError, match="extends itself: mine extends low extends high extends low"
    ):
        read(path)


@pytest.mark.parametrize(
    ("extends", "words"),
    [
        ("lwo", "extends 'lwo', which is not there; there are: .*cpu.*low.*mine"),
        ("../low", "not '../low'"),
        (["low", 3], "not 3"),
        ({"low": 1}, "the name of a profile or a base"),
    ],
    ids=str,
)
def test_what_cannot_be_extended_is_told(tmp_path: Path, extends: object, words: str) -> None:
    base(tmp_path, "low", vllm={})
    path = write(tmp_path, "mine", extends=extends, **MINE)

    with pytest.raises(ProfileError, match=words) as caught:
        read(path)

    assert str(caught.value).startswith(str(path))


def test_a_base_that_is_no_yaml_is_told_by_its_own_name(tmp_path: Path) -> None:
    base(tmp_path, "low")
    (tmp_path / BASES / "low.yaml").write_text("vllm: [")
    path = write(tmp_path, "mine", extends="low", **MINE)

    with pytest.raises(ProfileError, match=r"low\.yaml: not YAML"):
        read(path)
