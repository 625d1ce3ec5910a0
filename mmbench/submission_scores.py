"""Every score of a record computed again from its predictions."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mmbench import metrics
from mmbench.records import Score, TrialRecord
from mmbench.report.prediction_groups import Group, Key, UnusableError, key_words, read_groups, score_key

MAIN = ("accuracy", "map", "nll", "ece")
"""Metrics that a trial writes; others are computed from the predictions when a board is made."""
TOLERANCE = 1e-6
"""Relative beyond 1, absolute below; logits are stored as they were scored, so only the order of sums differs."""


@dataclass(frozen=True)
class Recomputed:
    """What a prediction file says of its record."""

    wrong: tuple[str, ...]
    """Scores and counts that differ, in words."""
    scores: int
    """How many were computed again."""
    unseen: tuple[str, ...]
    """Streams whose predictions are not kept."""
    samples: str
    """Digest of the sample ids and labels in their order; equal for all trials on one test split."""


def recompute(record: TrialRecord, path: Path) -> Recomputed:
    """Compare every score with the predictions.

    Raises UnusableError for a file that is damaged, of another layout, or larger than its record allows.
    """
    if record.data is None:
        raise UnusableError("the record says nothing of its data")
    wanted, unseen = _wanted(record)
    wrong: list[str] = []
    seen: dict[Key, str] = {}
    count = 0
    for group in read_groups(path, record, exactly=sum(found[0].n for found in wanted.values())):
        name = key_words(group.key)
        if group.key not in wanted:
            raise UnusableError(f"holds predictions that the record has no score for: {name}")
        seen[group.key] = _sample_digest(group)
        compared = [_compare(score, group, record.data.multi_label) for score in wanted[group.key]]
        count += len(compared)
        wrong += [text for text in compared if text is not None]
    absent = [key_words(key) for key in wanted if key not in seen]
    if absent:
        wrong.append(f"no predictions for {len(absent)} of {len(wanted)} scored sets: {', '.join(absent[:3])}")
    if len(set(seen.values())) > 1:
        wrong.append("its cases were not all scored on the same samples, labels and order")
    return Recomputed(tuple(wrong), count, unseen, next(iter(seen.values()), ""))


def _wanted(record: TrialRecord) -> tuple[dict[Key, list[Score]], tuple[str, ...]]:
    """Scores by the predictions they stand on; and streams that leave none, which are all but the first."""
    streams = list(dict.fromkeys(score.stream for score in record.scores if score.stream))
    named = [str(name) for name in record.trial.contents.get("streams") or streams]
    kept = {"", *named[:1]}
    found: dict[Key, list[Score]] = {}
    for score in record.scores:
        if score.value is not None and score.metric in MAIN and score.stream in kept:
            found.setdefault(score_key(score), []).append(score)
    return found, tuple(stream for stream in streams if stream not in kept)


def _sample_digest(group: Group) -> str:
    """Digest of ids and labels; raises UnusableError where a sample stands twice."""
    ids = group.ids.tolist()
    if len(set(ids)) != len(ids):
        raise UnusableError(f"{key_words(group.key)} holds a sample twice")
    found = hashlib.sha256("\0".join(ids).encode())
    found.update(np.ascontiguousarray(group.labels, np.int32).tobytes())
    return found.hexdigest()


def _compare(score: Score, group: Group, multi_label: bool) -> str | None:
    """What is wrong with a score; None if nothing is."""
    place = key_words(group.key)
    if len(group.ids) != score.n:
        return f"{score.metric} of {place} says n = {score.n}; there are {len(group.ids)} predictions"
    if not np.isfinite(group.logits).all():
        return f"logits of {place} are not all finite"
    labels, classes = group.labels, group.logits.shape[1]
    if labels.min() < 0 or labels.max() >= (2 if multi_label else classes):
        return f"labels of {place} are outside the {classes} classes"
    value = _metric(score.metric, group.logits, labels if multi_label else labels[:, 0])
    if math.isclose(value, score.value or 0.0, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
        return None
    return f"{score.metric} of {place} is {score.value:.6g} in the record; its predictions give {value:.6g}"


def _metric(name: str, logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int32]) -> float:
    match name:
        case "accuracy":
            return metrics.accuracy(logits, labels)
        case "nll":
            return metrics.nll(logits, labels)
        case "ece":
            return metrics.expected_calibration_error(logits, labels)
    return float(np.mean(metrics.average_precision(logits, labels)))
