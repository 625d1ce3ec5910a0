"""Scores of every row under every case as colours, with the number in each cell."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import pandas as pd
import seaborn as sns

from mmbench.report.families import family_legend, mark_rows
from mmbench.report.figures import (
    LAST_ROWS,
    Drawing,
    label,
    left_out,
    new_figure,
    relative_luminance,
    row_label,
    shown_rows,
)
from mmbench.report.model import Column, Row, Table, cell_text, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_WIDE = 14
"""Columns that have room for a label of several words."""
_COLOURS_FROM = 0.02
"""Share of the cells that may lie below the darkest colour, so that one collapsed row does not bleach the others."""


def case_heat_map(table: Table) -> Drawing | None:
    """Rows x columns in percent; a cell without a number says why. None if no row has a number."""
    table = _scores(table)
    measured = [row for row in table.rows if not row.reported]
    rows = shown_rows(measured)
    values = pd.DataFrame([[cell.mean for cell in row.cells] for row in rows], dtype="float64")  # (rows, columns)
    if values.isna().all(axis=None):
        return None
    narrow = len(table.columns) > _MOST_WIDE
    figure = new_figure(
        3.4 + (0.38 if narrow else 0.86) * len(table.columns), (2.9 if narrow else 1.9) + 0.27 * len(rows)
    )
    axes = figure.subplots()
    sns.heatmap(
        values,
        ax=axes,
        cmap="cividis",
        vmin=values.stack().quantile(_COLOURS_FROM),
        linewidths=0.8,
        linecolor="white",
        cbar_kws={"label": "%", "shrink": min(1.0, 4 / (0.27 * len(rows))), "pad": 0.02, "aspect": 25, "extend": "min"},
        xticklabels=_column_labels(table.columns, narrow),
        yticklabels=[row_label(row) for row in rows],
    )
    _write_cells(axes, rows, table.columns, 8 if narrow else 9)
    # The mean and the worst case are summaries, not cases: a gap sets them apart.
    axes.axvline(len(table.columns) - 2, color="white", linewidth=6)
    if len(rows) < len(measured):
        axes.axhline(len(rows) - LAST_ROWS, color="white", linewidth=6)
    axes.set_facecolor("#e4e4e4")
    axes.grid(visible=False)
    axes.tick_params(axis="x", rotation=90 if narrow else 0, labelsize=9, length=0)
    axes.tick_params(axis="y", rotation=0, labelsize=9, length=0)
    mark_rows(axes, rows, 0.5)
    family_legend(figure, rows, 4 if not narrow else 8)
    axes.set_title(label(table.title, 90) + left_out(len(rows), len(measured)), fontsize=10)
    return Drawing(figure, "cases", plain(table.title), _words(table, rows, len(measured)))


def _words(table: Table, rows: Sequence[Row], of: int) -> str:
    """What the map shows: its size, and the rows at both ends of the headline."""
    index = table.headline
    size = f"Heat map of {plain(table.title)}: {len(rows)} of {of} rows, {len(table.columns)} columns"
    known = [row for row in rows if index is not None and row.cells[index].mean is not None]
    if index is None or not known:
        return f"{size}."
    ends = [
        f"{word} {table.columns[index].label}: {plain(row.name)}, {row.regime}, "
        f"{cell_text(replace(row.cells[index], std=None), table.columns[index])} %"
        for word, row in (
            ("highest", max(known, key=lambda r: r.cells[index].mean or 0.0)),
            ("lowest", min(known, key=lambda r: r.cells[index].mean or 0.0)),
        )
    ]
    return f"{size}; {'; '.join(ends)}."


def _scores(table: Table) -> Table:
    """Without intervals and ranks, which are no scores."""
    kept = [index for index, column in enumerate(table.columns) if column.better is not None]
    rows = tuple(replace(row, cells=tuple(row.cells[index] for index in kept)) for row in table.rows)
    return replace(table, columns=tuple(table.columns[index] for index in kept), rows=rows)


def _column_labels(columns: Sequence[Column], narrow: bool) -> list[str]:
    if narrow:
        return [label(column.label, 30) for column in columns]
    return ["\n".join(textwrap.wrap(label(column.label), 11)) for column in columns]


def _write_cells(axes: Axes, rows: Sequence[Row], columns: Sequence[Column], points: float) -> None:
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
        size = points if cell.mean is not None else points - 2
        axes.text(
            x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=size, color=colour, linespacing=0.9
        ).set_in_layout(False)
