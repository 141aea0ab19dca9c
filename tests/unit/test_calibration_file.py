"""The calibration file: whole, of this model and this version, or not used at all."""

import json
import math
import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from gateway.thinking.calibration import FEATURES, Calibration, CalibrationError, fitting, load

GOOD = Calibration(
    weights=(0.5,) * len(FEATURES),
    bias=-0.25,
    mean=(0.0,) * len(FEATURES),
    scale=(1.0,) * len(FEATURES),
    fingerprint="a" * 64,
    k=5,
    metrics={key: {"value": 0.1, "low": 0.05, "high": 0.15} for key in ("ece", "auroc", "brier")},
    dataset="questions.jsonl",
    n=800,
    created="2026-01-01T00:00:00+00:00",
)


def test_a_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "calib.json"
    rng = random.Random(0)
    made = replace(GOOD, weights=tuple(rng.gauss(0, 1) for _ in FEATURES), tokenizer="t")

    made.save(path)

    assert load(path) == made
    assert fitting(path, made.fingerprint) == made
    assert [file.name for file in tmp_path.iterdir()] == ["calib.json"]


def test_a_calibration_fits_its_own_model_and_k_only(tmp_path: Path) -> None:
    path = tmp_path / "calib.json"
    GOOD.save(path)

    assert GOOD.fits("a" * 64, 5)
    assert not GOOD.fits("b" * 64, 5)
    assert not GOOD.fits("a" * 64, 20)
    with pytest.raises(CalibrationError, match=r"another model \(fingerprint aaaaaaaaaaaa"):
        fitting(path, "b" * 64)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"nothing\.json: No such file"):
        load(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"prompt_version": 99},
        {"features": ["other"]},
    ],
)
def test_a_file_of_another_version_says_so(changes: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "calib.json"
    path.write_text(json.dumps(asdict(GOOD) | changes))

    with pytest.raises(CalibrationError, match="another version; run `gateway calibrate` again"):
        load(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": [1.0]},
        {"weights": ["x"] * len(FEATURES)},
        {"weights": None},
        {"scale": [0.0] * len(FEATURES)},
        {"mean": [math.nan] * len(FEATURES)},
        {"bias": math.inf},
        {"bias": 10**400},
        {"metrics": []},
        {"metrics": {}},
        {"metrics": {key: {"value": "0.1"} for key in ("ece", "auroc", "brier")}},
        {"fingerprint": 5},
        {"k": "5"},
        {"n": None},
        {"created": None},
    ],
    ids=str,
)
def test_a_damaged_file_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "calib.json"
    path.write_text(json.dumps(asdict(GOOD) | changes))

    with pytest.raises(CalibrationError, match=r"calib\.json: not a calibration"):
        load(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        json.dumps(asdict(GOOD))[:300].encode(),
    ],
    ids=["empty", "brace", "list", "null", "bytes", "deep", "torn"],
)
def test_a_foreign_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "calib.json"
    path.write_bytes(content)

    with pytest.raises(CalibrationError, match=r"calib\.json: not a calibration"):
        load(path)


@pytest.mark.parametrize("missing", sorted(asdict(GOOD).keys() - {"tokenizer"}))
def test_a_file_without_a_field_is_refused(missing: str, tmp_path: Path) -> None:
    raw = asdict(GOOD)
    del raw[missing]
    path = tmp_path / "calib.json"
    path.write_text(json.dumps(raw))

    with pytest.raises(CalibrationError, match="not a calibration"):
        load(path)
