"""Finished trials shown in experiment trackers: each is read from its folder, the training loop knows of none.

A tracker takes a trial's facts, the numbers of its event log, and its scores. The packages are extras.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mmbench.errors import ConfigError, UnknownNameError
from mmbench.files import RecordError, make_folder, write_atomic
from mmbench.layout import EVENTS
from mmbench.records import RECORD, TrialRecord, find_records, is_done, load_record
from mmbench.strict_json import read_json
from mmbench.submission_files import is_trial_id

TRACKERS: Mapping[str, str] = {
    "tensorboard": "mmbench.trackers_tensorboard",
    "wandb": "mmbench.trackers_wandb",
    "mlflow": "mmbench.trackers_mlflow",
}
"""Name, which is also the extra's, and the module whose `open_tracker` makes one."""
MAIN = ("accuracy", "map")


@dataclass(frozen=True)
class Point:
    """Numbers of one event of a trial."""

    job: str
    """`final/all`, `tune-0/noise-to-audio`: which training they belong to."""
    step: int
    """Samples seen in that job's phase, or the number of the event."""
    time: float
    """Seconds since 1970."""
    values: Mapping[str, float]


class Run(Protocol):
    """One trial in a tracker."""

    def scalars(self, point: Point) -> None:
        """Write the numbers of one event."""

    def end(self, status: str, scores: Mapping[str, float]) -> None:
        """Write the final scores and costs by name, and close the run."""


class Tracker(Protocol):
    """Somewhere that runs are kept, below a folder."""

    def start(self, trial: TrialRecord, settings: Mapping[str, Any]) -> Run:
        """Begin the run of a trial; `settings` are its facts, flat and by name."""


@dataclass(frozen=True)
class Tracked:
    """What was written, and what was there already."""

    new: tuple[str, ...]
    known: int
    problems: tuple[str, ...]


def open_tracker(name: str, out: Path) -> AbstractContextManager[Tracker]:
    """The tracker of this name, writing to `out`.

    Raises UnknownNameError, or ConfigError naming the extra that is not installed.
    """
    if name not in TRACKERS:
        raise UnknownNameError("tracker", name, TRACKERS)
    from importlib import import_module

    try:
        found: AbstractContextManager[Tracker] = import_module(TRACKERS[name]).open_tracker(out)
    except ImportError as error:
        raise ConfigError(f'{name} is not installed ({error.name} is missing): pip install "mmbench[{name}]"') from None
    return found


def track(results: Path, name: str, out: Path) -> Tracked:
    """Write every finished trial of a results folder that the tracker does not have yet.

    Raises RecordError if there is none, ConfigError if the tracker is not installed.
    """
    known, new, problems = 0, [], []
    make_folder(out / "tracked" / name)
    with open_tracker(name, out) as tracker:
        for path in find_records(results):
            if path.name != RECORD or not is_done(path.parent):
                continue
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            marker = out / "tracked" / name / path.parent.name
            if marker.is_file() and marker.read_text(encoding="utf-8") == content:
                known += 1
                continue
            try:
                record = load_record(path)
                if record.trial.id != path.parent.name or not is_trial_id(path.parent.name):
                    raise RecordError(f"{path} holds the record of another trial")  # ids name folders and rows
                _follow(tracker, record, list(points(path.with_name(EVENTS))))
            except RecordError as error:
                problems.append(str(error))
                continue
            write_atomic(marker, content.encode())  # last: a run that was cut short is written again
            new.append(path.parent.name)
    if not (known or new or problems):
        raise RecordError(f"no finished trial in {results}; give a results folder: mmbench run SUITE")
    return Tracked(tuple(new), known, tuple(problems))


def _follow(tracker: Tracker, record: TrialRecord, events: list[Point]) -> None:
    run = tracker.start(record, settings(record))
    for point in events:
        run.scalars(point)
    run.end(record.status, finals(record))


def points(events: Path) -> Iterator[Point]:
    """The numbers of an event log, in order; nothing where there is no log. Raises RecordError for a damaged one."""
    try:
        lines = events.read_text(encoding="utf-8").splitlines() if events.is_file() else []
        for number, line in enumerate(lines):
            row = read_json(line)
            kept = {key: float(v) for key, v in row.items() if key in CURVES and isinstance(v, (int, float))}
            if kept:
                job = str(row.get("job") or row.get("stream") or row["event"])
                yield Point(job, int(row.get("samples", number)), float(row["time"]), kept)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise RecordError(f"cannot read the event log {events}: {' '.join(str(error).split())[:200]}") from None


CURVES = ("loss", "lr", "score", "training_accuracy", "used", "update_seconds")
"""Keys of events that are measurements."""


def settings(record: TrialRecord) -> dict[str, Any]:
    """Facts of a trial by dotted names, plain values only; nothing of the process that shows them."""
    facts = record.trial.model_dump(mode="json", exclude={"contents", "cases", "train_cases", "deviations"})
    environment = record.environment.model_dump(mode="json", exclude={"packages", "plugins"})
    data = (
        record.data.model_dump(mode="json", include={"name", "digest", "train", "val", "test"}) if record.data else {}
    )
    return dict(_flat({**facts, "lr": record.lr, "environment": environment, "data": data}))


def _flat(content: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        elif value is not None and value != []:
            yield f"{before}{key}", value if isinstance(value, (str, int, float, bool)) else json.dumps(value)


def finals(record: TrialRecord) -> dict[str, float]:
    """Every score by `track/case/metric`, the mean over cases, and the costs that are one number."""
    found: dict[str, float] = {}
    for score in record.scores:
        if score.value is not None:
            place = [score.track, *([f"{score.stream} {score.update}"] if score.stream else []), score.case]
            found["/".join([*place, *([str(score.severity)] if score.severity else []), score.metric])] = score.value
    for track in dict.fromkeys(score.track for score in record.scores):
        values = [s.value for s in record.scores if s.track == track and s.metric in MAIN and not s.stream]
        known = [value for value in values if value is not None]
        if known and len(known) == len(values):
            found[f"{track}/mean"] = sum(known) / len(known)
    if record.costs is not None:
        numbers = record.costs.model_dump(mode="json", exclude={"seconds", "train_memory", "eval_memory"})
        found |= {f"costs/{key}": float(v) for key, v in numbers.items() if isinstance(v, (int, float))}
        found["costs/wall_seconds"] = record.costs.seconds.wall
    return found


def track_command(results: Path, name: str, out: Path) -> bool:
    """Track and tell; True if everything could be read."""
    done = track(results, name, out)
    for problem in done.problems:
        print(f"note: left out: {problem}", file=sys.stderr)
    print(f"{len(done.new)} trials written to {name} in {out}, {done.known} were there already", file=sys.stderr)
    return not done.problems
