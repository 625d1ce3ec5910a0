"""The tables of a board, written in every format."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, get_args

from mmbench.cards import Track
from mmbench.errors import ConfigError, UnknownNameError
from mmbench.files import write_atomic
from mmbench.report.aggregate import Board, accuracy_table
from mmbench.report.blocks import By
from mmbench.report.calibration import calibration_tables
from mmbench.report.comparable import FALLBACKS, select
from mmbench.report.efficiency import efficiency_tables
from mmbench.report.html import as_html
from mmbench.report.knowledge import knowledge_tables
from mmbench.report.latex import as_latex
from mmbench.report.machine import as_csv, as_json, as_parquet
from mmbench.report.model import Table
from mmbench.report.online import online_tables
from mmbench.report.published import reported_tables
from mmbench.report.ranking import ranking_table, unranked
from mmbench.report.robustness import robustness_tables
from mmbench.report.text import as_markdown, as_text
from mmbench.report.tradeoff import trade_off_tables

Format = Literal["txt", "md", "csv", "tex", "html", "json", "parquet"]
FORMATS: tuple[Format, ...] = get_args(Format)
WHOLE: tuple[Format, ...] = ("html", "json", "parquet")
"""Formats of which one file holds all tables."""
_EVERY_CASE: tuple[Format, ...] = ("csv", "json", "parquet")


def group_tables(board: Board, dataset: str, backbone: str, by: By = "family") -> tuple[Table, ...]:
    """The tables of one data set and backbone: accuracy, robustness, cost, online adapters, calibration.

    `by` says what a column stands for where a suite has many cases.
    """
    tables: list[Table] = []
    selection = select(board.records, dataset, backbone)
    if selection.records:
        tables += [accuracy_table(board, dataset, backbone, track, by) for track in selection.tracks]
        tables += robustness_tables(board, dataset, backbone)
        tables += knowledge_tables(board, dataset, backbone)
        costs = efficiency_tables(board, dataset, backbone)
        tables += (*costs, *trade_off_tables(costs))
    tables += online_tables(board, dataset, backbone, by)
    return (*tables, *calibration_tables(board, dataset, backbone))


def all_tables(board: Board, fmt: str = "txt") -> tuple[Table, ...]:
    """Those of every data set and backbone; at the end what the papers report.

    Formats for programs have a column for every case.
    """
    by: By = "case" if fmt in _EVERY_CASE else "family"
    groups = [table for dataset, backbone in board.groups for table in group_tables(board, dataset, backbone, by)]
    return (*groups, *ranking_tables(board), *reported_tables())


def ranking_tables(board: Board) -> tuple[Table, ...]:
    """Mean ranks over all data sets and cases, one table a track; none with too few rows or cases."""
    found = (ranking_table(board, track) for track in _tracks(board))
    return tuple(table for table in found if table is not None)


def ranking_problems(board: Board) -> tuple[str, ...]:
    """Why there is no such table although there are rows and cases enough, a text a track."""
    return tuple(text for track in _tracks(board) if (text := unranked(board, track)) is not None)


def _tracks(board: Board) -> tuple[Track, ...]:
    scored = {track for group in board.groups for track in select(board.records, *group).tracks}
    return tuple(track for track in FALLBACKS if track in scored)


def render(table: Table, fmt: str) -> str:
    """One table as text.

    Raises UnknownNameError for a format that does not exist, ConfigError for one that is no text.
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
        case "json":
            return as_json(table.title, (table,))
        case "parquet":
            raise ConfigError("parquet is no text; choose another table format, or write the tables to a folder")


def render_all(title: str, tables: Sequence[Table], fmt: str) -> bytes:
    """All tables as one document; those of formats that have none follow each other. Raises UnknownNameError."""
    match check_format(fmt):
        case "html":
            return as_html(title, tables).encode()
        case "json":
            return as_json(title, tables).encode()
        case "parquet":
            return as_parquet(tables)
        case single:
            return "\n".join(render(table, single) for table in tables).encode()


def check_format(fmt: str) -> Format:
    """The format of this name; raises UnknownNameError."""
    for known in FORMATS:
        if fmt == known:
            return known
    raise UnknownNameError("table format", fmt, FORMATS)


def write_tables(board: Board, out: Path, formats: Iterable[str] = FORMATS) -> tuple[Path, ...]:
    """One file a table and format, or one with all tables for HTML, JSON and parquet; returns what was written."""
    wanted = [check_format(fmt) for fmt in formats]
    out.mkdir(parents=True, exist_ok=True)
    made = {every: all_tables(board, "csv" if every else "txt") for every in {fmt in _EVERY_CASE for fmt in wanted}}
    written: list[Path] = []
    for fmt in wanted:
        tables = made[fmt in _EVERY_CASE]
        if fmt in WHOLE:
            contents = {out / f"tables.{fmt}": render_all(board.name, tables, fmt)}
        else:
            contents = {out / f"{table.slug}.{fmt}": render(table, fmt).encode() for table in tables}
        for path, content in contents.items():
            write_atomic(path, content)
        written.extend(contents)
    return tuple(written)
