"""Where a results folder stands: what is done, what failed and why, what runs where, about how long the rest takes.

All of it is read from the disk while trials may be writing there: what is half written counts as not there yet.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from mmbench.cases import case_data
from mmbench.claims import is_claimed
from mmbench.config import Suite
from mmbench.errors import MMBenchError
from mmbench.files import RecordError
from mmbench.layout import SUITE
from mmbench.records import FAILED, Status
from mmbench.status_files import (
    UNREADABLE,
    Ended,
    Kind,
    Running,
    Waiting,
    kind_of,
    left_behind,
    read_end,
    read_running,
    read_spec,
)
from mmbench.suite_file import load_suite
from mmbench.trials import Row, Trial, rows, suite_cases


@dataclass(frozen=True)
class Group:
    """Trials that ended the same way for the same reason."""

    status: str
    reason: str
    trials: tuple[str, ...]


@dataclass(frozen=True)
class Standing:
    """A results folder at one moment."""

    folder: Path
    suite: str
    """Empty where the folder has no suite that can be read."""
    ended: tuple[Ended, ...] = ()
    running: tuple[Running, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    unplanned: int = 0
    """Rows of the suite that have no folder yet: its data are still being prepared, or it was interrupted there."""
    foreign: tuple[str, ...] = ()
    """Unfinished trials that the suite no longer asks for."""
    note: str = ""
    """Why the suite could not be looked at."""
    seconds_left: float | None = None
    """Estimate at the present number of workers; None as long as nothing has finished."""
    typed: str = ""
    """The URL that the folder is a mirror of."""

    @property
    def place(self) -> str:
        """What a command names it by."""
        return self.typed or str(self.folder)

    @property
    def statuses(self) -> Counter[str]:
        return Counter(entry.status for entry in self.ended)

    @property
    def failed(self) -> int:
        return sum(count for status, count in self.statuses.items() if status in (*FAILED, UNREADABLE))

    @property
    def unfinished(self) -> int:
        return len(self.running) + len(self.waiting) + self.unplanned

    @property
    def total(self) -> int:
        return len(self.ended) + self.unfinished


def standing(folder: Path, now: Callable[[], float] = time.time) -> Standing:
    """Look at a results folder; raises RecordError if it is none."""
    suite, grid, note = _suite(folder)
    ended: list[Ended] = []
    running: list[Running] = []
    waiting: list[Waiting] = []
    foreign: list[str] = []
    asked = None if grid is None or suite is None else _Asked(suite, grid)
    for place in _trial_folders(folder):
        done = read_end(place)
        held = done is None and is_claimed(place)
        if done is None and not held:
            done = read_end(place)  # it may have ended between the two looks
        trial = read_spec(place) if done is None else None
        if done is not None:
            ended.append(done)
        elif held:
            running.append(read_running(place, trial))
        elif asked is not None and trial is not None and not asked.holds(trial):
            foreign.append(place.name)
        else:
            waiting.append(Waiting(place.name, left_behind(place), kind_of(trial)))
    seen = len(ended) + len(running) + len(waiting)
    unplanned = max(0, len(grid) - seen) if grid is not None else 0
    left = _seconds_left(ended, running, [entry.kind for entry in waiting] + [()] * unplanned, now())
    name = suite.name if suite else ""
    return Standing(folder, name, tuple(ended), tuple(running), tuple(waiting), unplanned, tuple(foreign), note, left)


def _suite(folder: Path) -> tuple[Suite | None, tuple[Row, ...] | None, str]:
    """The folder's suite and its grid, as far as they can be read, and else the reason."""
    path = folder / SUITE
    if not folder.is_dir():
        raise RecordError(f"there is no folder {folder}; give the one that `mmbench run` writes to")
    if not (folder / "trials").is_dir() and (folder / "records").is_dir():
        raise RecordError(f"{folder} is a board: all its trials have ended; see mmbench leaderboard {folder}")
    if not path.exists() and not (folder / "trials").is_dir():
        raise RecordError(f"{folder} holds no results; give the folder that `mmbench run` writes to (its --out)")
    if not path.exists():
        return None, None, "there is no suite.yaml, so what it asks for is not known"
    suite = None
    try:
        suite = load_suite(path)
        return suite, rows(suite), ""
    except MMBenchError as error:
        return suite, None, f"the suite's trials cannot be counted: {error}"


def _trial_folders(folder: Path) -> list[Path]:
    trials = folder / "trials"
    return sorted(path for path in trials.iterdir() if path.is_dir()) if trials.is_dir() else []


class _Asked:
    """What a suite asks for, to tell its unfinished trials from those of an earlier one."""

    def __init__(self, suite: Suite, grid: Iterable[Row]) -> None:
        self._rows = {_row_key(row) for row in grid}
        self._budget = suite.budget
        self._cases = _plain([case_data(case) for case in suite_cases(suite)[0]])

    def holds(self, trial: Trial) -> bool:
        same = trial.budget == self._budget and _plain(trial.cases) == self._cases
        return same and _row_key(trial) in self._rows


def _row_key(row: Row | Trial) -> tuple[str, ...]:
    parts = (row.method, row.dataset, row.backbone)
    return (*(part.model_dump_json() for part in parts), str(row.regime), str(row.seed))


def _plain(cases: Sequence[Any]) -> str:
    return json.dumps(cases, sort_keys=True)


def _seconds_left(
    ended: Iterable[Ended], running: Sequence[Running], waiting: Sequence[Kind], now: float
) -> float | None:
    """From finished trials of the same kind, or else from all of them, shared among as many workers as there are."""
    known: defaultdict[Kind, list[float]] = defaultdict(list)
    for entry in ended:
        if entry.seconds is not None:
            known[entry.kind].append(entry.seconds)
    every = [seconds for found in known.values() for seconds in found]
    if not running and not waiting:
        return 0.0
    if not every:
        return None

    def expected(kind: Kind) -> float:
        found = known.get(kind, every)
        return sum(found) / len(found)

    begun = [max(0.0, expected(entry.kind) - (now - entry.since if entry.since else 0.0)) for entry in running]
    work = sum(begun) + sum(expected(kind) for kind in waiting)
    return max([work / max(1, len(running)), *begun])


def groups(ended: Iterable[Ended]) -> tuple[Group, ...]:
    """What did not end in a result, by status and reason; numbers and ids do not make another reason."""
    found: defaultdict[tuple[str, str], list[Ended]] = defaultdict(list)
    for entry in ended:
        if entry.status != "ok":
            found[entry.status, re.sub(r"\d+", "#", entry.reason.replace(entry.id, "*"))].append(entry)
    order = (*get_args(Status), UNREADABLE)
    made = [Group(status, them[0].reason, tuple(e.id for e in them)) for (status, _), them in found.items()]
    return tuple(sorted(made, key=lambda group: (order.index(group.status), -len(group.trials))))
