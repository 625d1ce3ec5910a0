"""scripts/backbone_tiny.py: pre-training against random weights, from the command line."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "backbone_tiny.py"
STARTS = ("random", "random, five times the epochs", "pre-trained")


@pytest.mark.slow
def test_a_short_comparison_is_written_and_shown(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(tmp_path), "--seeds", "3", "--short"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    with (tmp_path / "results.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert tuple(row) == ("seed", *STARTS) and row["seed"] == "3"
    shown = [line.split(" | ") for line in ended.stdout.splitlines() if line.startswith("| ")]
    assert [cells[0].strip("| ") for cells in shown] == ["start", *STARTS]
    for start, cells in zip(STARTS, shown[1:], strict=True):
        assert cells[1] == f"{100 * float(row[start]):.1f}" and 0 < float(row[start]) < 1
