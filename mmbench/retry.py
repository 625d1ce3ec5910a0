"""Running again what has a record: it is put aside, never deleted, and the next sweep finds nothing in its place."""

from __future__ import annotations

import itertools
from pathlib import Path

from mmbench.claims import claimed
from mmbench.records import MARKER, OLD_RECORD, RECORD, Status, is_done, load_record


def has_status(folder: Path, statuses: tuple[Status, ...]) -> bool:
    """Whether a trial is done and ended in one of these ways; raises RecordError for a record of a newer schema."""
    return bool(statuses) and is_done(folder) and load_record(folder / RECORD).status in statuses


def put_aside(folder: Path) -> None:
    """Rename a finished trial's record to `trial.json.old`, or `.old2` and so on where there is one already.

    The record goes first and its marker last, so that whatever ends this in between leaves a trial that runs again.
    """
    with claimed(folder) as mine:  # not while a worker or another sweep is at it
        if mine and is_done(folder):
            (folder / RECORD).replace(_free_name(folder))
            (folder / MARKER).unlink(missing_ok=True)


def _free_name(folder: Path) -> Path:
    numbered = (folder / f"{OLD_RECORD}{number}" for number in itertools.count(2))
    return next(path for path in itertools.chain([folder / OLD_RECORD], numbered) if not path.exists())
