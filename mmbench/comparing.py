"""What `compare` does: read a folder and print how two of its rows differ."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from rich.console import Console

from mmbench.cards import Track
from mmbench.errors import UnknownNameError
from mmbench.report.aggregate import load_board
from mmbench.report.compare import compare
from mmbench.report.compare_text import as_json, for_terminal


def compare_command(rows: tuple[str, str], folder: Path, track: str | None, as_data: bool) -> None:
    """Print the comparison of two rows on every data set and backbone that has both.

    Raises RecordError if the folder holds no record, ConfigError for rows that cannot be compared.
    """
    chosen: Track | None = next((known for known in get_args(Track) if known == track), None)
    if track is not None and chosen is None:
        raise UnknownNameError("track", track, get_args(Track))
    found = compare(load_board(folder), *rows, chosen)
    if as_data:
        print(as_json(found))
        return
    console = Console()
    for comparison in found:
        console.print(for_terminal(comparison), highlight=False)
