"""A calibration: what a model's confidence is worth, measured on questions with known answers."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

VERSION = 1
FEATURES = (
    "log_answer_prob",
    "answer_certainty",
    "token_entropy",
    "lowest_window",
    "log_length",
    "forced",
    "looped",
    "truncated",
    "failed_step_fraction",
    "agreement",
)


class CalibrationError(Exception):
    """A file that cannot be used; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Logistic regression over standardised FEATURES, bound to one model's fingerprint."""

    fingerprint: str
    weights: tuple[float, ...]  # shape (n_features,)
    bias: float
    mean: tuple[float, ...]  # shape (n_features,)
    scale: tuple[float, ...]  # shape (n_features,), above 0
    metrics: Mapping[str, Any]  # on held-out questions
    dataset: str
    n: int
    version: int = VERSION
    features: tuple[str, ...] = FEATURES

    def probability(self, values: Sequence[float]) -> float:
        """P(correct) for feature values, shape (n_features,)."""
        terms = zip(self.weights, values, self.mean, self.scale, strict=True)
        logit = self.bias + sum(weight * (x - mean) / scale for weight, x, mean, scale in terms)
        return 1 / (1 + math.exp(-max(-500.0, min(500.0, logit))))

    def told(self) -> dict[str, Any]:
        """What an answer says about it."""
        keys = ("ece", "auroc", "brier")
        told = {key: self.metrics[key]["value"] for key in keys if key in self.metrics}
        return {"dataset": self.dataset, "n": self.n, **told}

    def save(self, path: Path) -> None:
        """Whole or not at all."""
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        part.replace(path)


def load(path: Path) -> Calibration:
    """A file that `gateway calibrate` wrote.

    Raises:
        CalibrationError: not there, damaged, or of another version of this program.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["version"] != VERSION or tuple(raw["features"]) != FEATURES:
            raise CalibrationError(
                f"{path}: made by another version; run `gateway calibrate` again"
            )
        weights, mean, scale = (tuple(map(float, raw[key])) for key in ("weights", "mean", "scale"))
        if {len(weights), len(mean), len(scale)} != {len(FEATURES)} or min(scale) <= 0:
            raise CalibrationError(f"{path}: not a calibration: wrong number of weights")
        return Calibration(
            str(raw["fingerprint"]),
            weights,
            float(raw["bias"]),
            mean,
            scale,
            dict(raw["metrics"]),
            str(raw["dataset"]),
            int(raw["n"]),
        )
    except OSError as error:
        raise CalibrationError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CalibrationError(f"{path}: not a calibration: {error!r}") from error


def fitting(path: Path, fingerprint: str) -> Calibration:
    """The calibration, if it was made for this very model.

    Raises:
        CalibrationError: as `load`, or made for another model.
    """
    calibration = load(path)
    if calibration.fingerprint != fingerprint:
        raise CalibrationError(
            f"{path}: made for another model (fingerprint {calibration.fingerprint[:12]}, this one is "
            f"{fingerprint[:12]}); run `gateway calibrate` for this one"
        )
    return calibration
