"""The predictions beside a record, read as a file that somebody may have made to harm.

What is read is bounded by what the record says there must be, before anything is unpacked, and one case is held at a
time; text is kept as codes into a dictionary, so that repeating a long one costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmbench.files import why_not_plain
from mmbench.layout import PREDICTIONS_BYTES
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
BATCH_ROWS, BATCH_VALUES = 2**16, 2**24
MOST_ROWS = 2**24
MOST_VALUES = 2**26
"""Logits of one set of predictions: 256 MiB."""
LONGEST_TEXT = 1000
MOST_TEXT_BYTES = 4096
"""Per row, before packing: five texts, severity and what the format adds."""


class UnusableError(Exception):
    """Why a prediction file cannot be used."""


class Key(NamedTuple):
    """Which of a trial's predictions."""

    case: str
    severity: int
    track: str
    stream: str = ""
    update: str = "none"


@dataclass(frozen=True, eq=False)
class Group:
    """Predictions of one case on one track."""

    key: Key
    ids: npt.NDArray[np.object_]  # (N,) of str
    labels: npt.NDArray[np.int32]  # (N, 1) or (N, C)
    logits: npt.NDArray[np.float32]  # (N, C)

    def answers(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """(N,) predicted classes and (N,) their softmax probabilities, of data with one label a sample.

        Raises UnusableError for other data, logits that are not finite and labels that are no class.
        """
        if self.labels.shape[1] != 1:
            raise UnusableError("several labels a sample in data of one label")
        if not np.isfinite(self.logits).all():
            raise UnusableError("logits that are not finite")
        if self.labels.min() < 0 or self.labels.max() >= self.logits.shape[1]:
            raise UnusableError(f"labels outside of the {self.logits.shape[1]} classes")
        top = self.logits.max(axis=1, keepdims=True)
        return self.logits.argmax(axis=1), 1.0 / np.exp(self.logits - top).sum(axis=1)


def score_key(score: Score) -> Key:
    """Which predictions a score stands on."""
    return Key(score.case, score.severity, score.track, score.stream, score.update)


def rows_of(record: TrialRecord) -> int:
    """The most predictions that a record speaks of."""
    counts: dict[Key, int] = {}
    for score in record.scores:
        counts[score_key(score)] = max(score.n, counts.get(score_key(score), 0))
    return sum(counts.values())


def read_groups(path: Path, record: TrialRecord, exactly: int | None = None) -> Iterator[Group]:
    """Groups in the file's order; `exactly` so many rows, or as many as the record speaks of at most.

    Raises UnusableError for a file that is damaged, of another layout, or larger than its record allows.
    """
    if record.data is None:
        raise UnusableError("the record says nothing of its data")
    classes = len(record.data.classes)
    widths = {"label": classes if record.data.multi_label else 1, "logits": classes}
    reason = why_not_plain(path, PREDICTIONS_BYTES, links=True)
    if reason is not None:
        raise UnusableError(reason)
    try:
        names = _checked_layout(path, widths)
        with open_parquet(path, [name for name in TEXT if name in names]) as file:
            _check_rows(file.metadata.num_rows, rows_of(record), exactly)
            size = max(1, min(BATCH_ROWS, BATCH_VALUES // max(classes, 1)))
            yield from _groups(file.iter_batches(batch_size=size, columns=names, use_threads=False), widths)
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        raise UnusableError(f"damaged: {' '.join(str(error).split())[:200]}") from None


def open_parquet(path: Path, words: Sequence[str] = ()) -> pq.ParquetFile:
    limits = {"thrift_string_size_limit": 2**24, "thrift_container_size_limit": 2**20}
    return pq.ParquetFile(path, read_dictionary=list(words), **limits)


def _checked_layout(path: Path, widths: Mapping[str, int]) -> list[str]:
    """Names of the columns; raises UnusableError for other columns, types or sizes than the record calls for."""
    with open_parquet(path) as file:
        schema, facts = file.schema_arrow, file.metadata
        expected = [name for name in COLUMNS if name in schema.names or name not in BEFORE_STREAMS]
        if sorted(schema.names) != sorted(expected):
            raise UnusableError(f"its columns are {', '.join(schema.names)[:200]}, not {', '.join(COLUMNS)}")
        for name in expected:
            if not same_type(schema.field(name).type, COLUMNS[name]):
                raise UnusableError(f"column {name} is {str(schema.field(name).type)[:80]}, not {COLUMNS[name]}")
        for index in range(facts.num_row_groups):
            _check_size(facts.row_group(index), widths)
    return expected


def same_type(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether types agree; how a list's element is named, and whether text is packed, differs between writers."""
    if pa.types.is_dictionary(found):
        return same_type(found.value_type, wanted)
    if pa.types.is_list(wanted):
        return bool(pa.types.is_list(found) and found.value_type.equals(wanted.value_type))
    return bool(found.equals(wanted))


def _check_rows(found: int, most: int, exactly: int | None) -> None:
    if found > MOST_ROWS:
        raise UnusableError(f"holds {found} rows; at most {MOST_ROWS} are read")
    if found > most or (exactly is not None and found != exactly):
        wanted = most if exactly is None else exactly
        raise UnusableError(f"holds {found} rows where the record's scores stand on {wanted}")


def _check_size(group: Any, widths: Mapping[str, int]) -> None:
    """Raises UnusableError if a row group declares more than its rows can hold."""
    per_row = MOST_TEXT_BYTES + 16 * sum(widths.values())
    columns = [group.column(index) for index in range(group.num_columns)]
    widest = [group.num_rows * widths.get(column.path_in_schema.partition(".")[0], 1) for column in columns]
    fits = all(column.num_values <= most for column, most in zip(columns, widest, strict=True))
    if not fits or group.total_byte_size > 1024 * MOST_TEXT_BYTES + group.num_rows * per_row:
        raise UnusableError(f"a row group of {group.num_rows} rows declares {group.total_byte_size} bytes")


def _groups(batches: Iterator[pa.RecordBatch], widths: Mapping[str, int]) -> Iterator[Group]:
    """Rows that follow each other under one key, put together; raises UnusableError for a key in two places."""
    seen: set[Key] = set()
    parts: list[Group] = []
    for batch in batches:
        for found in _runs(batch, widths):
            if parts and found.key != parts[0].key:
                yield _joined(parts)
                seen.add(parts[0].key)
                parts = []
            if found.key in seen:
                raise UnusableError(f"holds {key_words(found.key)} twice, with others in between")
            parts.append(found)
            values = sum(part.logits.size for part in parts)
            if values > MOST_VALUES:
                raise UnusableError(f"holds {values} logits of {key_words(found.key)}; at most {MOST_VALUES} are read")
    if parts:
        yield _joined(parts)


def key_words(key: Key) -> str:
    """A set of predictions as a reader knows it."""
    case, severity, track, stream, update = key
    scale = f"@{severity}" if severity and "@" not in case else ""
    return f"{case}{scale} ({', '.join(filter(None, (track, stream, update if stream else '')))})"


def _joined(parts: Sequence[Group]) -> Group:
    if len(parts) == 1:
        return parts[0]
    ids, labels, logits = (np.concatenate([getattr(p, name) for p in parts]) for name in ("ids", "labels", "logits"))
    return Group(parts[0].key, ids, labels, logits)


def _runs(batch: pa.RecordBatch, widths: Mapping[str, int]) -> Iterator[Group]:
    """Stretches of a batch with one key."""
    if not batch.num_rows:
        return
    for name in batch.schema.names:
        if batch.column(name).null_count:
            raise UnusableError(f"column {name} has gaps")
    texts = {name: _text(batch, name) for name in TEXT if name in batch.schema.names}
    known, of = texts.pop("sample")
    ids = known[of]  # (N,)
    matrices = [_matrix(batch, name, width) for name, width in widths.items()]
    severity = batch.column("severity").to_numpy()
    codes = np.stack([*(codes for _, codes in texts.values()), severity.astype(np.int64)])  # (K, N)
    cuts = (np.flatnonzero((codes[:, 1:] != codes[:, :-1]).any(axis=0)) + 1).tolist()
    for begin, end in zip([0, *cuts], [*cuts, batch.num_rows], strict=True):
        named = {name: str(words[codes[begin]]) for name, (words, codes) in texts.items()}
        key = Key(severity=int(severity[begin]), **named)
        yield Group(key, ids[begin:end], *(matrix[begin:end] for matrix in matrices))


def _text(batch: pa.RecordBatch, name: str) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.int64]]:
    """Texts, and the place (N,) among them of every row's."""
    column = batch.column(name)
    longest = pc.max(pc.binary_length(column.dictionary)).as_py() or 0
    if longest > LONGEST_TEXT:
        raise UnusableError(f"column {name} holds a text of {longest} bytes")
    return np.array(column.dictionary.to_pylist(), dtype=object), column.indices.to_numpy().astype(np.int64)


def _matrix(rows: pa.RecordBatch, name: str, width: int) -> npt.NDArray[Any]:
    """A list column as (N, width)."""
    column = rows.column(name)
    flat = column.flatten()
    if flat.null_count or pc.unique(pc.list_value_length(column)).to_pylist() != [width]:
        raise UnusableError(f"column {name} does not hold {width} values in every row")
    values: npt.NDArray[Any] = flat.to_numpy().reshape(len(column), width)
    return values
