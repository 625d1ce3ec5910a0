"""The numbers behind the comparison of two rows, as JSON that a page carries within itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mmbench.report.model import Cell, Column, Row, Table, plain
from mmbench.report.site.content import Content, Place

DIGITS = 5
"""Significant digits of a number on the page, where tables show three."""

RowKey = tuple[str, str]
"""Name and regime."""


def comparisons(content: Content) -> list[dict[str, Any]]:
    """One entry a data set and backbone: its rows, and all its tables as columns of numbers."""
    return [_place(content, place) for place in content.places]


def _place(content: Content, place: Place) -> dict[str, Any]:
    whole = {table.slug for table in place.by_case}
    tables = (*place.by_case, *(table for table in place.tables if table.slug not in whole))
    rows = dict.fromkeys((row.name, row.regime) for table in tables for row in table.rows if not row.reported)
    places = {key: index for index, key in enumerate(sorted(rows))}
    return {
        "title": plain(place.title),
        "rows": [[plain(name), plain(regime), content.method_paths.get(name)] for name, regime in places],
        "tables": [_table(table, places) for table in tables],
    }


def _table(table: Table, places: Mapping[RowKey, int]) -> dict[str, Any]:
    rows = {places[row.name, row.regime]: _cells(row) for row in table.rows if not row.reported}
    return {"title": plain(table.title), "columns": [_column(column) for column in table.columns], "rows": rows}


def _column(column: Column) -> list[Any]:
    return [plain(column.label), column.unit, column.digits, column.better]


def _cells(row: Row) -> list[Any]:
    return [_cell(cell) for cell in row.cells]


def _cell(cell: Cell) -> Any:
    """[mean, standard deviation], or the word that stands in its place."""
    mean = _short(cell.mean)
    return plain(cell.word) if mean is None else [mean, _short(cell.std)]


def _short(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.{DIGITS}g}")
