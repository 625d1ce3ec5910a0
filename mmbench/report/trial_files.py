"""What a trial leaves beside its record, as far as a page shows it: losses by epoch, the most confident mistakes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mmbench.files import RecordError, read_plain
from mmbench.layout import EVENTS, EVENTS_BYTES, PREDICTIONS
from mmbench.records import TrialRecord
from mmbench.report.comparable import FALLBACKS
from mmbench.report.prediction_groups import Group, Key, UnusableError, read_groups
from mmbench.strict_json import read_events

FINAL = "final/"
"""How the job of an epoch begins that belongs to the final training, not to tuning."""
MOST_MISTAKES = 12


@dataclass(frozen=True)
class Point:
    samples: int
    """Seen so far."""
    loss: float


@dataclass(frozen=True)
class Curve:
    """Mean loss of every epoch of one trained state."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Mistake:
    """A sample for which the model is sure of a wrong class."""

    sample: str
    case: str
    severity: int
    label: str
    predicted: str
    confidence: float
    """Softmax probability of the wrong class."""
    wrong: int = 0
    """Cases in which this sample is answered wrongly."""
    seen: int = 0
    """Cases in which it was scored."""


def trial_folders(folder: Path) -> dict[str, Path]:
    """Name of every trial's folder below a results folder -> the folder; empty for a published board."""
    return {path.name: path for path in folder.glob("trials/*") if path.is_dir()}


def read_curves(folder: Path) -> tuple[Curve, ...]:
    """Losses of the final training; lines that are no epochs are passed over, and a missing file is no curve."""
    try:
        content = read_plain(folder / EVENTS, EVENTS_BYTES)
    except OSError:
        return ()
    found: dict[str, list[Point]] = {}
    for entry in read_events(content):
        if entry.get("event") != "epoch":
            continue
        job, point = str(entry.get("job")), _point(entry)
        if job.startswith(FINAL) and point is not None:
            found.setdefault(job.removeprefix(FINAL), []).append(point)
    return tuple(Curve(name, tuple(points)) for name, points in found.items())


def _point(entry: dict[str, object]) -> Point | None:
    samples, loss = entry.get("samples"), entry.get("loss")
    if not isinstance(samples, int) or samples < 1 or not isinstance(loss, (int, float)) or not math.isfinite(loss):
        return None
    return Point(samples, float(loss))


def read_mistakes(record: TrialRecord, folder: Path, most: int = MOST_MISTAKES) -> tuple[Mistake, ...]:
    """The most confident wrong answers, a sample once; nothing without predictions or with several labels a sample.

    Raises RecordError if the predictions cannot be read.
    """
    path = folder / PREDICTIONS
    if record.data is None or record.data.multi_label or not path.is_file():
        return ()
    try:
        answered = [_answered(group, record.data.classes, most) for group in read_groups(path, record)]
    except UnusableError as error:
        raise RecordError(f"cannot read {path.name}: {error}; its mistakes are left out") from None
    chosen = _headline(record, answered)
    seen = Counter(id for entry in chosen for id in entry.seen)
    wrong = Counter(id for entry in chosen for id in entry.wrong)
    found: dict[str, Mistake] = {}
    for mistake in sorted((m for entry in chosen for m in entry.surest), key=lambda m: -m.confidence):
        found.setdefault(mistake.sample, replace(mistake, wrong=wrong[mistake.sample], seen=seen[mistake.sample]))
    return tuple(found.values())[:most]


@dataclass(frozen=True, eq=False)
class _Answered:
    """What is kept of the predictions of one case."""

    key: Key
    seen: npt.NDArray[np.object_]  # (N,) sample ids
    wrong: npt.NDArray[np.object_]  # (W,) of those answered wrongly
    surest: tuple[Mistake, ...]


def _answered(group: Group, classes: tuple[str, ...], most: int) -> _Answered:
    answers, confidence = group.answers()
    labels = group.labels[:, 0]
    wrong = np.flatnonzero(answers != labels)  # (W,)
    surest = tuple(
        Mistake(
            sample=group.ids[row],
            case=group.key.case,
            severity=group.key.severity,
            label=classes[labels[row]],
            predicted=classes[answers[row]],
            confidence=float(confidence[row]),
        )
        for row in wrong[np.argsort(-confidence[wrong], kind="stable")][:most]
    )
    return _Answered(group.key, group.ids, group.ids[wrong], surest)


def _headline(record: TrialRecord, answered: Sequence[_Answered]) -> list[_Answered]:
    """Those of the most telling track; of an online adapter those of its first stream, before the update."""
    track = next((track for track in FALLBACKS if any(found.key.track == track for found in answered)), "blind")
    streams = [found.key.stream for found in answered if found.key.stream]
    wanted = (track, streams[0], "before") if record.online is not None and streams else (track, "", "none")
    return [found for found in answered if found.key[2:] == wanted]
