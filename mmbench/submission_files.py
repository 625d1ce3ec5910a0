"""Reading a folder of results that somebody else made: plain files of known names and sizes, nothing else is opened."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmbench.claims import CLAIM
from mmbench.config import Suite
from mmbench.errors import ConfigError, MMBenchError
from mmbench.files import RecordError, why_not_plain
from mmbench.layout import (
    EVENTS,
    MARKER_BYTES,
    PREDICTIONS,
    PREDICTIONS_BYTES,
    RECORD_BYTES,
    SPEC,
    STATES,
    STDERR,
    SUITE_BYTES,
)
from mmbench.records import MARKER, OLD_RECORD, RECORD, TRIAL_ID, TrialRecord, is_done, load_record
from mmbench.suite_file import load_suite

TRIAL_FILES = (
    *(RECORD, MARKER, PREDICTIONS, CLAIM),
    *(SPEC, EVENTS, STATES, STDERR),
)
MADE_ANEW = ("README.md", "tables", "plots")
"""What a board holds beside its records; made from them, so nobody need read it."""
MOST_BYTES = {RECORD: RECORD_BYTES, MARKER: MARKER_BYTES, PREDICTIONS: PREDICTIONS_BYTES}
MOST_ENTRIES = 100_000

Severity = Literal["serious", "note"]


@dataclass(frozen=True)
class Finding:
    """Something that a person who takes in results has to know."""

    severity: Severity
    """`serious` keeps results out of a board."""
    check: str
    place: str
    """The file or trial, as its path within the folder."""
    message: str


@dataclass(frozen=True)
class Submitted:
    """A record and the predictions beside it."""

    place: str
    record: TrialRecord
    predictions: Path | None


@dataclass(frozen=True)
class Submission:
    """What of a folder can be used, and what had to be left aside."""

    folder: Path
    records: tuple[Submitted, ...]
    suites: tuple[tuple[str, Suite], ...]
    """File name and content."""
    findings: tuple[Finding, ...]


def read_submission(folder: Path) -> Submission:
    """Every record, suite and prediction file of a results folder or a board.

    Raises RecordError if the folder cannot be read.
    """
    records: list[Submitted] = []
    suites: list[tuple[str, Suite]] = []
    findings: list[Finding] = []
    for path in _entries(folder, findings, folder):
        if path.name == "trials" and path.is_dir():
            found = (_trial(place, folder, findings) for place in _entries(path, findings, folder))
            records += [entry for entry in found if entry is not None]
        elif path.name == "records" and path.is_dir():
            found = (_published(place, folder, findings) for place in _entries(path, findings, folder))
            records += [entry for entry in found if entry is not None]
        elif path.suffix in (".yaml", ".yml"):
            suites += _suite(path, findings)
        elif path.name not in MADE_ANEW:
            findings.append(Finding("note", "files", path.name, "no part of results; not read"))
    return Submission(folder, tuple(records), tuple(suites), tuple(findings))


def is_trial_id(name: str) -> bool:
    """Whether a name can be a trial's id and a folder's name at once."""
    return re.fullmatch(TRIAL_ID, name) is not None


def _entries(folder: Path, findings: list[Finding], top: Path) -> Iterator[Path]:
    """Entries of one folder in order, without links and special files; those are findings."""
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise RecordError(f"cannot read {folder}: {error.strerror}; give a results folder or a board") from None
    if len(paths) > MOST_ENTRIES:
        raise RecordError(f"{folder} holds {len(paths)} entries; at most {MOST_ENTRIES} are read: split it")
    for path in paths:
        kind = path.lstat().st_mode
        if stat.S_ISREG(kind) or stat.S_ISDIR(kind):
            yield path
        else:
            what = "a symbolic link" if stat.S_ISLNK(kind) else "neither a file nor a folder"
            findings.append(Finding("serious", "files", _place(path, top), f"{what}; it was not opened"))


def _place(path: Path, top: Path) -> str:
    return path.relative_to(top).as_posix()


def _trial(folder: Path, top: Path, findings: list[Finding]) -> Submitted | None:
    """The finished trial of a folder; None if it is not one."""
    place = _place(folder, top)
    if not folder.is_dir():
        findings.append(Finding("note", "files", place, "no trial's folder; not read"))
        return None
    files = {path.name: path for path in _entries(folder, findings, top)}
    strange = sorted(name for name in set(files) - set(TRIAL_FILES) if not name.startswith(OLD_RECORD))
    if strange:
        told = ", ".join(strange[:3])
        findings.append(Finding("note", "files", place, f"{len(strange)} files no trial leaves, not read: {told}"))
    if RECORD not in files or MARKER not in files:
        findings.append(Finding("note", "files", place, "not finished: it lacks trial.json or its marker"))
        return None
    for name in (RECORD, MARKER, PREDICTIONS):
        reason = why_not_plain(files[name], MOST_BYTES[name]) if name in files else None
        if reason is not None:
            findings.append(Finding("serious", "files", f"{place}/{name}", reason))
            return None
    if not is_done(folder):
        changed = "its marker was written for another trial.json: the record was changed after the trial ended"
        findings.append(Finding("serious", "marker", place, changed))
    return _checked(files[RECORD], folder.name, files.get(PREDICTIONS), top, findings)


def _published(path: Path, top: Path, findings: list[Finding]) -> Submitted | None:
    """A record as a board holds it."""
    reason = why_not_plain(path, RECORD_BYTES)
    if reason is None and path.suffix != ".json":
        reason = "not a record; records end in .json"
    if reason is not None:
        findings.append(Finding("serious", "files", _place(path, top), reason))
        return None
    return _checked(path, path.stem, None, top, findings)


def _checked(path: Path, name: str, predictions: Path | None, top: Path, findings: list[Finding]) -> Submitted | None:
    place = _place(path.parent if path.name == RECORD else path, top)
    try:
        record = load_record(path)
    except RecordError as error:
        findings.append(Finding("serious", "schema", place, str(error).replace(str(path), path.name)))
        return None
    if record.trial.id != name or not is_trial_id(name):
        findings.append(Finding("serious", "id", place, f"holds the record of another trial: {record.trial.id[:200]}"))
        return None
    return Submitted(place, record, predictions)


def _suite(path: Path, findings: list[Finding]) -> Iterator[tuple[str, Suite]]:
    try:
        reason = why_not_plain(path, SUITE_BYTES)
        if reason is not None:
            raise ConfigError(f"{path.name}: {reason}")
        yield path.name, load_suite(path)
    except MMBenchError as error:
        message = " ".join(str(error).split()).replace(str(path), path.name)
        findings.append(Finding("serious", "suite", path.name, message[:500]))
