"""Records to tables of accuracy: mean and spread over seeds, per case, mean and worst case."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from zlib import crc32

from mmbench.cards import NOT_APPLICABLE, Track
from mmbench.files import RecordError
from mmbench.records import TrialRecord, find_records, load_record
from mmbench.report.comparable import FALLBACKS, Selection, select
from mmbench.report.model import (
    NO_CASE,
    NOT_MEASURED,
    ONLY_AVAILABILITY,
    STATUS_WORDS,
    Cell,
    Column,
    Row,
    Table,
    cell_of,
    mark_best,
)
from mmbench.report.notes import how_made
from mmbench.report.published import OTHER_PROTOCOL, reported_accuracy

METRIC_LABELS = {"accuracy": "Accuracy", "map": "Mean average precision"}


@dataclass(frozen=True)
class Board:
    """All records of a folder, and what could not be used."""

    folder: Path
    name: str
    records: tuple[TrialRecord, ...]
    problems: tuple[str, ...]

    @property
    def groups(self) -> tuple[tuple[str, str], ...]:
        """(data set, backbone) pairs; a table never spans two of them."""
        return tuple(sorted({(record.trial.dataset, record.trial.backbone) for record in self.records}))


@dataclass(frozen=True)
class CaseValue:
    """A trial's score on one case; `reason` says why there is none."""

    value: float | None
    reason: str | None = None

    @property
    def applies(self) -> bool:
        """False where no method can have a value, so that the case is left out of every row's mean."""
        return self.reason is None or not self.reason.startswith(NOT_APPLICABLE)


def load_board(folder: Path) -> Board:
    """Read every record below a folder; a damaged one is listed as a problem.

    Raises RecordError if no record can be read.
    """
    records: dict[str, TrialRecord] = {}
    problems: list[str] = []
    for path in find_records(folder):
        try:
            record = load_record(path)
        except RecordError as error:
            problems.append(str(error).replace(str(path), path.relative_to(folder).as_posix()))
            continue
        known = records.get(record.trial.id)
        if known is None or known.environment.date < record.environment.date:
            records[record.trial.id] = record
    if not records:
        found = f"; unreadable: {'; '.join(problems)}" if problems else ""
        raise RecordError(f"no record in {folder}{found}; run a suite into it first: mmbench run SUITE")
    suites = Counter(record.trial.suite for record in records.values())
    return Board(folder, suites.most_common(1)[0][0], tuple(records.values()), tuple(problems))


def case_values(record: TrialRecord, track: Track, metric: str) -> tuple[dict[str, CaseValue], Track] | None:
    """Scores by case on a track, or on the most telling track below it; None if the method has none there.

    Several severities of a case are averaged.
    """
    for offered in FALLBACKS[track]:
        scores = [s for s in record.scores if s.track == offered and s.metric == metric]
        if not scores:
            continue
        values: dict[str, CaseValue] = {}
        for case in dict.fromkeys(score.case for score in scores):
            found = [score for score in scores if score.case == case]
            numbers = [score.value for score in found if score.value is not None]
            reason = next((score.reason or "no reason recorded" for score in found if score.value is None), None)
            values[case] = CaseValue(fmean(numbers), None) if reason is None else CaseValue(None, reason)
        return values, offered
    return None


def mean_score(record: TrialRecord, track: Track, metric: str) -> float | None:
    """Mean over all cases that apply to the data; None unless each has a value."""
    found = case_values(record, track, metric) if record.status == "ok" else None
    return None if found is None else _over_cases([found[0].get(case, CaseValue(None)) for case in record.trial.cases])


def _over_cases(values: Sequence[CaseValue], worst: bool = False) -> float | None:
    numbers = [value.value for value in values if value.applies]
    known = [number for number in numbers if number is not None]
    if not known or len(known) < len(numbers):
        return None
    return min(known) if worst else fmean(known)


def accuracy_table(board: Board, dataset: str, backbone: str, track: Track) -> Table:
    """Methods x cases in percent, with the mean over cases (headline) and the worst case."""
    selection = select(board.records, dataset, backbone)
    columns = _accuracy_columns(selection)
    rows = tuple(row for group in selection.rows() if (row := _accuracy_row(group, selection, track)) is not None)
    shown = {(row.name, row.regime) for row in rows}
    absent = [g[0].trial.title for g in selection.rows() if (g[0].trial.title, regime_word(g[0])) not in shown]
    notes = how_made(selection.records)
    if absent:
        notes += (f"Not on this track, because they need to be told more: {', '.join(dict.fromkeys(absent))}.",)
    names = {dataset, *(r.data.name for r in selection.records if r.data is not None)}
    reported = reported_accuracy(names, columns, track)
    return Table(
        title=f"{METRIC_LABELS[selection.metric]} on {dataset}, {backbone}, {track} track",
        slug=slug(dataset, backbone, track),
        columns=columns,
        rows=mark_best(sort_rows(rows, len(selection.cases)) + reported, columns),
        notes=notes + ((OTHER_PROTOCOL,) if reported else ()) + selection.problems,
    )


def _accuracy_columns(selection: Selection) -> tuple[Column, ...]:
    cases = tuple(Column(case, case, "%", 1, "higher") for case in selection.cases)
    return (*cases, Column("mean", "mean", "%", 1, "higher", True), Column("worst", "worst case", "%", 1, "higher"))


def _accuracy_row(group: tuple[TrialRecord, ...], selection: Selection, track: Track) -> Row | None:
    """One row, or None if the method finished but has no score this track may show."""
    finished = [record for record in group if record.status == "ok"]
    width = len(selection.cases) + 2
    if not finished:
        return failed_row(group, width)
    scored = [found for record in finished if (found := case_values(record, track, selection.metric)) is not None]
    if not scored:
        return None
    by_seed = [[values.get(case, CaseValue(None, "not run")) for case in selection.cases] for values, _ in scored]
    cells = [_case_cell([values[i] for values in by_seed], case) for i, case in enumerate(selection.cases)]
    cells += [cell_of((_over_cases(v, worst) for v in by_seed), 100) for worst in (False, True)]
    idle = [all(not values[i].applies for values in by_seed) for i in range(len(selection.cases))] + [False, False]
    wanted = seeds_wanted(group, selection.seeds)
    complete = all(cell.n == wanted for cell, skipped in zip(cells, idle, strict=True) if not skipped)
    row = row_of(group, tuple(cells), selection.seeds)
    used = {offered for _, offered in scored} - {track}
    daggers = ((NO_CASE,) if "blind" in used else ()) + ((ONLY_AVAILABILITY,) if "avail" in used else ())
    return replace(row, notes=daggers + row.notes, complete=complete)


def _case_cell(values: Sequence[CaseValue], case: str) -> Cell:
    cell = cell_of((value.value for value in values), 100)
    reasons = tuple(dict.fromkeys(f"{case}: {value.reason}" for value in values if value.reason is not None))
    return replace(cell, word="n/a", notes=reasons)


def seeds_wanted(group: Sequence[TrialRecord], seeds: Sequence[int]) -> int:
    """Trials that make a row complete: one where nothing is random, because nothing trains."""
    return 1 if group[0].trial.regime == "none" and group[0].trial.online is None else len(seeds)


def row_of(group: Sequence[TrialRecord], cells: tuple[Cell, ...], seeds: Sequence[int], where: str = "") -> Row:
    """A row of finished trials, with what a reader must know of the seeds that are not in it."""
    trial = group[0].trial
    finished = sum(record.status == "ok" for record in group)
    notes = tuple(dict.fromkeys(text for record in group for text in record.trial.deviations))
    wanted = seeds_wanted(group, seeds)
    if finished < wanted:
        failures = Counter(_status_words(record.status) for record in group if record.status != "ok")
        missing = wanted - len(group)
        reasons = [f"{count} {word}" for word, count in failures.items()]
        reasons += [f"{missing} not run{where}"] if missing else []
        notes = (f"{finished}/{wanted} seeds ({', '.join(reasons)})", *notes, *_messages(group))
    return Row(trial.title, regime_word(group[0]), cells, notes, finished == wanted, trained=trial.regime != "none")


def failed_row(group: Sequence[TrialRecord], width: int) -> Row:
    """A row none of whose trials finished: its status stands in every cell."""
    trial = group[0].trial
    word = ", ".join(dict.fromkeys(_status_words(record.status) for record in group))
    notes = (*_messages(group), *dict.fromkeys(text for record in group for text in record.trial.deviations))
    cells = tuple(Cell(word=word) for _ in range(width))
    return Row(trial.title, regime_word(group[0]), cells, notes, complete=False, trained=trial.regime != "none")


def _messages(group: Sequence[TrialRecord]) -> tuple[str, ...]:
    failed = [(record.status, record.failure) for record in group if record.failure is not None]
    return tuple(dict.fromkeys(f"{_status_words(status)}: {failure.message}" for status, failure in failed if failure))


def _status_words(status: str) -> str:
    return STATUS_WORDS.get(status, status)


def regime_word(record: TrialRecord) -> str:
    return NOT_MEASURED if record.trial.regime == "none" else record.trial.regime


def sort_rows(rows: tuple[Row, ...], headline: int) -> tuple[Row, ...]:
    """Best first; rows with missing seeds after complete ones, failed rows last."""

    def key(row: Row) -> tuple[bool, bool, float, str, str]:
        mean = row.cells[headline].mean
        return (mean is None, not row.complete, -(mean or 0.0), row.name, row.regime)

    return tuple(sorted(rows, key=key))


def slug(*parts: str) -> str:
    """A stable file name; a part that had to be changed carries a checksum, so that two labels never share a file."""
    return "_".join(_slug_part(part) for part in parts)


def _slug_part(text: str) -> str:
    safe = "".join(c if c.isascii() and (c.isalnum() or c in ".-") else "-" for c in text.lower())
    safe = "-".join(piece for piece in safe.split("-") if piece).lstrip(".")[:48]
    return safe if safe == text else f"{safe or 'unnamed'}-{crc32(text.encode()):08x}"
