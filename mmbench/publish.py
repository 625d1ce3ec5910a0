"""What `leaderboard` does: write the board of a results folder and print its tables."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mmbench.errors import ConfigError
from mmbench.report.aggregate import Board, load_board
from mmbench.report.board import all_problems, write_board
from mmbench.report.model import plain
from mmbench.report.tables import all_tables, check_format, render_all
from mmbench.report.text import for_terminal
from mmbench.report.view import View

RICH = "rich"
WHOLE_BOARD = View()


def publish(folder: Path, out: Path | None, fmt: str | None, view: View = WHOLE_BOARD) -> None:
    """Write tables, plots, records and README to `out` (the folder itself if None); print the tables in `fmt`.

    A view chooses from what is printed; what is written stays whole, and nothing is written for a view without `out`.
    Raises RecordError if the folder holds no record, ConfigError for an unknown format or a view that does not fit.
    """
    _check_printed(fmt)
    if not view.empty:
        board = load_board(folder)
        _tell((*board.problems, *all_problems(board)))
        if fmt is not None:
            _print(board, fmt, view)
        if out is None:
            return
    written = write_board(
        folder, out, command="mmbench run suite.yaml --out RESULTS && mmbench leaderboard RESULTS --out ."
    )
    if view.empty:
        _tell(written.problems)
        if fmt is not None:
            _print(written.board, fmt, view)
    if fmt is not None:
        print(f"tables, plots and README in {written.folder}", file=sys.stderr)


def _check_printed(fmt: str | None) -> None:
    if fmt not in (None, RICH):
        check_format(str(fmt))
    if fmt == "parquet" and sys.stdout.isatty():
        raise ConfigError("parquet is no text for a terminal; send it to a file: --format parquet > tables.parquet")


def _tell(problems: Sequence[str]) -> None:
    for problem in problems:
        print(f"note: {plain(problem)}", file=sys.stderr)


def _print(board: Board, fmt: str, view: View) -> None:
    tables = view.apply(all_tables(board, fmt))
    if not tables:
        print(f"no row passes: {view.where}", file=sys.stderr)
    if fmt != RICH:
        sys.stdout.buffer.write(render_all(board.name, tables, fmt))
        sys.stdout.buffer.flush()
        return
    console = Console()
    for table in tables:
        console.print(for_terminal(table, console.width))
