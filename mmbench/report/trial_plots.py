"""The plots of one row or one trial: what the pages of a method and of a trial show beside their numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mmbench.records import TrialRecord
from mmbench.report.aggregate import Board, accuracy_table, regime_word, slug
from mmbench.report.comparable import Selection, select
from mmbench.report.figures import Plot, save_drawing, style
from mmbench.report.model import Row, Table
from mmbench.report.outcome_plots import outcome_plots
from mmbench.report.training import training_curves
from mmbench.report.trial_files import trial_folders

_MOST_ROWS = 4
"""Regimes of a method that stand side by side."""


def write_method_plots(board: Board, place: tuple[str, str], title: str, out: Path) -> tuple[Plot, ...]:
    """Training curves, confusion and reliability of all rows of a title on one (data set, backbone).

    On the track that tells most; empty where the folder keeps neither events nor outcomes.
    """
    selection = select(board.records, *place)
    return _write(board, selection, tuple(r for r in selection.records if r.trial.title == title), (title,), out)


def write_trial_plots(board: Board, record: TrialRecord, out: Path) -> tuple[Plot, ...]:
    """Training curve, confusion and reliability of one trial, whether or not its tables have room for it."""
    selection = select((record,), record.trial.dataset, record.trial.backbone)
    return _write(board, selection, (record,), (record.trial.id,), out)


def _write(
    board: Board, selection: Selection, records: tuple[TrialRecord, ...], name: tuple[str, ...], out: Path
) -> tuple[Plot, ...]:
    part = replace(selection, records=records)
    if not any(record.status == "ok" and record.online is None for record in records):
        return ()
    out.mkdir(parents=True, exist_ok=True)
    track = part.tracks[0]
    table = accuracy_table(replace(board, records=records), part.dataset, part.backbone, track)
    group = slug(part.dataset, part.backbone, track, *name)
    rows = _rows(table, records)
    with style():
        drawings = (
            training_curves(table, part, trial_folders(board.folder)),
            *outcome_plots(table, rows, part, track, board.outcomes),
        )
        return tuple(plot for drawing in drawings for plot in save_drawing(drawing, out, group))


def _rows(table: Table, records: tuple[TrialRecord, ...]) -> tuple[Row, ...]:
    own = {(record.trial.title, regime_word(record)) for record in records}
    measured = [row for row in table.rows if (row.name, row.regime) in own and not row.reported]
    return tuple(row for row in measured if any(cell.mean is not None for cell in row.cells))[:_MOST_ROWS]
