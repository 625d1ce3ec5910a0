"""What a trial leaves beside its record, as far as a page shows it: losses by epoch, the most confident mistakes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmbench.files import RecordError
from mmbench.layout import EVENTS, PREDICTIONS
from mmbench.records import TrialRecord
from mmbench.report.comparable import FALLBACKS
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
    wrong: int
    """Cases in which this sample is answered wrongly."""
    seen: int
    """Cases in which it was scored."""


def trial_folders(folder: Path) -> dict[str, Path]:
    """Name of every trial's folder below a results folder -> the folder; empty for a published board."""
    return {path.name: path for path in folder.glob("trials/*") if path.is_dir()}


def read_curves(folder: Path) -> tuple[Curve, ...]:
    """Losses of the final training; lines that are no epochs are passed over, and a missing file is no curve."""
    try:
        content = (folder / EVENTS).read_bytes()
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
        rows = _headline_rows(record, pq.read_table(path))
        logits = _numbers(rows["logits"], len(record.data.classes))  # (N, C)
        labels = _numbers(rows["label"], 1)[:, 0].astype(np.int64)  # (N,)
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(record.data.classes):
            raise ValueError("labels outside of the classes")
        return _mistakes(rows, logits, labels, record.data.classes, most)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        words = " ".join(str(error).split())[:200]
        raise RecordError(f"cannot read {path.name}: {words}; its mistakes are left out") from None


def _headline_rows(record: TrialRecord, table: pa.Table) -> pa.Table:
    """Rows of the most telling track; of an online adapter those of its first stream, before the update."""
    tracks = set(table["track"].unique().to_pylist())
    track = next((track for track in FALLBACKS if track in tracks), "blind")
    streams = [name for name in table["stream"].unique().to_pylist() if name]
    wanted = {"track": track, "stream": "", "update": "none"}
    if record.online is not None and streams:
        wanted |= {"stream": streams[0], "update": "before"}
    for column, value in wanted.items():
        table = table.filter(pc.equal(table[column], value))
    return table


def _numbers(column: pa.ChunkedArray, width: int) -> npt.NDArray[np.float32]:
    """Lists of equal length as an array (N, width); raises ValueError for other lengths."""
    flat = pc.list_flatten(column).to_numpy()
    if len(flat) != len(column) * width or pc.any(pc.not_equal(pc.list_value_length(column), width)).as_py():
        raise ValueError(f"rows are not of {width} values")
    return np.asarray(flat, dtype=np.float32).reshape(len(column), width)


def _mistakes(
    rows: pa.Table,
    logits: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    classes: tuple[str, ...],
    most: int,
) -> tuple[Mistake, ...]:
    answer = logits.argmax(axis=1)  # (N,)
    confidence = 1.0 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)  # (N,)
    encoded = rows["sample"].combine_chunks().dictionary_encode()
    number = encoded.indices.to_numpy()  # (N,)
    seen, wrong = (np.bincount(number, weights=w) for w in (None, answer != labels))
    order = np.argsort(-np.where(answer != labels, confidence, -1.0), kind="stable")
    found: dict[int, Mistake] = {}
    for row in order[: int((answer != labels).sum())]:
        sample = int(number[row])
        if sample not in found:
            found[sample] = Mistake(
                sample=str(encoded.dictionary[sample]),
                case=str(rows["case"][row]),
                severity=rows["severity"][row].as_py(),
                label=classes[labels[row]],
                predicted=classes[answer[row]],
                confidence=float(confidence[row]),
                wrong=int(wrong[sample]),
                seen=int(seen[sample]),
            )
        if len(found) == most:
            break
    return tuple(found.values())
