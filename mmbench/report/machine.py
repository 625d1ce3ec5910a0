"""Tables for programs: CSV for spreadsheets, JSON as the table stands, parquet in long form."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mmbench.report.model import Cell, Column, Row, Table, plain

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA = "mmbench-tables"
SCHEMA_VERSION = 1
_CSV_HEADER = ("method", "regime", "source", "measure", "unit", "mean", "std", "n", "word", "notes")
_FORMULA = ("=", "+", "-", "@")


def as_csv(table: Table) -> str:
    """One line a cell: plain numbers in the column's unit, empty where there is none."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_CSV_HEADER)
    for row, column, cell in _cells(table):
        mean, std = ("" if value is None else f"{value:.10g}" for value in (cell.mean, cell.std))
        notes = "; ".join((*row.notes, *cell.notes))
        start = [_csv_text(text) for text in (row.name, row.regime, _source(row), column.key, column.unit)]
        writer.writerow((*start, mean, std, cell.n, _csv_text(_word(cell) or ""), _csv_text(notes)))
    return out.getvalue()


def _csv_text(text: str) -> str:
    """One printable line that no spreadsheet takes for a formula."""
    shown = plain(text)
    return f"'{shown}" if shown.startswith(_FORMULA) else shown


def as_json(title: str, tables: Sequence[Table]) -> str:
    """One document of all tables: columns, rows of cells in their order, notes, provenance; schema first.

    Values stand in the column's unit; `mean` is null where nothing was measured, and `word` says why.
    """
    content = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "title": plain(title),
        "tables": [_json_table(table) for table in tables],
    }
    return json.dumps(content, allow_nan=False, separators=(",", ":")) + "\n"


def _json_table(table: Table) -> dict[str, Any]:
    return {
        "slug": table.slug,
        "title": table.title,
        "setting": table.setting,
        "columns": [asdict(column) for column in table.columns],
        "rows": [_json_row(row) for row in table.rows],
        "notes": table.notes,
        "provenance": None if table.provenance is None else asdict(table.provenance),
    }


def _json_row(row: Row) -> dict[str, Any]:
    return {
        "method": row.name,
        "regime": row.regime,
        **asdict(row.facts),
        "source": _source(row),
        "complete": row.complete,
        "trained": row.trained,
        "notes": row.notes,
        "cells": [{**asdict(cell), "word": _word(cell)} for cell in row.cells],
    }


def as_parquet(tables: Sequence[Table]) -> bytes:
    """One file of all tables, a line a cell, typed.

    Titles, notes and provenance stand in the file's metadata under the key `mmbench-tables`, as `as_json` writes them.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = [_line(table, row, column, cell) for table in tables for row, column, cell in _cells(table)]
    described = [{**_json_table(table), "rows": []} for table in tables]
    about = json.dumps({"schema_version": SCHEMA_VERSION, "tables": described}, allow_nan=False)
    schema = _parquet_schema().with_metadata({SCHEMA: about})
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(lines, schema=schema), sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def _parquet_schema() -> pa.Schema:
    import pyarrow as pa

    texts = pa.list_(pa.string())
    label = pa.dictionary(pa.int32(), pa.string())
    return pa.schema(
        [
            *((name, label) for name in ("table", "method", "regime", "registered", "family")),
            ("strategies", texts),
            *((name, label) for name in ("online", "source", "measure", "unit", "better")),
            ("mean", pa.float64()),
            ("std", pa.float64()),
            ("n", pa.int32()),
            ("word", label),
            ("best", pa.bool_()),
            ("complete", pa.bool_()),
            ("notes", texts),
        ]
    )


def _line(table: Table, row: Row, column: Column, cell: Cell) -> dict[str, Any]:
    return {
        "table": table.slug,
        "method": row.name,
        "regime": row.regime,
        **asdict(row.facts),
        "source": _source(row),
        "measure": column.key,
        "unit": column.unit,
        "better": column.better,
        "mean": cell.mean,
        "std": cell.std,
        "n": cell.n,
        "word": _word(cell),
        "best": cell.best,
        "complete": row.complete,
        "notes": (*row.notes, *cell.notes),
    }


def _cells(table: Table) -> Iterator[tuple[Row, Column, Cell]]:
    for row in table.rows:
        for column, cell in zip(table.columns, row.cells, strict=True):
            yield row, column, cell


def _source(row: Row) -> str:
    return "reported" if row.reported else "measured"


def _word(cell: Cell) -> str | None:
    """What stands in place of a number; None beside one."""
    return cell.word if cell.mean is None else None
