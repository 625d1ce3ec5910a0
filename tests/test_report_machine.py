"""JSON, parquet and CSV hold the same table, typed, and nothing that another program takes for a command."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from report_records import board, failed, field, record

from mmbench.errors import ConfigError
from mmbench.report.machine import as_csv, as_json, as_parquet
from mmbench.report.model import Table
from mmbench.report.tables import all_tables, render, write_tables


@pytest.fixture(scope="module")
def tables() -> tuple[Table, ...]:
    mixup = record("lora-qv+mixup", 0, trial_method="lora-qv", trial_strategies=("mixup",))
    return all_tables(board([*field(2), mixup, failed("broken", "crashed", "why")]), "json")


def test_json_holds_every_cell_with_its_word_and_where_it_comes_from(tables: tuple[Table, ...]) -> None:
    def constant(text: str) -> float:
        raise AssertionError(f"{text} is no JSON")

    content = json.loads(as_json("a board", tables), parse_constant=constant)
    assert list(content)[:2] == ["schema", "schema_version"]
    assert [entry["slug"] for entry in content["tables"]] == [table.slug for table in tables]
    for entry, table in zip(content["tables"], tables, strict=True):
        assert [c["key"] for c in entry["columns"]] == [column.key for column in table.columns]
        assert [[c["mean"] for c in row["cells"]] for row in entry["rows"]] == [
            [cell.mean for cell in row.cells] for row in table.rows
        ]
    first = content["tables"][0]
    assert first["provenance"]["suites"] == ["quickstart"] and first["provenance"]["commits"] == ["0123456789ab"]
    rows = {row["method"]: row for row in first["rows"]}
    assert rows["lora-qv+mixup"]["registered"] == "lora-qv" and rows["lora-qv+mixup"]["strategies"] == ["mixup"]
    assert {cell["word"] for cell in rows["broken"]["cells"]} == {"crashed"}
    assert "crashed: why" in rows["broken"]["notes"]


def test_parquet_is_long_typed_and_says_the_same(tables: tuple[Table, ...], tmp_path: Path) -> None:
    path = tmp_path / "tables.parquet"
    path.write_bytes(as_parquet(tables))
    frame = pd.read_parquet(path)
    assert len(frame) == sum(len(table.rows) * len(table.columns) for table in tables)
    assert (frame["mean"].dtype, frame["std"].dtype, frame["n"].dtype, frame["best"].dtype) == (
        "float64",
        "float64",
        "int32",
        "bool",
    )
    for table in tables:
        shown = frame[(frame["table"] == table.slug) & (frame["measure"] == table.columns[0].key)]
        expected = [row.cells[0].mean for row in table.rows]
        assert [None if pd.isna(mean) else mean for mean in shown["mean"]] == expected
    about = json.loads(pq.read_schema(path).metadata[b"mmbench-tables"])
    assert [entry["title"] for entry in about["tables"]] == [table.title for table in tables]
    assert as_parquet(tables) == path.read_bytes()


def test_parquet_of_no_table_is_a_file_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "none.parquet"
    path.write_bytes(as_parquet(()))
    assert len(pd.read_parquet(path)) == 0


def test_parquet_is_not_printed_as_text(tables: tuple[Table, ...]) -> None:
    with pytest.raises(ConfigError, match="parquet is no text"):
        render(tables[0], "parquet")


@pytest.mark.parametrize("name", ["=1+1", "+cmd|calc", "-2", "@SUM(A1)", "\x1b[31mred", "a\nb"])
def test_a_spreadsheet_takes_no_label_for_a_formula(name: str) -> None:
    (table, *_) = all_tables(board([record(name)]), "csv")
    (line, *_) = csv.DictReader(io.StringIO(as_csv(table)))
    assert line["method"][0] not in "=+-@" and line["method"].isprintable()
    assert float(line["mean"]) == 50


def test_one_file_holds_all_tables(tmp_path: Path) -> None:
    written = write_tables(board(field(1)), tmp_path, ("json", "parquet"))
    assert [path.name for path in written] == ["tables.json", "tables.parquet"]
