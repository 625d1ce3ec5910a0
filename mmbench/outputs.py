"""Files a trial leaves beside its record: predictions and trained tensors."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mmbench.claims import is_own
from mmbench.errors import ConfigError
from mmbench.evaluate import Missed, Predictions
from mmbench.files import WriteError
from mmbench.layout import PREDICTIONS, STATES
from mmbench.method import State
from mmbench.records import is_done
from mmbench.resume import Interrupted
from mmbench.streams import StreamPredictions
from mmbench.train import Fitted

SEPARATOR = "::"  # between the case and the tensor's name in a state file


def check_own(folder: Path) -> None:
    """Raises Interrupted if another process has finished the trial, which this one lost as it slept for long."""
    if is_done(folder) and not is_own(folder):
        raise Interrupted


def save_predictions(found: Sequence[Predictions | Missed], folder: Path) -> None:
    """A row per sample, case, track, stream and update: these, label and logits."""
    tables = [_table(entry) for entry in found if isinstance(entry, Predictions)]
    if tables:
        _aside(folder / PREDICTIONS, lambda path: pq.write_table(pa.concat_tables(tables), path, compression="zstd"))


def _table(entry: Predictions) -> pa.Table:
    rows = len(entry.ids)
    stream, update = (entry.stream, entry.update) if isinstance(entry, StreamPredictions) else ("", "none")
    return pa.table(
        {
            "sample": pa.array(entry.ids, pa.string()),
            "case": pa.array([entry.case] * rows, pa.string()),
            "severity": pa.array([entry.severity] * rows, pa.int8()),
            "track": pa.array([entry.track] * rows, pa.string()),
            "stream": pa.array([stream] * rows, pa.string()),
            "update": pa.array([update] * rows, pa.string()),
            "label": pa.array([[int(v) for v in label.reshape(-1)] for label in entry.labels], pa.list_(pa.int32())),
            "logits": pa.array(entry.logits.tolist(), pa.list_(pa.float32())),
        }
    )


def save_states(fitted: Fitted, folder: Path) -> None:
    """Trained tensors of every case-wise state, and of a router, in one safetensors file."""
    tensors = {f"{case}{SEPARATOR}{name}": t.contiguous() for case, s in fitted.kept().items() for name, t in s.items()}
    if tensors:
        _aside(folder / STATES, lambda path: save_file(tensors, path))


def load_states(folder: Path) -> dict[str, State]:
    """States by case, as `save_states` wrote them. Raises ConfigError naming a file that is missing or damaged."""
    path = folder / STATES
    try:
        tensors = load_file(path)
    except Exception as error:
        raise ConfigError(f"cannot read states {path}: {error}") from None
    states: dict[str, State] = {}
    for key, tensor in tensors.items():
        case, _, name = key.partition(SEPARATOR)
        states.setdefault(case, {})[name] = tensor
    return states


def _aside(path: Path, write: Callable[[Path], None]) -> None:
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        write(aside)
        aside.replace(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise WriteError(f"cannot write {path}: {reason}; free some space or choose another folder") from None
    finally:
        aside.unlink(missing_ok=True)
