"""What `merge` does: the results of several machines as one folder, as if one machine had run them all.

Trials are copied one by one, their marker last, so that an interrupted merge goes on when it is run again. A trial that
two folders hold with different content is not mixed: one of them stays, whole, and the other is named.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError

from mmbench.claims import claimed
from mmbench.config import Suite
from mmbench.errors import ConfigError
from mmbench.files import RecordError, make_folder, why_not_plain, write_atomic
from mmbench.layout import EVENTS, PREDICTIONS, RECORD_BYTES, STATES, SUITE
from mmbench.records import MARKER, RECORD, TrialRecord, find_records, is_done, load_record, save_record
from mmbench.report.board import portable_suite
from mmbench.report.second import second_metric
from mmbench.submission_files import is_trial_id
from mmbench.suite_file import explain, load_suite

BESIDE = (PREDICTIONS, STATES, EVENTS)
"""What is copied along with a record where it is there; what to run, which may name code, is planned here."""
JOINED = ("methods", "seeds")
"""Keys in which the suites of one comparison may differ: machines share out rows and seeds. The union is kept."""
CHUNK_BYTES = 2**20
_SECOND = tuple(second_metric(metric) for metric in ("accuracy", "map"))


@dataclass(frozen=True)
class Found:
    """One finished trial of a source."""

    source: Path
    record: TrialRecord
    folder: Path | None
    """Its own folder; None for a record of a board, which has nothing beside it."""


@dataclass(frozen=True)
class Merged:
    """What a merge did."""

    out: Path
    copied: tuple[str, ...]
    same: int
    replaced: tuple[str, ...]
    """Trials of the folder written to that gave way to newer ones, in words."""
    left: tuple[str, ...]
    """Trials that another one was preferred to, in words."""
    problems: tuple[str, ...]
    """What could not be read."""


def merge(sources: Sequence[Path], out: Path) -> Merged:
    """Join results folders and boards into `out`, which may hold results already.

    Of a trial found twice with different content the newer record stays, a crash giving way to any result. Raises
    ConfigError for suites that ask for different comparisons and RecordError if a folder cannot be read or written.
    """
    suite = _joined_suite([*dict.fromkeys([out, *sources])])
    problems: list[str] = []
    chosen: dict[str, Found] = {}
    same, left = 0, []
    for found in (entry for source in sources for entry in _trials(source, problems)):
        known = chosen.setdefault(found.record.trial.id, found)
        if known is found:
            continue
        if _content(known.record) == _content(found.record):
            same += 1
            chosen[found.record.trial.id] = known if known.folder else found  # the one with predictions beside it
            continue
        kept, other = sorted((known, found), key=_rank, reverse=True)
        chosen[found.record.trial.id] = kept
        left.append(f"{other.record.trial.id}: {_words(other)} gave way to {_words(kept)}")
    if not chosen:
        raise RecordError(f"no finished trial in {', '.join(map(str, sources))}; give results folders or boards")
    make_folder(out / "trials")
    content = yaml.safe_dump(suite.model_dump(mode="json"), sort_keys=False).encode()
    if not (out / SUITE).is_file() or (out / SUITE).read_bytes() != content:
        write_atomic(out / SUITE, content)
    return _write(chosen, Merged(out, (), same, (), tuple(left), tuple(problems)))


def _write(chosen: dict[str, Found], begun: Merged) -> Merged:
    """Copy what the folder lacks or has an older record of."""
    copied, replaced, left, same = [], [], [*begun.left], begun.same
    problems = [*begun.problems]
    for id, found in chosen.items():
        target = begun.out / "trials" / id
        here = Found(begun.out, load_record(target / RECORD), target) if is_done(target) else None
        equal = here is not None and _content(here.record) == _content(found.record)
        if here is not None and not equal and _rank(here) >= _rank(found):
            left.append(f"{id}: {_words(found)} gave way to {_words(here)}")
            continue
        make_folder(target)
        with claimed(target) as mine:  # no sweep may start or finish it meanwhile
            if not mine:
                problems.append(f"{id}: a process is at work on it in {begun.out}; merge again when it has ended")
            elif equal:
                same += 1
                _copy_files(found, target, problems)
            else:
                _copy(found, target, problems)
                copied.append(id)
                replaced += [f"{id}: {_words(here)} gave way to {_words(found)}"] if here else []
    return Merged(begun.out, tuple(copied), same, tuple(replaced), tuple(left), tuple(problems))


def _trials(source: Path, problems: list[str]) -> Iterator[Found]:
    """Finished trials of a folder; what cannot be used is named."""
    if not source.is_dir():
        raise RecordError(f"{source} is no folder; give results folders or boards")
    for path in find_records(source):
        folder = path.parent if path.name == RECORD else None
        try:
            reason = why_not_plain(path, RECORD_BYTES)
            if reason is None and folder is not None and (folder.is_symlink() or not is_done(folder)):
                reason = "its marker was written for another record"
            if reason is not None:
                raise RecordError(f"{path}: {reason}")
            record = load_record(path)
        except RecordError as error:
            problems.append(f"left out: {error}")
            continue
        name = path.stem if folder is None else folder.name
        if record.trial.id != name or not is_trial_id(name):
            problems.append(f"left out: {path} holds the record of another trial")
            continue
        yield Found(source, record, folder)


def _content(record: TrialRecord) -> TrialRecord:
    """A record without what publishing it takes away or adds."""
    scores = tuple(score for score in record.scores if score.metric not in _SECOND)
    failure = record.failure.model_copy(update={"traceback": None}) if record.failure else None
    return record.model_copy(update={"scores": scores, "failure": failure})


def _rank(found: Found) -> tuple[bool, str, str]:
    """Any result before a crash, the newer before the older, and the same choice in whatever order they come."""
    return (found.record.status != "crashed", found.record.environment.date, found.record.model_dump_json())


def _words(found: Found) -> str:
    return f"{found.record.status} of {found.record.environment.date} in {found.source}"


def _copy(found: Found, target: Path, problems: list[str]) -> None:
    """Files first, the record's marker last: a folder without its marker is no finished trial."""
    make_folder(target)
    for name in (MARKER, *BESIDE):  # nothing of an older trial may stand beside the newer record
        (target / name).unlink(missing_ok=True)
    _copy_files(found, target, problems)
    save_record(found.record, target)


def _copy_files(found: Found, target: Path, problems: list[str]) -> None:
    """What lies beside a record and is not there yet."""
    if found.folder is None:
        return
    for name in BESIDE:
        path = found.folder / name
        if (target / name).exists() or not (path.exists() or path.is_symlink()):
            continue
        reason = why_not_plain(path)
        if reason is not None:
            problems.append(f"left out: {path}: {reason}")
            continue
        _copy_file(path, target / name)


def _copy_file(source: Path, target: Path) -> None:
    """The whole file or nothing, in pieces: states may be larger than memory."""
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        with source.open("rb") as read, aside.open("xb") as write:
            while piece := read.read(CHUNK_BYTES):
                write.write(piece)
        aside.replace(target)
    except OSError as error:
        raise RecordError(f"cannot copy {source} to {target}: {error.strerror}; free some space") from None
    finally:
        aside.unlink(missing_ok=True)


def _joined_suite(folders: Iterable[Path]) -> Suite:
    """The suite of all folders; raises ConfigError naming the first key in which two ask for different things."""
    joined: tuple[Path, Suite] | None = None
    for path in (folder / SUITE for folder in folders):
        if not path.exists():
            continue
        suite = load_suite(path)
        joined = (path, suite if joined is None else _join(joined[1], suite, joined[0], path))
    if joined is None:
        raise ConfigError("none of the folders has a suite.yaml; copy there the one that they were run with")
    return joined[1]


def _join(first: Suite, second: Suite, first_path: Path, second_path: Path) -> Suite:
    here, there = (yaml.safe_load(portable_suite(yaml.safe_dump(s.model_dump(mode="json")))) for s in (first, second))
    for key in here:
        if key not in (*JOINED, "note") and here[key] != there[key]:
            raise ConfigError(f"{second_path} and {first_path} differ in {key}; results of different suites do not mix")
    content = first.model_dump(mode="json")
    for key in JOINED:
        content[key] += [entry for entry in second.model_dump(mode="json")[key] if entry not in content[key]]
    try:
        return Suite.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{second_path} and {first_path} do not join: {explain(error)}") from None


def merge_command(sources: Sequence[Path], out: Path, quiet: bool) -> bool:
    """Merge and tell what happened; True if everything could be read."""
    done = merge(sources, out)
    for line in (*done.replaced, *done.left, *done.problems):
        print(f"note: {line}", file=sys.stderr)
    if not quiet:
        counts = f"{len(done.copied)} trials copied, {done.same} the same, {len(done.left)} left out for newer ones"
        print(f"{counts}; results in {done.out}", file=sys.stderr)
    return not done.problems
