"""The plots of a board, drawn from its tables: what a table leaves out, no plot shows."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import seaborn as sns

from mmbench.cards import Track
from mmbench.report.aggregate import Board, accuracy_table, slug
from mmbench.report.comparable import select
from mmbench.report.conditions import Condition, conditions_of
from mmbench.report.curves import curves, sheets
from mmbench.report.efficiency import efficiency_tables
from mmbench.report.figures import (
    REGIME_STYLES,
    label,
    new_figure,
    relative_luminance,
    row_label,
    save,
    spans_far,
    style,
)
from mmbench.report.model import Column, Row, Table, cell_text
from mmbench.report.online import online_tables
from mmbench.report.robustness import ROBUSTNESS
from mmbench.report.scatter import accuracy_against

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_COLUMNS = 42
_MOST_WIDE = 14  # columns that have room for a label of several words
_MOST_ROWS = 60  # a taller picture is read by nobody; the tables have every row
_BARS = ("trainable_parameters", "training_state", "epoch_seconds")
_BAR_TITLES = {"trainable_parameters": "trainable parameters (M)", "training_state": "training state (MiB)"}


def write_plots(board: Board, out: Path) -> tuple[Path, ...]:
    """Heat map and curves of each track, accuracy over memory and epoch time, bars of cost; PNG and SVG of each."""
    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    with style():
        for dataset, backbone in board.groups:
            selection = select(board.records, dataset, backbone)
            for track in selection.tracks if selection.records else ():
                table = accuracy_table(board, dataset, backbone, track)
                written += _saved(_score_map(board, dataset, backbone, track), out / f"{table.slug}_cases")
                shown = [c for c in conditions_of(selection) if c.case not in selection.idle]
                written += _curves(table, shown, out)
            for table in efficiency_tables(board, dataset, backbone):
                memory = accuracy_against(table, "training_state", "training state (MiB)")
                written += _saved(memory, out / f"{table.slug}_accuracy-memory")
                time = accuracy_against(table, "epoch_seconds", "training time of one epoch (s)")
                written += _saved(time, out / f"{table.slug}_accuracy-time")
                written += _saved(cost_bars(table), out / f"{table.slug}_bars")
            for table in online_tables(board, dataset, backbone, "family")[1::2]:
                written += _saved(case_heat_map(table), out / f"{table.slug}_cases")
    return tuple(written)


def _curves(table: Table, conditions: Sequence[Condition], out: Path) -> list[Path]:
    """One figure a family with severities or rates, beside the robustness table of the same track."""
    written: list[Path] = []
    for sheet in sheets(conditions):
        stem = slug(f"{sheet.scale}-{sheet.name}".replace("_", "-"))
        written += _saved(curves(table, conditions, sheet), out / f"{table.slug}_{ROBUSTNESS}_{stem}")
    return written


def _saved(figure: Figure | None, stem: Path) -> tuple[Path, ...]:
    return () if figure is None else save(figure, stem)


def _score_map(board: Board, dataset: str, backbone: str, track: Track) -> Figure | None:
    """By case; of many cases by corruption, or by family where even these are many."""
    table = accuracy_table(board, dataset, backbone, track, "corruption")
    if len(table.columns) > _MOST_COLUMNS:
        table = accuracy_table(board, dataset, backbone, track, "family")
    return case_heat_map(table)


def case_heat_map(table: Table) -> Figure | None:
    """Methods x cases in percent; a cell without a number says why. None if no row has a number."""
    measured = [row for row in table.rows if not row.reported]
    rows = measured[:_MOST_ROWS]
    values = pd.DataFrame([[cell.mean for cell in row.cells] for row in rows], dtype="float64")  # (rows, columns)
    if values.isna().all(axis=None):
        return None
    narrow = len(table.columns) > _MOST_WIDE
    figure = new_figure(
        3.2 + (0.5 if narrow else 0.95) * len(table.columns), (2.6 if narrow else 1.6) + 0.36 * len(rows)
    )
    axes = figure.subplots()
    sns.heatmap(
        values,
        ax=axes,
        cmap="cividis",
        linewidths=0.8 if narrow else 1.2,
        linecolor="white",
        cbar_kws={"label": "%", "shrink": 0.8, "pad": 0.02},
        xticklabels=_column_labels(table, narrow),
        yticklabels=[row_label(row) for row in rows],
    )
    _write_cells(axes, rows, table.columns, 7.5 if narrow else 9)
    # The mean and the worst case are summaries, not cases: a gap sets them apart.
    axes.axvline(len(table.columns) - 2, color="white", linewidth=6)
    axes.set_facecolor("#e4e4e4")
    axes.grid(visible=False)
    axes.tick_params(axis="x", rotation=90 if narrow else 0, labelsize=9, length=0)
    axes.tick_params(axis="y", rotation=0, labelsize=9, length=0)
    best = f" (the first {len(rows)} of {len(measured)} rows)" if len(rows) < len(measured) else ""
    axes.set_title(label(table.title, 90) + best, fontsize=10)
    return figure


def _column_labels(table: Table, narrow: bool) -> list[str]:
    if narrow:
        return [label(column.label, 30) for column in table.columns]
    return ["\n".join(textwrap.wrap(label(column.label), 11)) for column in table.columns]


def _write_cells(axes: Axes, rows: list[Row], columns: tuple[Column, ...], points: float) -> None:
    """The mean of each cell in black or white, whichever reads better on its colour, or why there is none."""
    mesh = axes.collections[0]
    low, high = mesh.get_clim()
    for (y, row), (x, column) in product(enumerate(rows), enumerate(columns)):
        cell = row.cells[x]
        if cell.mean is None:
            text, colour = "\n".join(textwrap.wrap(cell.word, 10)), "#444444"
        else:
            red, green, blue, _ = mesh.get_cmap()((cell.mean - low) / (high - low) if high > low else 0.5)
            bright = relative_luminance(float(red), float(green), float(blue)) > 0.18
            text, colour = cell_text(replace(cell, std=None), column), "black" if bright else "white"
        size = points if cell.mean is not None else points - 1.5
        axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=size, color=colour, linespacing=1.0)


def cost_bars(table: Table) -> Figure | None:
    """Trainable parameters, training state and epoch seconds side by side; None if no row was trained."""
    rows = [row for row in table.rows if not row.reported and row.trained and _has_cost(row, table)]
    if not rows:
        return None
    figure = new_figure(11.0, 1.5 + 0.34 * len(rows))
    panels = figure.subplots(1, len(_BARS), sharey=True)
    for axes, key in zip(panels, _BARS, strict=True):
        index = next(i for i, column in enumerate(table.columns) if column.key == key)
        _panel(axes, rows, index, table.columns[index])
    panels[0].set_yticks(range(len(rows)), [row_label(row) for row in rows], fontsize=9)
    panels[0].invert_yaxis()
    figure.suptitle(label(table.title, 110), fontsize=10)
    return figure


def _has_cost(row: Row, table: Table) -> bool:
    wanted = [i for i, column in enumerate(table.columns) if column.key in _BARS]
    return any(row.cells[i].mean is not None for i in wanted)


def _panel(axes: Axes, rows: list[Row], index: int, column: Column) -> None:
    values = [row.cells[index].mean for row in rows]
    known = [value for value in values if value is not None]
    logarithmic = spans_far(known)
    floor = min([v for v in known if v > 0], default=1.0) / 3 if logarithmic else 0.0
    for y, (row, value) in enumerate(zip(rows, values, strict=True)):
        colour = REGIME_STYLES.get(row.regime, ("#555555", ""))[0]
        if value is not None and value > floor:
            axes.barh(y, value - floor, left=floor, color=colour, height=0.7)
        text = cell_text(row.cells[index], column).split(" ±")[0]
        axes.annotate(
            text, (max(value or floor, floor), y), (4, 0), textcoords="offset points", va="center", fontsize=8
        )
    if logarithmic:
        axes.set_xscale("log")
    # Room for the number at the end of the longest bar.
    top = max(known, default=1.0) or 1.0
    axes.set_xlim(floor, top * (top / floor) ** 0.22 if logarithmic else top * 1.22)
    scale = ", log scale" if logarithmic else ""
    axes.set_title(_BAR_TITLES.get(column.key, "training time of one epoch (s)") + scale, fontsize=9)
    axes.grid(axis="y", visible=False)
    axes.tick_params(labelsize=8)
