"""What `leaderboard` does: write the board of a results folder and print its tables."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from mmbench.report.aggregate import Board
from mmbench.report.board import Written, write_board
from mmbench.report.tables import all_tables, check_format, render
from mmbench.report.text import for_terminal


def publish(folder: Path, out: Path | None, fmt: str | None) -> Written:
    """Write tables, plots, records and README to `out` (the folder itself if None); print the tables in `fmt`.

    Raises RecordError if the folder holds no record, ConfigError for an unknown format.
    """
    if fmt not in (None, "rich"):
        check_format(str(fmt))
    command = "mmbench run suite.yaml --out RESULTS && mmbench leaderboard RESULTS --out ."
    written = write_board(folder, out, command=command)
    for problem in written.problems:
        print(f"note: {problem}", file=sys.stderr)
    if fmt is not None:
        _print(written.board, fmt)
        print(f"tables, plots and README in {written.folder}", file=sys.stderr)
    return written


def _print(board: Board, fmt: str) -> None:
    console = Console()
    for table in all_tables(board, fmt):
        if fmt == "rich":
            console.print(for_terminal(table, console.width))
        else:
            print(render(table, fmt))
