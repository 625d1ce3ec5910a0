"""The two files that hold outcomes: a trial's predictions, and the compact file of a whole board."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mmbench.files import RecordError, why_not_plain, write_atomic
from mmbench.layout import OUTCOMES_BYTES
from mmbench.records import TrialRecord
from mmbench.report.prediction_groups import Group, Key, UnusableError, open_parquet, read_groups, same_type

_MOST_CLASSES = 2**16
_WORDS = ("case", "track", "stream", "update")
_KEYS = (*_WORDS, "severity")
_MOST_OUTCOMES = 2**22
_MOST_SAMPLES = 2**24  # in all lists together
_MOST_VALUES = 2**29  # samples of all outcomes together, three bytes each
# A row an outcome. `list` numbers the samples it was scored on, which stand in the first row of that number.
_COMPACT = {
    **dict.fromkeys(("trial", *_WORDS), pa.string()),
    "severity": pa.int8(),
    "list": pa.int32(),
    "predicted": pa.binary(),
    "confidence": pa.binary(),
    "samples": pa.list_(pa.string()),
    "labels": pa.list_(pa.int32()),
}


@dataclass(frozen=True, eq=False)
class SampleList:
    """The samples of an evaluation set in order, with their classes."""

    samples: tuple[str, ...]
    labels: npt.NDArray[np.int64]  # (S,)


@dataclass(frozen=True, eq=False)
class Coded:
    """Outcomes as they are kept: one small number a sample each."""

    list: SampleList
    predicted: npt.NDArray[np.uint16]  # (S,)
    confidence: npt.NDArray[np.uint8]  # (S,) of 255


class SampleLists:
    """Keeps one object for equal lists, so that trials on the same samples need no alignment."""

    def __init__(self) -> None:
        self._known: dict[tuple[tuple[str, ...], bytes], SampleList] = {}

    def of(self, samples: tuple[str, ...], labels: npt.NDArray[Any]) -> SampleList:
        wide = labels.astype(np.int64)
        content = (samples, wide.tobytes())
        if content not in self._known:
            if not samples or len(set(samples)) < len(samples):
                raise ValueError("an evaluation set without samples, or with one sample twice")
            self._known[content] = SampleList(samples, wide)
        return self._known[content]


def read_predictions(path: Path, record: TrialRecord, lists: SampleLists) -> Mapping[Key, Coded]:
    """A trial's predictions of one class a sample. Raises RecordError if the file is damaged or no such file."""
    try:
        return {group.key: _coded(group, lists) for group in read_groups(path, record)}
    except (UnusableError, ValueError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> RecordError:
    what = " ".join(str(error).split())[:200]
    where = "/".join(path.parts[-2:])
    return RecordError(f"cannot read {where}: {what}; intervals come from seeds alone, or run its trial again")


def _coded(group: Group, lists: SampleLists) -> Coded:
    predicted, confidence = group.answers()
    listed = lists.of(tuple(group.ids), group.labels[:, 0])
    return Coded(listed, _narrow(predicted), np.rint(255 * confidence).astype(np.uint8))


def _narrow(classes: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    if len(classes) and (classes.min() < 0 or classes.max() >= _MOST_CLASSES):
        raise ValueError(f"a class outside of 0..{_MOST_CLASSES - 1}")
    return classes.astype(np.uint16)


def write_compact(kept: Mapping[str, Mapping[Key, Coded]], path: Path) -> None:
    """The outcomes of many trials in one file: two bytes a sample before compression, sample names once."""
    numbers: dict[int, int] = {}
    lists: dict[tuple[tuple[str, ...], bytes], int] = {}  # equal ones of several boards are one
    rows: list[tuple[Any, ...]] = []
    for trial_id, entries in kept.items():
        for key, coded in entries.items():
            held = coded.list
            known = len(lists)
            if id(held) not in numbers:
                numbers[id(held)] = lists.setdefault((held.samples, held.labels.tobytes()), known)
            number = numbers[id(held)]
            listed = (held.samples, held.labels) if len(lists) > known else (None, None)
            wide = coded.predicted.max(initial=0) > 255
            predicted = coded.predicted.astype("<u2" if wide else np.uint8).tobytes()
            names = (trial_id, *(getattr(key, name) for name in _KEYS))
            rows.append((*names, number, predicted, coded.confidence.tobytes(), *listed))
    columns = [
        pa.array(list(column), kind) for column, kind in zip(zip(*rows, strict=True), _COMPACT.values(), strict=True)
    ]
    out = io.BytesIO()
    dictionaries = ["trial", *_WORDS]
    pq.write_table(
        pa.table(columns, names=list(_COMPACT)),
        out,
        compression="zstd",
        compression_level=9,
        use_dictionary=dictionaries,
    )
    write_atomic(path, out.getvalue())


def read_compact(path: Path, lists: SampleLists) -> Mapping[str, Mapping[Key, Coded]]:
    """Outcomes by trial id. Raises RecordError if the file is damaged, too large, or no such file."""
    try:
        reason = why_not_plain(path, OUTCOMES_BYTES, links=True)
        if reason is not None:
            raise ValueError(reason)
        with open_parquet(path, _checked_layout(path)) as file:
            table = file.read(columns=list(_COMPACT), use_threads=False)
        for name in _COMPACT:
            if name not in ("samples", "labels") and table[name].null_count:
                raise ValueError(f"column {name} has empty cells")
        return _by_trial(zip(*(_cells(table[name]) for name in _COMPACT), strict=True), lists)
    except (OSError, ValueError, LookupError, MemoryError, pa.ArrowException) as error:
        raise _damaged(path, error) from None


def _checked_layout(path: Path) -> list[str]:
    """Columns of text and bytes by the names that Parquet gives them; raises ValueError for another layout."""
    with open_parquet(path) as file:
        found = {field.name: field.type for field in file.schema_arrow}
        for name, kind in _COMPACT.items():
            if name not in found or not same_type(found[name], kind):
                raise ValueError(f"column {name} is {found.get(name, 'absent')}, expected {kind}")
        facts = file.metadata
        groups = [facts.row_group(index) for index in range(facts.num_row_groups)]
        columns = [group.column(index) for group in groups for index in range(facts.num_columns)]
    values = sum(column.num_values for column in columns if "." in column.path_in_schema)
    if facts.num_rows > _MOST_OUTCOMES or values > 2 * (_MOST_OUTCOMES + _MOST_SAMPLES):
        raise ValueError(f"{facts.num_rows} outcomes on lists of {values} samples and labels are too many")
    return list(dict.fromkeys(c.path_in_schema for c in columns if c.physical_type == "BYTE_ARRAY"))


def _cells(column: pa.ChunkedArray) -> Iterator[Any]:
    """Values of a column; equal words are one object, so that repeating a long one costs nothing."""
    for chunk in column.chunks:
        if pa.types.is_list(chunk.type):
            values, offsets = list(_words(chunk.values)), chunk.offsets.to_pylist()
            spans = zip(offsets, offsets[1:], chunk.is_valid().to_pylist(), strict=False)
            yield from (values[start:end] if there else None for start, end, there in spans)
        else:
            yield from _words(chunk)


def _words(array: pa.Array) -> Iterator[Any]:
    if not pa.types.is_dictionary(array.type):
        yield from array.to_pylist()
        return
    known = array.dictionary.to_pylist()
    yield from (None if code is None else known[code] for code in array.indices.to_pylist())


def _by_trial(rows: Iterator[tuple[Any, ...]], lists: SampleLists) -> dict[str, dict[Key, Coded]]:
    known: dict[int, SampleList] = {}
    found: dict[str, dict[Key, Coded]] = {}
    values = 0
    for trial_id, case, track, stream, update, severity, number, predicted, confidence, samples, labels in rows:
        if number not in known:
            if samples is None or labels is None or len(samples) != len(labels) or None in (*samples, *labels):
                raise ValueError(f"sample list {number} is not complete")
            known[number] = lists.of(tuple(samples), _narrow(np.array(labels)))
        size = len(known[number].samples)
        if len(confidence) != size or len(predicted) not in (size, 2 * size):
            raise ValueError(f"{len(predicted)} and {len(confidence)} bytes for {size} samples")
        values += size
        if values > _MOST_VALUES:
            raise ValueError(f"more than {_MOST_VALUES} predictions")
        classes = np.frombuffer(predicted, np.uint8 if len(predicted) == size else "<u2").astype(np.uint16)
        key = Key(case, severity, track, stream, update)
        if key in found.setdefault(trial_id, {}):
            raise ValueError(f"case {case} of trial {trial_id} stands twice")
        found[trial_id][key] = Coded(known[number], classes, np.frombuffer(confidence, np.uint8))
    return found
