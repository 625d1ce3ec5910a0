"""The table of methods, regimes, strategies and online adapters: one line each where the terminal is wide enough."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from mmbench.axes import AXES, Part

WIDE = 124
"""Columns of a terminal from which on the whole table fits."""
EMPTY = "-"
TOLD = ("availability", "case")
"""Needs that the track says already."""
Cell = Callable[[Part], str]

FULL: Mapping[str, Cell] = {
    "name": lambda part: part.name,
    "axis": lambda part: str(part.axis),
    "family": lambda part: part.family,
    "trainable": lambda part: EMPTY if part.trainable is None else f"{part.trainable:,}",
    "memory": lambda part: part.memory or EMPTY,
    "needs": lambda part: ", ".join(part.needs) or EMPTY,
    "track": lambda part: part.track or EMPTY,
    "paper": lambda part: part.paper or part.title,
    "year": lambda part: str(part.year or EMPTY),
}
# The axis is in the heading, the year in the paper, and what is needed beside the track.
NARROW: Mapping[str, Cell] = {
    "name": FULL["name"],
    "family": FULL["family"],
    "trainable": lambda part: EMPTY if part.trainable is None else short(part.trainable),
    "mem": FULL["memory"],
    "track, needs": lambda part: (
        ", ".join(filter(None, (part.track, *(n for n in part.needs if n not in TOLD)))) or EMPTY
    ),
    "paper": FULL["paper"],
}


def print_parts(parts: Sequence[Part], as_json: bool) -> None:
    """Print the table, or one JSON list with a row a part."""
    if as_json:
        print(json.dumps([asdict(part) for part in parts]))
        return
    console = Console()
    if console.width >= WIDE:
        console.print(_table(parts, FULL), markup=False)
        return
    for axis, words in AXES.items():
        rows = [part for part in parts if part.axis == axis]
        if rows:
            console.print(f"axis {axis}: {words}", style="bold", highlight=False)
            console.print(_table(rows, NARROW), markup=False)


def _table(parts: Sequence[Part], columns: Mapping[str, Cell]) -> Table:
    """The columns that say something of at least one part."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    told = {title: cells for title, cell in columns.items() if set(cells := [cell(part) for part in parts]) != {EMPTY}}
    for title in told:
        right = title == "trainable"
        table.add_column(title, justify="right" if right else "left", overflow="fold", no_wrap=title in ("name", "mem"))
    for row in zip(*told.values(), strict=True):
        table.add_row(*row)
    return table


def short(count: int) -> str:
    """A count in about four characters."""
    if count < 10_000:
        return f"{count:,}"
    return f"{count / 1e3:.0f} k" if count < 1_000_000 else f"{count / 1e6:.1f} M"
