"""A table before it has a format: columns, rows, cells and what must be said below them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

NO_CASE = "no case used: the method is told nothing about the input, so its blind scores stand here"
ONLY_AVAILABILITY = "told only which modality is absent, not the case"
DAGGERS = {NO_CASE: "†", ONLY_AVAILABILITY: "‡"}

STATUS_WORDS = {"does-not-fit": "does not fit", "over-budget": "over budget"}
NOT_MEASURED = "\u2013"


@dataclass(frozen=True)
class Column:
    """One measured quantity."""

    key: str
    label: str
    unit: str = ""
    digits: int | None = None
    """Decimals; None for three significant digits."""
    better: Literal["higher", "lower"] | None = None
    headline: bool = False

    @property
    def title(self) -> str:
        return f"{self.label} ({self.unit})" if self.unit else self.label


@dataclass(frozen=True)
class Cell:
    """Mean and standard deviation (n - 1) over `n` seeds, or the word that stands in their place."""

    mean: float | None = None
    std: float | None = None
    n: int = 0
    word: str = NOT_MEASURED
    """Shown where there is no mean: a trial's status, `n/a`, or the dash of what was not measured."""
    notes: tuple[str, ...] = ()
    best: bool = False


@dataclass(frozen=True)
class Facts:
    """What a row is, in the words of its trials; empty for figures of a paper."""

    registered: str = ""
    """The method's registered name; what tables call it may be a label of the suite."""
    family: str = ""
    strategies: tuple[str, ...] = ()
    online: str = ""


@dataclass(frozen=True)
class Provenance:
    """Where the numbers of a table come from; what the trials differ in is listed in full."""

    suites: tuple[str, ...]
    seeds: tuple[int, ...]
    budget: str
    dataset: str
    backbone: str
    devices: tuple[str, ...]
    """Model, kind, threads and trials at a time."""
    first_day: str
    last_day: str
    commits: tuple[str, ...]
    """Of the code, `+` at the end where the working tree held uncommitted changes; `unknown` where none was kept."""
    versions: tuple[str, ...]
    """`package version` of mmbench, torch and Python."""


@dataclass(frozen=True)
class Row:
    """A method under a regime, or a figure a paper reports."""

    name: str
    regime: str
    cells: tuple[Cell, ...]
    notes: tuple[str, ...] = ()
    complete: bool = True
    """Every seed gave every value; only complete rows compete."""
    reported: bool = False
    """Quoted from a paper: shown apart, never ranked."""
    trained: bool = True
    facts: Facts = Facts()


@dataclass(frozen=True)
class Table:
    """A titled grid; `slug` is its stable file name without a suffix."""

    title: str
    slug: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    setting: str = "regime"
    """What stands beside a row's name."""
    provenance: Provenance | None = None
    """None for figures of papers."""

    @property
    def headline(self) -> int | None:
        """Index of the column that ranks the rows."""
        return next((i for i, column in enumerate(self.columns) if column.headline), None)

    def marks(self) -> dict[str, str]:
        """Footnote text -> its mark, in reading order."""
        texts = dict.fromkeys(t for row in self.rows for t in (*row.notes, *(n for c in row.cells for n in c.notes)))
        lettered = [text for text in texts if text not in DAGGERS]
        letters = {text: _letter(i) for i, text in enumerate(lettered)}
        return {text: DAGGERS.get(text) or letters[text] for text in texts}


def _letter(index: int) -> str:
    """a ... z, aa, ab ..."""
    high, low = divmod(index, 26)
    return (_letter(high - 1) if high else "") + chr(ord("a") + low)


def cell_of(values: Iterable[float | None], scale: float = 1.0, spread: bool = True) -> Cell:
    """Mean and standard deviation of the values that were measured."""
    found = [value * scale for value in values if value is not None]
    if not found:
        return Cell()
    return Cell(fmean(found), deviation(found) if spread and len(found) > 1 else None, len(found))


def deviation(values: Sequence[float]) -> float:
    """Standard deviation (n - 1) of two values or more; exactly 0 for equal ones."""
    if min(values) == max(values):
        return 0.0
    mean = fmean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def decimals(value: float, column: Column) -> int:
    """How many decimals a value of this column shows."""
    if column.digits is not None:
        return column.digits
    return 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))


def cell_text(cell: Cell, column: Column, plus_minus: str = " ± ") -> str:
    """The cell in words, without its footnote marks."""
    if cell.mean is None:
        return cell.word
    places = decimals(cell.mean, column)
    spread = "" if cell.std is None else f"{plus_minus}{cell.std:.{places}f}"
    return f"{cell.mean:.{places}f}{spread}"


def mark_best(rows: tuple[Row, ...], columns: tuple[Column, ...]) -> tuple[Row, ...]:
    """Flag the best value of each column among complete rows; equal as shown means equally good."""
    best = [_best_text(rows, i, column) for i, column in enumerate(columns)]

    def flagged(row: Row) -> Row:
        return replace(row, cells=tuple(_flagged(row, *cell) for cell in zip(row.cells, columns, best, strict=True)))

    return tuple(flagged(row) for row in rows)


def _flagged(row: Row, cell: Cell, column: Column, best: str | None) -> Cell:
    won = _competes(row, cell, column) and _shown(cell, column) == best
    return cell if cell.best == won else replace(cell, best=won)


def _competes(row: Row, cell: Cell, column: Column) -> bool:
    # A row that trains nothing would win every "lower is better" column without having been adapted.
    idle = column.better == "lower" and not row.trained
    return row.complete and not row.reported and not idle and cell.mean is not None and column.better is not None


def _shown(cell: Cell, column: Column) -> str:
    return cell_text(replace(cell, std=None), column)


def _best_text(rows: tuple[Row, ...], index: int, column: Column) -> str | None:
    cells = [row.cells[index] for row in rows if _competes(row, row.cells[index], column)]
    if len(cells) < 2:
        return None
    pick = max if column.better == "higher" else min
    return _shown(pick(cells, key=lambda cell: cell.mean if cell.mean is not None else 0.0), column)


def plain(text: str) -> str:
    """One line of printable characters, whatever a label holds."""
    known = text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)
    return " ".join(known.split())
