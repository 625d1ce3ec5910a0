"""The plots of a board, drawn from its tables and records: what a table leaves out, no plot shows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mmbench.cards import Track
from mmbench.report.aggregate import Board, accuracy_table, slug
from mmbench.report.bars import cost_bars, memory_bars
from mmbench.report.blocks import By, blocks_of, is_long
from mmbench.report.comparable import FALLBACKS, Selection, select
from mmbench.report.conditions import conditions_of
from mmbench.report.curves import curves, sheets
from mmbench.report.diagrams import rank_diagram
from mmbench.report.efficiency import efficiency_tables
from mmbench.report.figures import Drawing, Plot, save_drawing, style
from mmbench.report.heat import case_heat_map
from mmbench.report.model import Table
from mmbench.report.online import online_tables
from mmbench.report.outcome_plots import chosen_rows, outcome_plots
from mmbench.report.ranking import RANKING, ranking
from mmbench.report.robustness import ROBUSTNESS
from mmbench.report.scatter import COSTS, accuracy_against
from mmbench.report.seeds import seed_spread
from mmbench.report.training import training_curves
from mmbench.report.trial_files import trial_folders

_MOST_COLUMNS = 40


def write_plots(board: Board, out: Path) -> tuple[Plot, ...]:
    """Every plot that the records fill, as PNG and SVG; grouped by data set, backbone and track.

    File names are the slug of the table that holds the numbers, and what is drawn of it.
    """
    out.mkdir(parents=True, exist_ok=True)
    with style():
        return tuple(plot for group, drawing in _drawings(board) for plot in save_drawing(drawing, out, group))


def _drawings(board: Board) -> Iterator[tuple[str, Drawing | None]]:
    """(slug of the table, drawing), one after the other, so that no two figures are held at once."""
    families = {record.trial.title: record.trial.family for record in board.records}
    scored = {t for d, b in board.groups for t in select(board.records, d, b).tracks}
    for track in FALLBACKS:
        found = ranking(board, track) if track in scored else None
        if found is not None:
            yield slug(board.name, track, RANKING), rank_diagram(found, track, families)
    for dataset, backbone in board.groups:
        selection = select(board.records, dataset, backbone)
        for track in selection.tracks if selection.records else ():
            yield from _of_track(board, selection, track)
        for table in efficiency_tables(board, dataset, backbone):
            for cost in COSTS:
                yield table.slug, accuracy_against(table, cost)
            yield table.slug, cost_bars(table)
            yield table.slug, memory_bars(table, selection)
        for table in online_tables(board, dataset, backbone, "family")[1::2]:
            yield table.slug, case_heat_map(table)


def _of_track(board: Board, selection: Selection, track: Track) -> Iterator[tuple[str, Drawing | None]]:
    """Heat map of the cases, spread of the seeds, and a figure a family with severities or rates."""
    table = accuracy_table(board, selection.dataset, selection.backbone, track)
    yield table.slug, case_heat_map(_compact(table, board, selection, track))
    yield table.slug, seed_spread(table, selection, track)
    shown = [condition for condition in conditions_of(selection) if condition.case not in selection.idle]
    for sheet in sheets(shown):
        yield f"{table.slug}_{ROBUSTNESS}", curves(table, shown, sheet)
    if track == selection.tracks[0]:  # what no record holds is shown on the track that tells most
        yield table.slug, training_curves(table, selection, trial_folders(board.folder))
        for drawing in outcome_plots(table, chosen_rows(table), selection, track, board.outcomes):
            yield table.slug, drawing


def _compact(table: Table, board: Board, selection: Selection, track: Track) -> Table:
    """The table by case; of many cases by corruption, or by family where even these are many."""
    if not is_long(selection):
        return table
    by: By = "corruption" if len(blocks_of(selection, "corruption")) <= _MOST_COLUMNS else "family"
    return accuracy_table(board, selection.dataset, selection.backbone, track, by)
