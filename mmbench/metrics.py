"""Scores of predictions, from raw logits (N, C) and targets: class indices (N,) or multi-hot labels (N, C)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import log_expit, log_softmax, ndtri

# sklearn is imported where it is used: half a second that data with one label a sample never need

CALIBRATION_BINS = 15

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Scores:
    """All scores of one set of predictions; None where a score is not defined for it."""

    samples: int
    accuracy: float
    mean_average_precision: float
    mean_auc: float | None
    d_prime: float | None
    nll: float
    """Mean negative log likelihood in nats: of the softmax, or per label of the sigmoid when multi-label."""
    ece: float | None
    """Expected calibration error, 15 equal bins of the top probability; None when multi-label."""


def score(logits: Array, targets: Array) -> Scores:
    """Every score at once; raises ValueError for an empty set or shapes that do not match."""
    _check(logits, targets)
    single = targets.ndim == 1
    auc = mean_auc(logits, targets)
    return Scores(
        samples=len(logits),
        accuracy=accuracy(logits, targets),
        mean_average_precision=float(np.mean(average_precision(logits, targets))),
        mean_auc=auc,
        d_prime=None if auc is None else d_prime(auc),
        nll=nll(logits, targets),
        ece=expected_calibration_error(logits, targets) if single else None,
    )


def accuracy(logits: Array, targets: Array) -> float:
    """Share of samples whose largest logit is the target; of several labels the first counts."""
    truth = targets if targets.ndim == 1 else targets.argmax(axis=1)
    return float((logits.argmax(axis=1) == truth).mean())


def average_precision(logits: Array, targets: Array) -> npt.NDArray[np.float64]:
    """(C,) per class over the ranking of samples; 0 for a class without positives, which lowers the mean."""
    from sklearn.metrics import average_precision_score

    hot = _multi_hot(logits, targets)
    pairs = zip(hot.T, logits.T, strict=True)
    return np.array([average_precision_score(truth, ranked) if truth.any() else 0.0 for truth, ranked in pairs])


def auc(logits: Array, targets: Array) -> npt.NDArray[np.float64]:
    """(C,) area under the ROC curve per class; NaN for a class whose samples are all positive or all negative."""
    from sklearn.metrics import roc_auc_score

    hot = _multi_hot(logits, targets)
    pairs = zip(hot.T, logits.T, strict=True)
    return np.array([roc_auc_score(truth, ranked) if 0 < truth.mean() < 1 else np.nan for truth, ranked in pairs])


def mean_auc(logits: Array, targets: Array) -> float | None:
    """Mean over the classes; None if it is undefined for one of them, since a mean over fewer does not compare."""
    mean = float(np.mean(auc(logits, targets)))
    return None if np.isnan(mean) else mean


def d_prime(area: float) -> float | None:
    """sqrt(2) * inverse normal of an AUC; None at 0 and 1, where it is infinite."""
    value = float(np.sqrt(2) * ndtri(area))
    return value if np.isfinite(value) else None


def nll(logits: Array, targets: Array) -> float:
    """Mean negative log likelihood in nats."""
    logits = logits.astype(np.float64)
    if targets.ndim == 1:
        return float(-log_softmax(logits, axis=1)[np.arange(len(targets)), targets].mean())
    return float(-(targets * log_expit(logits) + (1 - targets) * log_expit(-logits)).mean())


def expected_calibration_error(logits: Array, targets: Array) -> float:
    """Mean gap between the top probability and its accuracy, over equal bins weighted by their samples."""
    probabilities = np.exp(log_softmax(logits.astype(np.float64), axis=1))  # (N, C)
    top = probabilities.max(axis=1)
    right = logits.argmax(axis=1) == targets
    bins = np.minimum((top * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights=right - top, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(logits))


def _multi_hot(logits: Array, targets: Array) -> Array:
    if targets.ndim == 2:
        return targets > 0.5
    return np.equal(targets[:, None], np.arange(logits.shape[1]))


def _check(logits: Array, targets: Array) -> None:
    if logits.ndim != 2 or len(logits) == 0:
        raise ValueError(f"logits must be (N, C) with N > 0, got {logits.shape}")
    if targets.shape not in ((len(logits),), logits.shape):
        raise ValueError(f"targets must be ({len(logits)},) or {logits.shape}, got {targets.shape}")
