"""The model cache: complete or absent, whoever builds, crashes or meddles."""

import errno
import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from engine_config.build import cache
from engine_config.build.cache import (
    ModelCacheError,
    ModelCorruptError,
    Origin,
    Workspace,
    model_dir,
    problem,
    publish,
    publish_at,
    verify,
)

ORIGIN = Origin("toy", 1, {"package": "toy", "version": "1.0", "sha256": "0" * 64}, ("numpy",), 0)
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GATEWAY_CACHE_DIR", str(tmp_path))
    return tmp_path


def fill(workspace: Workspace) -> None:
    (workspace.scratch / "download").write_text("thrown away")
    (workspace.model / "config.json").write_text("{}")
    (workspace.model / "sub").mkdir()
    (workspace.model / "sub" / "weights.bin").write_bytes(b"weights")


def refuse(workspace: Workspace) -> None:
    raise AssertionError("this must not be built")


def quiet(text: str, fraction: float) -> None:
    pass


def die_half_way(workspace: Workspace) -> None:
    fill(workspace)
    os.kill(os.getpid(), signal.SIGKILL)


def build_and_die() -> None:
    publish(ORIGIN, die_half_way, quiet)


def build_once_the_other_waits(log: Path, building: Event, waiting: Event) -> None:
    def slow(workspace: Workspace) -> None:
        building.set()
        assert waiting.wait(timeout=60)
        fill(workspace)
        with log.open("a") as file:
            file.write("built\n")

    def watch(text: str, fraction: float) -> None:
        if text.startswith("waiting"):
            waiting.set()

    publish(ORIGIN, slow, watch)


def leftovers(root: Path) -> list[str]:
    """Everything in the models folder but the model and its lock."""
    expected = {"toy-v1", ".toy-v1.lock"}
    return sorted({path.name for path in (root / "models").iterdir()} - expected)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"GATEWAY_CACHE_DIR": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/thinking-gateway"),
        ({"HOME": "/home/me"}, "/home/me/.cache/thinking-gateway"),
    ],
)
def test_the_cache_root_follows_the_environment(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GATEWAY_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert cache.cache_root() == Path(expected)


def test_a_published_model_is_whole_and_says_what_it_is_made_of(root: Path) -> None:
    folder = publish(ORIGIN, fill, quiet)

    manifest = json.loads((folder / "MANIFEST.json").read_text())
    assert folder == root / "models" / "toy-v1"
    assert manifest["recipe"] == {"name": "toy", "version": 1}
    assert manifest["source"] == ORIGIN.source
    assert manifest["libraries"].keys() == {"numpy"}
    assert manifest["files"].keys() == {"config.json", "sub/weights.bin"}
    assert manifest["files"]["sub/weights.bin"]["bytes"] == 7
    assert leftovers(root) == []
    verify(folder)


def test_other_users_can_read_a_published_model() -> None:
    def secretive(workspace: Workspace) -> None:
        fill(workspace)
        (workspace.model / "config.json").chmod(0o600)

    folder = publish(ORIGIN, secretive, quiet)

    assert (folder / "config.json").stat().st_mode & 0o777 == 0o644
    assert folder.stat().st_mode & 0o055 == 0o055


def test_a_present_model_is_not_built_again_unless_forced() -> None:
    folder = publish(ORIGIN, fill, quiet)
    first = folder.stat().st_ino

    publish(ORIGIN, refuse, quiet)
    assert folder.stat().st_ino == first
    publish(ORIGIN, fill, quiet, force=True)
    assert folder.stat().st_ino != first
    assert problem(folder) is None


def test_a_new_recipe_version_is_another_folder() -> None:
    assert model_dir("toy", 1) != model_dir("toy", 2)


def test_a_failed_build_leaves_nothing_and_its_error_passes_through(root: Path) -> None:
    def fail(workspace: Workspace) -> None:
        fill(workspace)
        raise KeyError("the builder's own error")

    with pytest.raises(KeyError, match="own error"):
        publish(ORIGIN, fail, quiet)

    assert problem(model_dir("toy", 1)) is not None
    assert leftovers(root) == []


def test_a_failed_forced_build_keeps_the_old_model() -> None:
    folder = publish(ORIGIN, fill, quiet)

    with pytest.raises(AssertionError):
        publish(ORIGIN, refuse, quiet, force=True)

    verify(folder)


def test_what_a_killed_build_leaves_is_no_model_and_is_swept_by_the_next(root: Path) -> None:
    process = SPAWN.Process(target=build_and_die)
    process.start()
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL
    assert len(leftovers(root)) == 1
    assert not model_dir("toy", 1).exists()

    folder = publish(ORIGIN, fill, quiet)

    assert leftovers(root) == []
    verify(folder)


def test_of_two_concurrent_builders_one_builds_and_both_succeed(root: Path) -> None:
    log, building, waiting = root / "log", SPAWN.Event(), SPAWN.Event()
    arguments = (log, building, waiting)
    processes = [SPAWN.Process(target=build_once_the_other_waits, args=arguments) for _ in range(2)]

    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=90)

    assert [process.exitcode for process in processes] == [0, 0]
    assert log.read_text() == "built\n"
    verify(model_dir("toy", 1))


def cut(folder: Path) -> None:
    (folder / "sub" / "weights.bin").write_bytes(b"wei")


def remove(folder: Path) -> None:
    (folder / "sub" / "weights.bin").unlink()


def drop_manifest(folder: Path) -> None:
    (folder / "MANIFEST.json").unlink()


def cut_manifest(folder: Path) -> None:
    (folder / "MANIFEST.json").write_text('{"format": 1, "files"')


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (cut, "sub/weights.bin has 3 bytes, not 7"),
        (remove, "sub/weights.bin is missing"),
        (drop_manifest, "MANIFEST.json is missing"),
        (cut_manifest, "not JSON"),
    ],
)
def test_the_cheap_look_names_the_damage_and_a_build_repairs_it(
    damage: Callable[[Path], None], named: str
) -> None:
    folder = publish(ORIGIN, fill, quiet)

    damage(folder)
    assert named in (problem(folder) or "")
    publish(ORIGIN, fill, quiet)

    verify(folder)


def test_verify_names_a_file_whose_bytes_differ_and_the_remedy() -> None:
    folder = publish(ORIGIN, fill, quiet)
    (folder / "sub" / "weights.bin").write_bytes(b"WEIGHTS")

    assert problem(folder) is None  # the size is right: only the checksum knows
    with pytest.raises(ModelCorruptError) as caught:
        verify(folder)

    assert "sub/weights.bin" in str(caught.value)
    assert "gateway models build toy --force" in str(caught.value)
    assert f"delete {folder}" in str(caught.value)


def test_verify_names_a_file_nobody_built() -> None:
    folder = publish(ORIGIN, fill, quiet)
    (folder / "extra.safetensors").write_bytes(b"?")

    with pytest.raises(ModelCorruptError, match=r"extra\.safetensors"):
        verify(folder)


def test_verify_of_an_absent_model_says_so(root: Path) -> None:
    with pytest.raises(ModelCacheError, match="holds no built model"):
        verify(root / "models" / "nothing-v1")


def test_too_little_space_is_said_before_anything_is_fetched() -> None:
    huge = Origin("toy", 1, {}, (), 10**18)

    with pytest.raises(ModelCacheError, match=r"needs 1000000000000 MB .* GATEWAY_CACHE_DIR"):
        publish(huge, refuse, quiet)


@pytest.mark.parametrize(
    ("code", "sentence"), [(errno.ENOSPC, "is full"), (errno.EROFS, "no permission")]
)
def test_what_the_disk_refuses_is_said_in_a_sentence(code: int, sentence: str) -> None:
    def fail(workspace: Workspace) -> None:
        raise OSError(code, os.strerror(code))

    with pytest.raises(ModelCacheError, match=rf"{sentence}.*GATEWAY_CACHE_DIR"):
        publish(ORIGIN, fail, quiet)


def test_a_folder_of_ones_own_gets_the_model_and_nothing_beside_it(tmp_path: Path) -> None:
    origin = Origin("mine", 1, {"model": "toy"}, (), 0, "gateway models quantize toy --force")
    target = tmp_path / "elsewhere" / "mine"
    target.mkdir(parents=True)  # empty is as good as absent

    folder = publish_at(target, origin, fill, quiet)

    verify(folder)
    assert [path.name for path in target.parent.iterdir()] == ["mine"]
    (folder / "config.json").write_text("[]")
    with pytest.raises(ModelCorruptError, match="with `gateway models quantize toy --force`"):
        verify(folder)


def test_a_folder_that_holds_something_is_not_written_into(tmp_path: Path) -> None:
    target = publish_at(tmp_path / "mine", ORIGIN, fill, quiet)

    with pytest.raises(ModelCacheError, match=r"mine is not empty; .* give --force"):
        publish_at(target, ORIGIN, refuse, quiet)
    publish_at(target, ORIGIN, fill, quiet, force=True)

    verify(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["locks", "mine"]


def test_force_replaces_models_only(tmp_path: Path) -> None:
    target = tmp_path / "home"
    target.mkdir()
    (target / "letter.txt").write_text("dear")

    with pytest.raises(ModelCacheError, match=r"no model, and --force replaces models only"):
        publish_at(target, ORIGIN, refuse, quiet, force=True)
    with pytest.raises(ModelCacheError, match="is a file"):
        publish_at(target / "letter.txt", ORIGIN, refuse, quiet, force=True)

    assert (target / "letter.txt").read_text() == "dear"


def test_a_failed_build_into_a_folder_of_ones_own_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(workspace: Workspace) -> None:
        fill(workspace)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish_at(tmp_path / "mine", ORIGIN, interrupt, quiet)

    assert [path.name for path in tmp_path.iterdir()] == ["locks"]
    with pytest.raises(ModelCacheError, match="name another folder with --out"):
        publish_at(tmp_path / "mine", Origin("toy", 1, {}, (), 10**18), refuse, quiet)
