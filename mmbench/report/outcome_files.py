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

from mmbench.files import RecordError, write_atomic

_MOST_CLASSES = 2**16
_WORDS = ("case", "track", "stream", "update")
_KEYS = (*_WORDS, "severity")
_PREDICTIONS = {
    **dict.fromkeys(("sample", *_WORDS), pa.string()),
    "severity": pa.int8(),
    "label": pa.list_(pa.int32()),
    "logits": pa.list_(pa.float32()),
}
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


@dataclass(frozen=True)
class Key:
    """Which of a trial's predictions."""

    case: str
    severity: int
    track: str
    stream: str = ""
    update: str = "none"


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
        if not samples or len(set(samples)) < len(samples):
            raise ValueError("an evaluation set without samples, or with one sample twice")
        wide = labels.astype(np.int64)
        return self._known.setdefault((samples, wide.tobytes()), SampleList(samples, wide))


def read_predictions(path: Path, lists: SampleLists) -> Mapping[Key, Coded]:
    """A trial's predictions of one class a sample. Raises RecordError if the file is damaged or no such file."""
    try:
        table = _read(path, _PREDICTIONS, ("sample", *_WORDS))
        return dict(_outcomes(table, lists)) if table.num_rows else {}
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> RecordError:
    what = " ".join(str(error).split())[:200]
    where = "/".join(path.parts[-2:])
    return RecordError(f"cannot read {where}: {what}; intervals come from seeds alone, or run its trial again")


def _read(path: Path, wanted: Mapping[str, pa.DataType], words: tuple[str, ...]) -> pa.Table:
    """A table of exactly these columns and types, without nulls outside of the sample lists."""
    file = pq.ParquetFile(path, read_dictionary=list(words))
    found = {field.name: field.type for field in file.schema_arrow}
    plain = {n: t.value_type if pa.types.is_dictionary(t) else t for n, t in found.items()}
    for name, kind in wanted.items():
        # The name of a list's element differs between writers and says nothing.
        if name not in plain or not _same(plain[name], kind):
            raise ValueError(f"column {name} is {plain.get(name, 'absent')}, expected {kind}")
    table = file.read(columns=list(wanted)).unify_dictionaries()
    for name in wanted:
        if name not in ("samples", "labels") and table[name].null_count:
            raise ValueError(f"column {name} has empty cells")
    return table


def _same(found: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_list(wanted):
        return bool(pa.types.is_list(found) and found.value_type.equals(wanted.value_type))
    return bool(found.equals(wanted))


def _outcomes(table: pa.Table, lists: SampleLists) -> Iterator[tuple[Key, Coded]]:
    logits = _matrix(table["logits"])  # (N, C)
    labels = _matrix(table["label"])  # (N, 1)
    if labels.shape[1] != 1:
        raise ValueError("several labels a sample in data of one label")
    if not np.isfinite(logits).all():
        raise ValueError("logits that are not finite")
    top = logits.max(axis=1, keepdims=True)
    confidence = np.rint(255 / np.exp(logits - top).sum(axis=1)).astype(np.uint8)  # (N,)
    predicted = _narrow(logits.argmax(axis=1))  # (N,)
    samples, ids = _codes(table["sample"])
    words = {name: _codes(table[name]) for name in _WORDS}
    keys = np.stack([*(codes for codes, _ in words.values()), table["severity"].to_numpy()])  # (5, N)
    starts = np.flatnonzero(np.r_[True, (keys[:, 1:] != keys[:, :-1]).any(axis=0)])
    seen: dict[bytes, SampleList] = {}
    taken: set[Key] = set()
    for start, end in zip(starts, [*starts[1:], keys.shape[1]], strict=True):
        named = {name: words[name][1][keys[i, start]] for i, name in enumerate(_WORDS)}
        key = Key(severity=int(keys[4, start]), **named)
        if key in taken:
            raise ValueError(f"case {key.case} stands in two places")
        taken.add(key)
        mark = samples[start:end].tobytes() + labels[start:end].tobytes()
        if mark not in seen:
            seen[mark] = lists.of(tuple(ids[i] for i in samples[start:end]), labels[start:end, 0])
        yield key, Coded(seen[mark], predicted[start:end], confidence[start:end])


def _matrix(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """(N, width) of a column of lists of one length."""
    array = pa.concat_arrays(column.chunks)
    values = array.flatten().to_numpy(zero_copy_only=True)
    lengths = np.diff(array.offsets.to_numpy())
    if len(lengths) == 0 or lengths[0] == 0 or (lengths != lengths[0]).any():
        raise ValueError("rows of different length")
    return np.asarray(values).reshape(len(lengths), -1)


def _codes(column: pa.ChunkedArray) -> tuple[npt.NDArray[Any], list[str]]:
    """(N,) numbers of the words, and the words."""
    array = pa.concat_arrays(column.chunks)
    return array.indices.to_numpy(), array.dictionary.to_pylist()


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
    """Outcomes by trial id. Raises RecordError if the file is damaged or no such file."""
    try:
        table = _read(path, _COMPACT, ())
        columns = [table[name].to_pylist() for name in _COMPACT]
        return _by_trial(zip(*columns, strict=True), lists)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise _damaged(path, error) from None


def _by_trial(rows: Iterator[tuple[Any, ...]], lists: SampleLists) -> dict[str, dict[Key, Coded]]:
    known: dict[int, SampleList] = {}
    found: dict[str, dict[Key, Coded]] = {}
    for trial_id, case, track, stream, update, severity, number, predicted, confidence, samples, labels in rows:
        if number not in known:
            if samples is None or labels is None or len(samples) != len(labels) or None in (*samples, *labels):
                raise ValueError(f"sample list {number} is not complete")
            known[number] = lists.of(tuple(samples), _narrow(np.array(labels)))
        size = len(known[number].samples)
        if len(confidence) != size or len(predicted) not in (size, 2 * size):
            raise ValueError(f"{len(predicted)} and {len(confidence)} bytes for {size} samples")
        classes = np.frombuffer(predicted, np.uint8 if len(predicted) == size else "<u2").astype(np.uint16)
        key = Key(case, severity, track, stream, update)
        if key in found.setdefault(trial_id, {}):
            raise ValueError(f"case {case} of trial {trial_id} stands twice")
        found[trial_id][key] = Coded(known[number], classes, np.frombuffer(confidence, np.uint8))
    return found
