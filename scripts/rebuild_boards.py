"""Rebuild every board from its own records and say which tables differ from the published ones; exit 1 if any does.

python scripts/rebuild_boards.py [BOARD ...] [--write]

Tables and README are compared; plots are made anew but not compared, as they depend on fonts. With --write the boards
are replaced by what was rebuilt, tables and plots that are no longer made taken away.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from mmbench.publish import publish
from mmbench.report.board import PLOTS, README, RECORDS, TABLES

NAMED = 12
"""Files of a board that are named."""
BOARDS = Path(__file__).resolve().parents[1] / "leaderboards"


def boards(folder: Path = BOARDS) -> list[Path]:
    """Folders that hold records; the others hold suites or profiles."""
    return sorted(path.parent for path in folder.glob(f"*/{RECORDS}") if any(path.glob("*.json")))


def rebuild(board: Path, out: Path) -> Path:
    """The board as its records give it now."""
    publish(board, out, None)
    return out


def differences(published: Path, rebuilt: Path) -> list[str]:
    """Tables and README that are not the same, each in a few words."""
    names = {
        path.relative_to(folder).as_posix()
        for folder in (published, rebuilt)
        for path in (folder / README, *(folder / TABLES).rglob("*"))
        if path.is_file()
    }
    return [text for name in sorted(names) if (text := _difference(name, published / name, rebuilt / name))]


def _difference(name: str, published: Path, rebuilt: Path) -> str | None:
    if not rebuilt.is_file():
        return f"{name}: published, but its records no longer give it"
    if not published.is_file():
        return f"{name}: not published"
    if name.endswith(".parquet"):  # the file also names the version of the library that wrote it
        same = pq.read_table(published).equals(pq.read_table(rebuilt))
    else:
        same = published.read_bytes() == rebuilt.read_bytes()
    return None if same else f"{name}: differs"


def replace(published: Path, rebuilt: Path) -> None:
    """Put what was rebuilt in the place of the published tables, plots and README; records stay as they are."""
    for name in (TABLES, PLOTS):
        shutil.rmtree(published / name, ignore_errors=True)
        shutil.copytree(rebuilt / name, published / name)
    shutil.copyfile(rebuilt / README, published / README)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("board", nargs="*", type=Path, help="Folders of boards; all of leaderboards/ unless given.")
    parser.add_argument("--write", action="store_true", help="Replace the published tables, plots and README.")
    given = parser.parse_args(arguments)
    stale = 0
    for board in given.board or boards():
        with tempfile.TemporaryDirectory() as folder:
            rebuilt = rebuild(board, Path(folder) / board.name)
            found = differences(board, rebuilt)
            if given.write:
                replace(board, rebuilt)
        print(f"{board.name}: {len(found)} files differ{', written' if given.write else ''}")
        for text in found[:NAMED]:
            print(f"  {text}")
        if len(found) > NAMED:
            print(f"  and {len(found) - NAMED} more")
        stale += bool(found) and not given.write
    if stale:
        print("rebuild them: python scripts/rebuild_boards.py --write", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
