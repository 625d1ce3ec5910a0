"""Records to tables of accuracy: mean and spread over seeds, per case, mean and worst case."""

from __future__ import annotations

import contextlib
import gc
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from zlib import crc32

from mmbench.cards import Track
from mmbench.files import RecordError
from mmbench.layout import PREDICTIONS
from mmbench.records import TrialRecord, find_records, load_record
from mmbench.report.blocks import Block, By, blocks_of, reading
from mmbench.report.case_scores import CaseValue, block_mean, floats, over_cases, scored_on
from mmbench.report.comparable import Selection, is_fixed, name_of, select
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
from mmbench.report.outcomes import Outcomes, load_outcomes
from mmbench.report.published import OTHER_PROTOCOL, reported_accuracy
from mmbench.report.second import second_notes, with_second, with_second_scores
from mmbench.report.standing import mark_first, standing_notes, standings, with_standing

METRIC_LABELS = {"accuracy": "Accuracy", "map": "Mean average precision"}


@dataclass(frozen=True)
class Board:
    """All records of a folder, and what could not be used."""

    folder: Path
    name: str
    records: tuple[TrialRecord, ...]
    problems: tuple[str, ...]
    outcomes: Outcomes = field(default_factory=Outcomes, compare=False)
    """What each trial predicted for each sample, as far as the folder holds it."""

    @property
    def groups(self) -> tuple[tuple[str, str], ...]:
        """(data set, backbone) pairs; a table never spans two of them."""
        return tuple(sorted({(record.trial.dataset, record.trial.backbone) for record in self.records}))


def load_board(folder: Path) -> Board:
    """Read every record below a folder; a damaged one is listed as a problem.

    Raises RecordError if no record can be read.
    """
    problems: list[str] = []
    with _collector_at_rest():
        records = _newest(folder, problems)
    if not records:
        found = f"; unreadable: {'; '.join(problems)}" if problems else ""
        raise RecordError(f"no record in {folder}{found}; run a suite into it first: mmbench run SUITE")
    suites = Counter(record.trial.suite for record in records.values())
    newest = tuple(records.values())
    return Board(folder, suites.most_common(1)[0][0], newest, tuple(problems), load_outcomes(folder, newest))


def _newest(folder: Path, problems: list[str]) -> dict[str, TrialRecord]:
    """The newest record of each trial, by id."""
    records: dict[str, TrialRecord] = {}
    for path in find_records(folder):
        try:
            record = load_record(path)
        except RecordError as error:
            problems.append(str(error).replace(str(path), path.relative_to(folder).as_posix()))
            continue
        known = records.get(record.trial.id)
        if known is None or known.environment.date < record.environment.date:
            records[record.trial.id] = _completed(record, path, problems)
    return records


@contextlib.contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Thousands of records are objects that all stay: looking for garbage among them takes half of a board's time.

    They are never looked through again; when the board is let go they are freed all the same, having no cycles.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if was_on:
            gc.enable()


def _completed(record: TrialRecord, path: Path, problems: list[str]) -> TrialRecord:
    try:
        return with_second_scores(record, path.with_name(PREDICTIONS))
    except RecordError as error:
        problems.append(f"{name_of(record)}: {error}")
        return record


def accuracy_table(board: Board, dataset: str, backbone: str, track: Track, by: By = "case") -> Table:
    """Methods x cases in percent, with the mean over cases (headline) and the worst case.

    Where a suite has many cases, `by` says what a column stands for; mean and worst case stay those of the cases.
    """
    selection = select(board.records, dataset, backbone)
    blocks = _with_second(blocks_of(selection, by), selection, track)
    columns = _accuracy_columns(blocks)
    made = (_accuracy_row(group, selection, track, blocks) for group in selection.rows())
    rows = tuple(row for row in made if row is not None)
    found = standings(selection, track, board.outcomes, blocks, rows)
    more, rows = with_standing(rows, found)
    columns = (*columns, *more)
    shown = {(row.name, row.regime) for row in rows}
    absent = [g[0].trial.title for g in selection.rows() if (g[0].trial.title, regime_word(g[0])) not in shown]
    notes = reading(selection, by) + standing_notes(found) + how_made(selection.records)
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
        rows=mark_first(mark_best(sort_rows(rows, len(blocks)) + reported, columns), len(blocks), found),
        notes=notes + ((OTHER_PROTOCOL,) if reported else ()) + selection.problems,
        provenance=provenance_of(selection.records),
    )


def _accuracy_columns(blocks: Sequence[Block]) -> tuple[Column, ...]:
    first = tuple(Column(block.key, block.key, "%", 1, "higher") for block in blocks)
    return (*first, Column("mean", "mean", "%", 1, "higher", True), Column("worst", "worst case", "%", 1, "higher"))


def _with_second(blocks: Sequence[Block], selection: Selection, track: Track) -> tuple[Block, ...]:
    """Beside each column its second score, where leaving out the samples of a scene changes a row as shown."""
    found = [scored_on(record, selection, track) for record in selection.records if record.status == "ok"]
    scored = [entry for entry in found if entry is not None and entry.second != entry.values]
    return with_second(blocks, [(floats(entry.values), floats(entry.second)) for entry in scored])


def _accuracy_row(
    group: tuple[TrialRecord, ...], selection: Selection, track: Track, blocks: Sequence[Block]
) -> Row | None:
    """One row, or None if the method finished but has no score this track may show."""
    finished = [record for record in group if record.status == "ok"]
    if not finished:
        return failed_row(group, len(blocks) + 2)
    scored = [found for record in finished if (found := scored_on(record, selection, track)) is not None]
    if not scored:
        return None
    cells = [_block_cell([entry.of(block) for entry in scored], block) for block in blocks]
    cells += [cell_of((over_cases(tuple(e.values.values()), worst) for e in scored), 100) for worst in (False, True)]
    skipped = [block.second or selection.idle.issuperset(block.cases) for block in blocks] + [False, False]
    needed = [cell for cell, skip in zip(cells, skipped, strict=True) if not skip]
    row = row_of(group, tuple(cells), selection.seeds, needed)
    used = {entry.track for entry in scored} - {track}
    daggers = ((NO_CASE,) if "blind" in used else ()) + ((ONLY_AVAILABILITY,) if "avail" in used else ())
    return replace(row, notes=daggers + row.notes)


def _block_cell(by_seed: Sequence[Mapping[str, CaseValue]], block: Block) -> Cell:
    cell = cell_of((block_mean(values, block) for values in by_seed), 100)
    reasons = [reason for values in by_seed for case in block.cases if (reason := values[case].reason) is not None]
    if len(block.cases) == 1:
        return replace(cell, word="n/a", notes=tuple(f"{block.label}: {reason}" for reason in dict.fromkeys(reasons)))
    total = len(by_seed) * len(block.cases)
    counted = (f"{block.key}: {count} of {total} scores absent, {reason}" for reason, count in Counter(reasons).items())
    return replace(cell, notes=tuple(counted))


def seeds_wanted(group: Sequence[TrialRecord], seeds: Sequence[int]) -> int:
    """Trials that make a row complete: one where nothing is random, because nothing trains."""
    return 1 if is_fixed(group[0]) else len(seeds)


def row_of(
    group: Sequence[TrialRecord], cells: tuple[Cell, ...], seeds: Sequence[int], needed: Sequence[Cell], where: str = ""
) -> Row:
    """A row of finished trials, with what a reader must know of the seeds that are not in it.

    It is complete if every seed has a value in each of the `needed` cells, those that rows compete by.
    """
    finished = sum(record.status == "ok" for record in group)
    notes = tuple(dict.fromkeys(text for record in group for text in record.trial.deviations))
    wanted, scored = seeds_wanted(group, seeds), min(cell.n for cell in needed)
    if finished < wanted:
        failures = Counter(_status_words(record.status) for record in group if record.status != "ok")
        missing = wanted - len(group)
        reasons = [f"{count} {word}" for word, count in failures.items()]
        reasons += [f"{missing} not run{where}"] if missing else []
        notes = (f"{finished}/{wanted} seeds ({', '.join(reasons)})", *notes, *_messages(group))
    elif scored < wanted:
        notes = (f"{scored}/{wanted} seeds have every score", *notes)
    return _named_row(group, cells, notes, scored == wanted)


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
