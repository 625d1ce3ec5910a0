"""The tables of a board, written in every format."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args

from mmbench.errors import UnknownNameError
from mmbench.files import write_atomic
from mmbench.report.aggregate import Board, accuracy_table
from mmbench.report.blocks import By
from mmbench.report.comparable import select
from mmbench.report.efficiency import efficiency_tables
from mmbench.report.html import as_html
from mmbench.report.latex import as_latex
from mmbench.report.model import Table
from mmbench.report.online import online_tables
from mmbench.report.published import reported_tables
from mmbench.report.robustness import robustness_tables
from mmbench.report.text import as_markdown, as_text

Format = Literal["txt", "md", "csv", "tex", "html"]
FORMATS: tuple[Format, ...] = get_args(Format)


def group_tables(board: Board, dataset: str, backbone: str, by: By = "family") -> tuple[Table, ...]:
    """The tables of one data set and backbone: accuracy, robustness, cost, online adapters.

    `by` says what a column stands for where a suite has many cases.
    """
    tables: list[Table] = []
    selection = select(board.records, dataset, backbone)
    if selection.records:
        tables += [accuracy_table(board, dataset, backbone, track, by) for track in selection.tracks]
        tables += robustness_tables(board, dataset, backbone)
        tables += efficiency_tables(board, dataset, backbone)
    return (*tables, *online_tables(board, dataset, backbone, by))


def all_tables(board: Board, fmt: str = "txt") -> tuple[Table, ...]:
    """Those of every data set and backbone; at the end what the papers report. CSV has a column for every case."""
    by: By = "case" if fmt == "csv" else "family"
    groups = [table for dataset, backbone in board.groups for table in group_tables(board, dataset, backbone, by)]
    return (*groups, *reported_tables())


def render(table: Table, fmt: str) -> str:
    """One table as text.

    Raises UnknownNameError for a format that does not exist.
    """
    match check_format(fmt):
        case "txt":
            return as_text(table)
        case "md":
            return as_markdown(table)
        case "csv":
            return as_csv(table)
        case "tex":
            return as_latex(table)
        case "html":
            return as_html(table.title, (table,))


def check_format(fmt: str) -> Format:
    """The format of this name; raises UnknownNameError."""
    for known in FORMATS:
        if fmt == known:
            return known
    raise UnknownNameError("table format", fmt, FORMATS)


def as_csv(table: Table) -> str:
    """One line a cell: plain numbers in the column's unit, empty where there is none."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("method", "regime", "source", "measure", "unit", "mean", "std", "n", "word", "notes"))
    for row in table.rows:
        source = "reported" if row.reported else "measured"
        for column, cell in zip(table.columns, row.cells, strict=True):
            word = cell.word if cell.mean is None else ""
            mean, std = ("" if value is None else f"{value:.10g}" for value in (cell.mean, cell.std))
            notes = "; ".join((*row.notes, *cell.notes))
            writer.writerow((row.name, row.regime, source, column.key, column.unit, mean, std, cell.n, word, notes))
    return out.getvalue()


def write_tables(board: Board, out: Path, formats: Iterable[str] = FORMATS) -> tuple[Path, ...]:
    """One file a table and format, and one page with all tables for HTML; returns what was written."""
    wanted = [check_format(fmt) for fmt in formats]
    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    pages = all_tables(board)
    for fmt in wanted:
        tables = all_tables(board, fmt) if fmt == "csv" else pages
        if fmt == "html":
            contents = {out / "tables.html": as_html(board.name, tables)}
        else:
            contents = {out / f"{table.slug}.{fmt}": render(table, fmt) for table in tables}
        for path, content in contents.items():
            write_atomic(path, content.encode())
        written.extend(contents)
    return tuple(written)
