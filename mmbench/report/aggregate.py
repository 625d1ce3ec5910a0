"""Records to tables of accuracy: mean and spread over seeds, per case, mean and worst case."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from zlib import crc32

from mmbench.cards import NOT_APPLICABLE, Track
from mmbench.files import RecordError
from mmbench.records import Score, TrialRecord, find_records, load_record
from mmbench.report.blocks import Block, By, blocks_of, reading
from mmbench.report.comparable import FALLBACKS, Selection, name_of, select
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
from mmbench.report.notes import facts_of, how_made, provenance_of
from mmbench.report.published import OTHER_PROTOCOL, reported_accuracy
from mmbench.report.second import PREDICTIONS, second_metric, second_notes, with_second_scores

_VISIBLE = 0.0005  # half of the last decimal that tables of percent show
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
            records[record.trial.id] = _completed(record, path, problems)
    if not records:
        found = f"; unreadable: {'; '.join(problems)}" if problems else ""
        raise RecordError(f"no record in {folder}{found}; run a suite into it first: mmbench run SUITE")
    suites = Counter(record.trial.suite for record in records.values())
    return Board(folder, suites.most_common(1)[0][0], tuple(records.values()), tuple(problems))


def _completed(record: TrialRecord, path: Path, problems: list[str]) -> TrialRecord:
    try:
        return with_second_scores(record, path.with_name(PREDICTIONS))
    except RecordError as error:
        problems.append(f"{name_of(record)}: {error}")
        return record


def case_values(record: TrialRecord, track: Track, metric: str) -> tuple[dict[str, CaseValue], Track] | None:
    """Scores by case on a track, or on the most telling track below it; None if the method has none there.

    Several severities of a case are averaged.
    """
    for offered in FALLBACKS[track]:
        scores: dict[str, list[Score]] = {}
        for score in record.scores:
            if (score.track, score.metric) == (offered, metric):
                scores.setdefault(score.case, []).append(score)
        if not scores:
            continue
        values: dict[str, CaseValue] = {}
        for case, found in scores.items():
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


def accuracy_table(board: Board, dataset: str, backbone: str, track: Track, by: By = "case") -> Table:
    """Methods x cases in percent, with the mean over cases (headline) and the worst case.

    Where a suite has many cases, `by` says what a column stands for; mean and worst case stay those of the cases.
    """
    selection = select(board.records, dataset, backbone)
    blocks = _with_second(blocks_of(selection, by), selection, track)
    columns = _accuracy_columns(blocks)
    made = (_accuracy_row(group, selection, track, blocks) for group in selection.rows())
    rows = tuple(row for row in made if row is not None)
    shown = {(row.name, row.regime) for row in rows}
    absent = [g[0].trial.title for g in selection.rows() if (g[0].trial.title, regime_word(g[0])) not in shown]
    notes = reading(selection, by) + how_made(selection.records)
    if absent:
        notes += (f"Not on this track, because they need to be told more: {', '.join(dict.fromkeys(absent))}.",)
    if any(block.second for block in blocks):
        notes += second_notes(selection)
    names = {dataset, *(r.data.name for r in selection.records if r.data is not None)}
    reported = reported_accuracy(names, columns, track)
    return Table(
        title=f"{METRIC_LABELS[selection.metric]} on {dataset}, {backbone}, {track} track",
        slug=slug(dataset, backbone, track),
        columns=columns,
        rows=mark_best(sort_rows(rows, len(blocks)) + reported, columns),
        notes=notes + ((OTHER_PROTOCOL,) if reported else ()) + selection.problems,
        provenance=provenance_of(selection.records),
    )


def _accuracy_columns(blocks: Sequence[Block]) -> tuple[Column, ...]:
    first = tuple(Column(block.key, block.key, "%", 1, "higher") for block in blocks)
    return (*first, Column("mean", "mean", "%", 1, "higher", True), Column("worst", "worst case", "%", 1, "higher"))


def _with_second(blocks: Sequence[Block], selection: Selection, track: Track) -> tuple[Block, ...]:
    """Beside each column its second score, where leaving out the samples of a scene changes a row as shown."""
    found = [_scored(record, selection, track) for record in selection.records if record.status == "ok"]
    scored = [entry for entry in found if entry is not None]
    placed: list[Block] = []
    for block in blocks:
        second = replace(block, second=True)
        pairs = ((block.mean(floats(e.values)), second.mean(floats(e.second))) for e in scored)
        differs = any(a is not None and b is not None and abs(a - b) >= _VISIBLE for a, b in pairs)
        placed += [block, second] if differs else [block]
    return tuple(placed)


@dataclass(frozen=True)
class _Scored:
    """Scores of a trial by case, and the same with every second score in place of its first."""

    values: Mapping[str, CaseValue]
    second: Mapping[str, CaseValue]
    track: Track

    def of(self, block: Block) -> Mapping[str, CaseValue]:
        return self.second if block.second else self.values


def _scored(record: TrialRecord, selection: Selection, track: Track) -> _Scored | None:
    """Every case of the selection, on the track or on one below it; None if the trial has no score there."""
    found = case_values(record, track, selection.metric)
    if found is None:
        return None
    values = {case: found[0].get(case, CaseValue(None, "not run")) for case in selection.cases}
    second = case_values(record, found[1], second_metric(selection.metric))
    return _Scored(values, {**values, **(second[0] if second else {})}, found[1])


def _accuracy_row(
    group: tuple[TrialRecord, ...], selection: Selection, track: Track, blocks: Sequence[Block]
) -> Row | None:
    """One row, or None if the method finished but has no score this track may show."""
    finished = [record for record in group if record.status == "ok"]
    if not finished:
        return failed_row(group, len(blocks) + 2)
    scored = [found for record in finished if (found := _scored(record, selection, track)) is not None]
    if not scored:
        return None
    cells = [_block_cell([entry.of(block) for entry in scored], block) for block in blocks]
    cells += [cell_of((_over_cases(tuple(e.values.values()), worst) for e in scored), 100) for worst in (False, True)]
    wanted = seeds_wanted(group, selection.seeds)
    skipped = [block.second or selection.idle.issuperset(block.cases) for block in blocks] + [False, False]
    complete = all(cell.n == wanted for cell, skip in zip(cells, skipped, strict=True) if not skip)
    row = row_of(group, tuple(cells), selection.seeds)
    used = {entry.track for entry in scored} - {track}
    daggers = ((NO_CASE,) if "blind" in used else ()) + ((ONLY_AVAILABILITY,) if "avail" in used else ())
    return replace(row, notes=daggers + row.notes, complete=complete)


def _block_cell(by_seed: Sequence[Mapping[str, CaseValue]], block: Block) -> Cell:
    cell = cell_of((block.mean(floats(values)) for values in by_seed), 100)
    reasons = [reason for values in by_seed for case in block.cases if (reason := values[case].reason) is not None]
    if len(block.cases) == 1:
        return replace(cell, word="n/a", notes=tuple(f"{block.label}: {reason}" for reason in dict.fromkeys(reasons)))
    total = len(by_seed) * len(block.cases)
    counted = (f"{block.key}: {count} of {total} scores absent, {reason}" for reason, count in Counter(reasons).items())
    return replace(cell, notes=tuple(counted))


def floats(values: Mapping[str, CaseValue]) -> dict[str, float | None]:
    return {case: value.value for case, value in values.items()}


def seeds_wanted(group: Sequence[TrialRecord], seeds: Sequence[int]) -> int:
    """Trials that make a row complete: one where nothing is random, because nothing trains."""
    return 1 if group[0].trial.regime == "none" and group[0].trial.online is None else len(seeds)


def row_of(group: Sequence[TrialRecord], cells: tuple[Cell, ...], seeds: Sequence[int], where: str = "") -> Row:
    """A row of finished trials, with what a reader must know of the seeds that are not in it."""
    finished = sum(record.status == "ok" for record in group)
    notes = tuple(dict.fromkeys(text for record in group for text in record.trial.deviations))
    wanted = seeds_wanted(group, seeds)
    if finished < wanted:
        failures = Counter(_status_words(record.status) for record in group if record.status != "ok")
        missing = wanted - len(group)
        reasons = [f"{count} {word}" for word, count in failures.items()]
        reasons += [f"{missing} not run{where}"] if missing else []
        notes = (f"{finished}/{wanted} seeds ({', '.join(reasons)})", *notes, *_messages(group))
    return _named_row(group, cells, notes, finished == wanted)


def failed_row(group: Sequence[TrialRecord], width: int) -> Row:
    """A row none of whose trials finished: its status stands in every cell."""
    word = ", ".join(dict.fromkeys(_status_words(record.status) for record in group))
    notes = (*_messages(group), *dict.fromkeys(text for record in group for text in record.trial.deviations))
    cells = tuple(Cell(word=word) for _ in range(width))
    return _named_row(group, cells, notes, complete=False)


def _named_row(group: Sequence[TrialRecord], cells: tuple[Cell, ...], notes: tuple[str, ...], complete: bool) -> Row:
    trial = group[0].trial
    trained, facts = trial.regime != "none", facts_of(trial)
    return Row(trial.title, regime_word(group[0]), cells, notes, complete, trained=trained, facts=facts)


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
