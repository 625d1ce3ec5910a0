"""Every score of a record computed again from its predictions, read as a file that somebody may have made to harm.

What is read is bounded by what the record says there must be, before anything is unpacked; text is kept as codes into
a dictionary, so that repeating a long one costs nothing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmbench import metrics
from mmbench.records import Score, TrialRecord

TEXT = ("sample", "case", "track", "stream", "update")
COLUMNS: Mapping[str, pa.DataType] = {
    **dict.fromkeys(("sample", "case"), pa.string()),
    "severity": pa.int8(),
    **dict.fromkeys(("track", "stream", "update"), pa.string()),
    "label": pa.list_(pa.int32()),
    "logits": pa.list_(pa.float32()),
}
BEFORE_STREAMS = ("stream", "update")
"""Columns that predictions from before online adapters lack."""
MAIN = ("accuracy", "map", "nll", "ece")
"""Metrics that a trial writes; others are computed from the predictions when a board is made."""
TOLERANCE = 1e-6
"""Relative beyond 1, absolute below; logits are stored as they were scored, so only the order of sums differs."""
BATCH_ROWS = 8192
MOST_VALUES = 2**28
"""Logits of one set of predictions: 1 GiB."""
LONGEST_TEXT = 1000
MOST_TEXT_BYTES = 4096
"""Per row, before packing: five texts, severity and what the format adds."""

Key = tuple[str, int, str, str, str]
"""Case, severity, track, stream, update."""


class UnusableError(Exception):
    """Why a prediction file cannot be scored."""


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


@dataclass(frozen=True)
class Group:
    """Predictions of one case on one track."""

    key: Key
    ids: pa.Array  # (N,)
    labels: npt.NDArray[np.int32]  # (N, 1) or (N, C)
    logits: npt.NDArray[np.float32]  # (N, C)


def recompute(record: TrialRecord, path: Path) -> Recomputed:
    """Compare every score with the predictions.

    Raises UnusableError for a file that is damaged, of another layout, or larger than its record allows.
    """
    if record.data is None:
        raise UnusableError("the record says nothing of its data")
    wanted, unseen = _wanted(record)
    most = max((found[0].n for found in wanted.values()), default=0) * len(record.data.classes)
    if most > MOST_VALUES:
        raise UnusableError(f"a score stands on {most} logits by its record; at most {MOST_VALUES} are read")
    wrong: list[str] = []
    seen: dict[Key, str] = {}
    count = 0
    for group in _read(path, record, sum(found[0].n for found in wanted.values())):
        name = key_words(group.key)
        if group.key not in wanted:
            raise UnusableError(f"holds predictions that the record has no score for: {name}")
        if group.key in seen:
            raise UnusableError(f"holds {name} twice, with others in between")
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


def key_words(key: Key) -> str:
    """A set of predictions as a reader knows it."""
    case, severity, track, stream, update = key
    scale = f"@{severity}" if severity and "@" not in case else ""
    return f"{case}{scale} ({', '.join(filter(None, (track, stream, update if stream else '')))})"


def score_key(score: Score) -> Key:
    return (score.case, score.severity, score.track, score.stream, score.update)


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


def _read(path: Path, record: TrialRecord, rows: int) -> Iterator[Group]:
    """Groups in the file's order. Only the schema and the sizes are looked at before the first is unpacked."""
    assert record.data is not None  # checked by the caller
    classes = len(record.data.classes)
    widths = {"label": classes if record.data.multi_label else 1, "logits": classes}
    try:
        names = _checked_layout(path, rows, widths)
        with pq.ParquetFile(path, read_dictionary=[name for name in TEXT if name in names]) as file:
            yield from _groups(file.iter_batches(batch_size=BATCH_ROWS, columns=names, use_threads=False), widths)
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        raise UnusableError(f"damaged: {' '.join(str(error).split())[:200]}") from None


def _checked_layout(path: Path, rows: int, widths: Mapping[str, int]) -> list[str]:
    """Names of the columns; raises UnusableError for other columns, types or sizes than the record calls for."""
    with pq.ParquetFile(path, thrift_string_size_limit=2**24, thrift_container_size_limit=2**20) as file:
        schema, facts = file.schema_arrow, file.metadata
        expected = [name for name in COLUMNS if name in schema.names or name not in BEFORE_STREAMS]
        if schema.names != expected:
            raise UnusableError(f"its columns are {', '.join(schema.names)[:200]}, not {', '.join(COLUMNS)}")
        for name in expected:
            if not schema.field(name).type.equals(COLUMNS[name]):
                raise UnusableError(f"column {name} is {str(schema.field(name).type)[:80]}, not {COLUMNS[name]}")
        if facts.num_rows != rows:
            raise UnusableError(f"holds {facts.num_rows} rows where the record's scores stand on {rows}")
        for index in range(facts.num_row_groups):
            _check_size(facts.row_group(index), widths)
    return expected


def _check_size(group: Any, widths: Mapping[str, int]) -> None:
    """Raises UnusableError if a row group declares more than its rows can hold."""
    per_row = MOST_TEXT_BYTES + 16 * sum(widths.values())
    columns = [group.column(index) for index in range(group.num_columns)]
    widest = [group.num_rows * widths.get(column.path_in_schema.partition(".")[0], 1) for column in columns]
    fits = all(column.num_values <= most for column, most in zip(columns, widest, strict=True))
    if not fits or group.total_byte_size > 1024 * MOST_TEXT_BYTES + group.num_rows * per_row:
        raise UnusableError(f"a row group of {group.num_rows} rows declares {group.total_byte_size} bytes")


def _groups(batches: Iterator[pa.RecordBatch], widths: Mapping[str, int]) -> Iterator[Group]:
    """Rows that follow each other under one key, put together."""
    key: Key | None = None
    parts: list[Group] = []
    for batch in batches:
        for found in _runs(batch, widths):
            if parts and found.key != key:
                yield _joined(parts)
                parts = []
            key = found.key
            parts.append(found)
    if parts:
        yield _joined(parts)


def _joined(parts: Sequence[Group]) -> Group:
    ids = pa.concat_arrays([part.ids for part in parts])
    labels, logits = (np.concatenate([getattr(part, name) for part in parts]) for name in ("labels", "logits"))
    return Group(parts[0].key, ids, labels, logits)


def _runs(batch: pa.RecordBatch, widths: Mapping[str, int]) -> Iterator[Group]:
    """Stretches of a batch with one key."""
    for name in batch.schema.names:
        if batch.column(name).null_count:
            raise UnusableError(f"column {name} has gaps")
    texts = {name: _text(batch, name) for name in TEXT if name in batch.schema.names}
    severity = batch.column("severity").to_numpy()
    columns = [codes for name, (codes, _) in texts.items() if name != "sample"]
    codes = np.stack([*columns, severity.astype(np.int64)])  # (K, N)
    cuts = (np.flatnonzero((codes[:, 1:] != codes[:, :-1]).any(axis=0)) + 1).tolist()
    for begin, end in zip([0, *cuts], [*cuts, batch.num_rows], strict=True):
        text = {"stream": "", "update": "none", **{name: known[int(of[begin])] for name, (of, known) in texts.items()}}
        key = (text["case"], int(severity[begin]), text["track"], text["stream"], text["update"])
        rows = batch.slice(begin, end - begin)
        yield Group(key, rows.column("sample").cast(pa.string()), *(_matrix(rows, n, widths[n]) for n in widths))


def _text(batch: pa.RecordBatch, name: str) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Codes (N,) and the texts they stand for."""
    column = batch.column(name)
    longest = pc.max(pc.binary_length(column.dictionary)).as_py() or 0
    if longest > LONGEST_TEXT:
        raise UnusableError(f"column {name} holds a text of {longest} bytes")
    return column.indices.to_numpy().astype(np.int64), column.dictionary.to_pylist()


def _matrix(rows: pa.RecordBatch, name: str, width: int) -> npt.NDArray[Any]:
    """A list column as (N, width)."""
    column = rows.column(name)
    flat = column.flatten()
    if flat.null_count or pc.unique(pc.list_value_length(column)).to_pylist() != [width]:
        raise UnusableError(f"column {name} does not hold {width} values in every row")
    values: npt.NDArray[Any] = flat.to_numpy().reshape(len(column), width)
    return values


def _sample_digest(group: Group) -> str:
    """Digest of ids and labels; raises UnusableError where a sample stands twice."""
    ids = group.ids.to_pylist()
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
