"""Scores against reference values and closed forms."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from mmbench.metrics import accuracy, auc, average_precision, d_prime, expected_calibration_error, mean_auc, nll, score

GOLDEN = Path(__file__).parent / "data" / "labels_metrics.npz"


def test_reference_values() -> None:
    golden = np.load(GOLDEN)
    logits, targets = golden["metric_output"], golden["metric_target"]
    np.testing.assert_allclose(average_precision(logits, targets), golden["metric_AP"], atol=1e-6)
    np.testing.assert_allclose(auc(logits, targets), golden["metric_auc"], atol=1e-6)  # NaN where one-sided
    assert mean_auc(logits, targets) is None and np.isnan(golden["metric_mAUC"])
    scores = score(logits, targets)
    assert scores.mean_average_precision == pytest.approx(golden["metric_mAP"].item(), abs=1e-6)
    assert scores.accuracy == pytest.approx(golden["metric_acc"].item(), abs=1e-6)
    assert d_prime(0.9) == pytest.approx(golden["metric_dprime_of_0.9"].item(), abs=1e-6)


def test_scores_of_a_single_label_set() -> None:
    rng = np.random.default_rng(0)
    targets = np.arange(300) % 4
    logits = rng.normal(size=(300, 4)) + 1.5 * np.eye(4)[targets]
    scores = score(logits, targets)
    hot = np.eye(4)[targets]
    assert scores.accuracy == accuracy(logits, hot) == float((logits.argmax(1) == targets).mean())
    assert scores.mean_average_precision == pytest.approx(average_precision(logits, hot).mean())
    wins = [(logits[targets == c, c][:, None] > logits[targets != c, c]).mean() for c in range(4)]
    assert scores.mean_auc == pytest.approx(np.mean(wins))
    assert scores.samples == 300 and scores.d_prime is not None and scores.ece is not None
    assert 0 < scores.ece < 1


def test_nll() -> None:
    assert nll(np.zeros((5, 8)), np.arange(5)) == pytest.approx(np.log(8))
    assert nll(np.zeros((5, 8)), np.eye(5, 8)) == pytest.approx(np.log(2))
    assert nll(np.array([[1000.0, 0.0]]), np.array([1])) == pytest.approx(1000)


def test_calibration_error() -> None:
    """80 % sure: right 8 times of 10 is calibrated, always right is .2 off, never right .8."""
    logits = np.log(np.tile([0.8, 0.2], (10, 1)))
    assert expected_calibration_error(logits, np.array([0] * 8 + [1] * 2)) == pytest.approx(0, abs=1e-9)
    assert expected_calibration_error(logits, np.zeros(10, dtype=int)) == pytest.approx(0.2)
    assert expected_calibration_error(logits, np.ones(10, dtype=int)) == pytest.approx(0.8)
    mixed = np.log(np.array([[0.9, 0.1], [0.6, 0.4]]))  # two bins do not cancel
    assert expected_calibration_error(mixed, np.array([1, 0])) == pytest.approx((0.9 + 0.4) / 2)
    assert expected_calibration_error(np.array([[999.0, 0.0]]), np.array([0])) == 0


@pytest.mark.parametrize("targets", [np.array([0, 0, 0]), np.array([0, 1, 2])])
def test_undefined_scores_are_none_and_the_rest_is_json(targets: np.ndarray) -> None:
    scores = score(np.eye(3) * 5, targets)
    json.dumps(asdict(scores), allow_nan=False)
    assert scores.d_prime is None  # no area, or one of exactly 1


def test_class_without_positives_lowers_the_mean() -> None:
    scores = score(np.eye(3)[[0, 1, 0, 1]], np.array([0, 1, 0, 1]))
    assert scores.mean_average_precision == pytest.approx(2 / 3)
    assert scores.mean_auc is None


@pytest.mark.parametrize(
    ("logits", "targets"),
    [
        (np.zeros((0, 3)), np.zeros(0)),
        (np.zeros(3), np.zeros(3)),
        (np.zeros((2, 3)), np.zeros(3)),
    ],
)
def test_shapes_that_do_not_fit(logits: np.ndarray, targets: np.ndarray) -> None:
    with pytest.raises(ValueError, match="must be"):
        score(logits, targets)
