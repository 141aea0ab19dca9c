"""What a user may name as the source of a quantised model."""

from pathlib import Path

import pytest

from engine_config.build import registry
from engine_config.build.cache import ModelCacheError
from engine_config.build.checkpoint import TARGETS, QuantizeError
from engine_config.build.sources import resolve


def quiet(text: str, fraction: float) -> None:
    pass


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    source = resolve(str(tmp_path), None, quiet)

    assert (source.folder, source.name, source.revision) == (tmp_path, str(tmp_path), "")


@pytest.mark.parametrize("revision", [None, "main", "abc", "g" * 40])
def test_a_hub_id_must_be_pinned_to_a_commit(revision: str | None) -> None:
    with pytest.raises(QuantizeError, match="pin it with --revision and the 40 hexadecimal"):
        resolve("Qwen/Qwen3-0.6B", revision, quiet)


def test_what_is_nothing_of_all_that_is_refused_with_what_there_is() -> None:
    with pytest.raises(QuantizeError, match=r"no model 'smol'.*smollm2-135m, nano-qwen3"):
        resolve("smol", None, quiet)


def test_a_revision_of_something_local_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match="--revision is for hub ids"):
        resolve(str(tmp_path), "a" * 40, quiet)


def test_every_quantised_recipe_has_a_base_and_a_format() -> None:
    quantised = {name: one for name, one in registry.BUILDERS.items() if one.base}

    assert {*quantised} == {
        "smollm2-135m-int8",
        "smollm2-135m-gptq-int4",
        "smollm2-135m-awq-int4",
        "smollm2-135m-int4",
        "nano-qwen3-gptq-int4",
        "nano-qwen3-awq-int4",
    }
    for name, one in quantised.items():
        assert name == f"{one.base}-{one.target}" and one.target in TARGETS
        assert not registry.BUILDERS[one.base].base
        assert one.origin().source["model"] == one.base


def test_an_unknown_recipe_is_refused_with_the_quantised_ones_named_too() -> None:
    with pytest.raises(ModelCacheError, match="smollm2-135m-int8"):
        registry.recipe("smollm2")
