"""Finished trials by the thousand: read and aggregated into tables, and a suite of a thousand listed."""

from __future__ import annotations

from pathlib import Path

import pytest
from many_records import Many, write_many
from pytest_benchmark.fixture import BenchmarkFixture
from report_records import record, save

from mmbench.config import Suite
from mmbench.report.aggregate import load_board
from mmbench.report.tables import all_tables
from mmbench.trials import rows

TRIALS, FEW = 1000, 60
SEEDS = 20


@pytest.fixture
def folder(tmp_path: Path, benchmark: BenchmarkFixture) -> Path:
    trials = TRIALS if benchmark.enabled else FEW
    save(tmp_path, [record(f"method-{i}", seed) for i in range(trials // SEEDS) for seed in range(SEEDS)])
    return tmp_path


def test_read_and_aggregate(benchmark: BenchmarkFixture, folder: Path) -> None:
    tables = benchmark.pedantic(lambda: all_tables(load_board(folder), "md"), rounds=1)
    assert max(len(table.rows) for table in tables) >= FEW // SEEDS


@pytest.fixture
def wide(tmp_path: Path, benchmark: BenchmarkFixture) -> Path:
    """A thousand rows of three seeds, scored on a hundred cases."""
    return write_many(tmp_path, Many() if benchmark.enabled else Many(rows=4, cases=12, seeds=2))


@pytest.mark.parametrize("fmt", ["md", "csv"])
def test_read_and_aggregate_wide(benchmark: BenchmarkFixture, wide: Path, fmt: str) -> None:
    tables = benchmark.pedantic(lambda: all_tables(load_board(wide), fmt), rounds=1)
    assert max(len(table.rows) for table in tables) >= 4


def test_list_a_suite(benchmark: BenchmarkFixture) -> None:
    suite = Suite.model_validate(
        {"name": "many", "methods": ["full-finetune", "lora-qv"], "regimes": ["clean", "mixed"], "seeds": range(250)}
    )
    assert len(benchmark(lambda: rows(suite))) == TRIALS
