"""What a trial's folder tells while the trial waits, runs or has ended; half of a file counts as none."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmbench.claims import CLAIM
from mmbench.errors import ConfigError
from mmbench.files import read_plain, why_not_plain
from mmbench.layout import EVENTS, MARKER_BYTES
from mmbench.records import MARKER, RECORD, Status, finished_record
from mmbench.strict_json import read_events
from mmbench.trials import Trial, read_trial

UNREADABLE = "unreadable"
"""Stands for a status where a record is complete but not one that this version reads."""
TAIL_BYTES = 16_384
LATE = 1e11
"""Seconds; no time or duration lies beyond, and what does is damaged."""
Kind = tuple[str, ...]
"""Method, regime, data set and backbone: trials of one kind take about as long."""


class _Head(BaseModel):
    """What of a record is needed here; the scores, nearly all of a file, are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class _Reason(_Head):
    message: str


class _Facts(_Head):
    title: str
    regime: str
    dataset: str
    backbone: str


class _Seconds(_Head):
    wall: Annotated[float, Field(ge=0, lt=LATE)]


class _Costs(_Head):
    seconds: _Seconds


class _Record(_Head):
    status: Status
    failure: _Reason | None = None
    trial: _Facts
    costs: _Costs | None = None


@dataclass(frozen=True)
class Ended:
    """A trial with a record."""

    id: str
    status: str
    reason: str
    """One line; empty for a result."""
    kind: Kind = ()
    seconds: float | None = None
    """Wall clock of a trial that ran to its end."""


@dataclass(frozen=True)
class Running:
    """A trial that a live process holds."""

    id: str
    host: str
    """Empty where the claim does not tell."""
    since: float | None
    """Unix time of its first event."""
    doing: str
    """The training it is at, and how many samples of it are done."""
    kind: Kind = ()


@dataclass(frozen=True)
class Waiting:
    """A trial without a record that nobody is at."""

    id: str
    left_behind: bool
    """Its worker went without giving back its claim, or left half a record."""
    kind: Kind = ()


def read_end(folder: Path) -> Ended | None:
    try:
        stamps = tuple((folder / name).stat() for name in (RECORD, MARKER))
    except OSError:
        return None
    return _read_ended(folder, tuple((stamp.st_mtime_ns, stamp.st_size) for stamp in stamps))


@functools.lru_cache(maxsize=100_000)
def _read_ended(folder: Path, stamps: tuple[tuple[int, int], ...]) -> Ended | None:
    """Kept as long as the files' times and sizes stay: a watched folder is read once, not every two seconds."""
    content = finished_record(folder)
    if content is None:
        return None
    try:
        record = _Record.model_validate_json(content)
    except ValidationError:
        return Ended(folder.name, UNREADABLE, "not a record that this version reads; update mmbench")
    facts = record.trial
    kind = (facts.title, facts.regime, facts.dataset, facts.backbone)
    reason = one_line(record.failure.message) if record.failure else ""
    return Ended(folder.name, record.status, reason, kind, record.costs.seconds.wall if record.costs else None)


def one_line(text: str, most: int = 300) -> str:
    """Its first line that says something, cut, and without what could steer a terminal."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    line = "".join(letter if letter.isprintable() else "\ufffd" for letter in line)
    return line if len(line) <= most else f"{line[: most - 1]}…"


def read_spec(folder: Path) -> Trial | None:
    try:
        return read_trial(folder)
    except ConfigError:  # not written yet, or damaged, which the trial itself will say
        return None


def kind_of(trial: Trial | None) -> Kind:
    if trial is None:
        return ()
    return (trial.method.title, trial.regime or "none", trial.dataset.title, trial.backbone.title)


def left_behind(folder: Path) -> bool:
    return any((folder / name).exists() for name in (CLAIM, RECORD, MARKER))


def read_running(folder: Path, trial: Trial | None) -> Running:
    first, last = _ends(folder / EVENTS)
    since, doing = None, ""
    for event in (*first, *last):
        if since is None or event.get("event") == "started":
            since = event["time"]
        if event.get("event") == "epoch":
            doing = one_line(f"{event.get('job')}: {event.get('samples')} of {event.get('of')}", 80)
    return Running(folder.name, _host(folder), since, doing, kind_of(trial))


def _host(folder: Path) -> str:
    try:
        return one_line(str(json.loads(read_plain(folder / CLAIM, MARKER_BYTES))["host"]), 80)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def _ends(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The first events of a log and its last ones, whatever its length; lines that are cut are passed over."""
    if why_not_plain(path, links=True) is not None:
        return [], []
    try:
        with path.open("rb") as file:
            head = file.read(TAIL_BYTES)
            file.seek(max(len(head), path.stat().st_size - TAIL_BYTES))
            return list(_events(head)), list(_events(file.read(TAIL_BYTES)))
    except OSError:
        return [], []


def _events(content: bytes) -> Iterator[dict[str, Any]]:
    for event in read_events(content):
        moment = event.get("time")
        if isinstance(moment, (int, float)) and 0 <= moment < LATE:
            yield event
