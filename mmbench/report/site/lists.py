"""The lists of all methods and of all trials, as tables of words and numbers."""

from __future__ import annotations

from dataclasses import dataclass

from mmbench.records import TrialRecord
from mmbench.report.case_scores import mean_score
from mmbench.report.comparable import select
from mmbench.report.model import Cell, Table
from mmbench.report.site.content import Content, Place


@dataclass(frozen=True)
class Best:
    """The best row of a method on one data set and backbone."""

    cell: Cell
    table: Table
    regime: str


@dataclass(frozen=True)
class MethodRow:
    title: str
    family: str
    finished: int
    trials: int
    best: tuple[Best | None, ...]
    """One a place, None where the method has no score."""


@dataclass(frozen=True)
class TrialRow:
    record: TrialRecord
    mean: float | None
    """Share of right answers on the most telling track, mean over cases; None for online adapters and failures."""


def method_rows(content: Content) -> tuple[MethodRow, ...]:
    """Every title with its family, its trials, and its best headline score in each place."""
    best = [_best_rows(place) for place in content.places]
    return tuple(
        MethodRow(
            title=title,
            family=records[0].trial.family,
            finished=sum(record.status == "ok" for record in records),
            trials=len(records),
            best=tuple(found.get(title) for found in best),
        )
        for title, records in content.methods.items()
    )


def _best_rows(place: Place) -> dict[str, Best]:
    """The first row of each title in the headline table, which is sorted, the best first."""
    table = place.headline
    found: dict[str, Best] = {}
    if table is None or table.headline is None:
        return found
    for row in table.rows:
        cell = row.cells[table.headline]
        if not row.reported and cell.mean is not None:
            found.setdefault(row.name, Best(cell, table, row.regime))
    return found


def trial_rows(content: Content) -> tuple[TrialRow, ...]:
    """Every trial with the score that ranks its row."""
    board = content.board
    selections = {group: select(board.records, *group) for group in board.groups}
    rows = []
    for records in content.methods.values():
        for record in records:
            chosen = selections[record.trial.dataset, record.trial.backbone]
            mean = None if record.online else mean_score(record, chosen.tracks[0], chosen.metric)
            rows.append(TrialRow(record, mean))
    return tuple(rows)
