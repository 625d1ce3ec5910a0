"""A choice from finished tables: which tables, which columns, which rows, in which order. Numbers stay as they are."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from mmbench.errors import ConfigError
from mmbench.report.model import Column, Row, Table
from mmbench.report.where import Kind, Test, Value, names_in, parse

TEXTS: dict[str, Kind] = {
    "method": "text",
    "regime": "text",
    "registered": "text",
    "family": "text",
    "strategies": "texts",
    "online": "text",
    "source": "text",
}
"""What rows are filtered and sorted by beside columns: `method` as tables call it, `source` measured or reported."""


@dataclass(frozen=True)
class View:
    """What `leaderboard` shows of a board; empty fields leave everything as it is."""

    tables: tuple[str, ...] = ()
    """Slugs, parts of slugs, or patterns with `*`."""
    columns: tuple[str, ...] = ()
    sort: str = ""
    """A column or text; `-` before it turns the order."""
    where: str = ""

    @property
    def empty(self) -> bool:
        return self == View()

    def apply(self, tables: Sequence[Table]) -> tuple[Table, ...]:
        """The chosen tables, without those that have none of the wanted columns or no row that passes the filter.

        Raises ConfigError for a table or column that none has, for a label that two columns of a table have, and for a
        filter that cannot be read.
        """
        chosen = self._chosen(tables)
        columns = [column for table in chosen for column in table.columns]
        for name in self.columns:
            _check("column", name, (), columns)
        if self.sort:
            _check("column to sort by", self.sort.removeprefix("-"), tuple(TEXTS), columns)
        for name in (*self.columns, self.sort.removeprefix("-"), *names_in(self.where)):
            _refuse_ambiguous(name, chosen)
        numbers: dict[str, Kind] = dict.fromkeys((name for c in columns for name in _names(c)), "number")
        test = parse(self.where, {**numbers, **TEXTS}) if self.where else None
        shown = (_columns(self._rows(table, test), self.columns) for table in chosen)
        return tuple(table for table in shown if table.columns and (table.rows or not self.where))

    def _chosen(self, tables: Sequence[Table]) -> tuple[Table, ...]:
        slugs = [table.slug for table in tables]
        wanted: set[str] = set()
        for name in self.tables:
            # A whole slug names one table, even where it is a part of others.
            found = [name] if name in slugs else [s for s in slugs if name in s or fnmatchcase(s, name)]
            if not found:
                raise ConfigError(f"no table '{name}' here; the tables: {', '.join(slugs) or 'none'}")
            wanted.update(found)
        return tuple(table for table in tables if not self.tables or table.slug in wanted)

    def _rows(self, table: Table, test: Test | None) -> Table:
        rows = tuple(row for row in table.rows if test is None or test(_values(row, table)))
        notes = []
        if test is not None:
            notes.append(f"Shown: {len(rows)} of {len(table.rows)} rows, those with {self.where}.")
        key = self.sort.removeprefix("-")
        if key in (*TEXTS, *(name for column in table.columns for name in _names(column))):
            down = self.sort.startswith("-")
            rows = _sorted(rows, table, key, down)
            notes.append(f"Sorted by {key}, {'falling' if down else 'rising'}.")
        if notes and any(cell.best for row in rows for cell in row.cells):
            notes.append("Best values are those of the whole table.")
        return replace(table, rows=rows, notes=(*notes, *table.notes))


def split_names(text: str) -> tuple[str, ...]:
    """`a,"b, c"` -> a and `b, c`."""
    return tuple(name.strip() for name in next(csv.reader([text], skipinitialspace=True), []) if name.strip())


def _names(column: Column) -> tuple[str, str]:
    """A column is called by its key, as CSV files do, or by its label, as pages do."""
    return column.key, column.label


def _check(kind: str, name: str, others: Sequence[str], columns: Sequence[Column]) -> None:
    if name not in others and not any(name in _names(column) for column in columns):
        known = dict.fromkeys((*others, *(column.key for column in columns)))
        raise ConfigError(f"no {kind} '{name}'; there are: {', '.join(known)}")


def _refuse_ambiguous(name: str, tables: Sequence[Table]) -> None:
    for table in tables:
        keys = [column.key for column in table.columns if column.label == name]
        if len(keys) > 1 and name not in (*TEXTS, *(column.key for column in table.columns)):
            raise ConfigError(f"'{name}' is the label of several columns of {table.slug}; name one: {', '.join(keys)}")


def _places(table: Table) -> dict[str, int]:
    """Where the column of each name stands; a key counts before a label, and the first of equal ones."""
    places: dict[str, int] = {}
    for names in ([column.key for column in table.columns], [column.label for column in table.columns]):
        for i, name in enumerate(names):
            places.setdefault(name, i)
    return places


def _columns(table: Table, keys: Sequence[str]) -> Table:
    if not keys:
        return table
    places = _places(table)
    kept = list(dict.fromkeys(places[key] for key in keys if key in places))
    rows = tuple(replace(row, cells=tuple(row.cells[i] for i in kept)) for row in table.rows)
    return replace(table, columns=tuple(table.columns[i] for i in kept), rows=rows)


def _values(row: Row, table: Table) -> dict[str, Value]:
    means = {name: row.cells[i].mean for name, i in _places(table).items()}
    facts = row.facts
    texts: dict[str, Value] = {
        "method": row.name,
        "regime": row.regime,
        "registered": facts.registered,
        "family": facts.family,
        "strategies": facts.strategies,
        "online": facts.online,
        "source": "reported" if row.reported else "measured",
    }
    return {**means, **texts}


def _sorted(rows: Iterable[Row], table: Table, key: str, down: bool) -> tuple[Row, ...]:
    """Rows without a value come last, whichever way; reported rows stay apart, below the measured ones."""
    valued = [(row, _values(row, table).get(key)) for row in rows]
    known = [(row, value) for row, value in valued if value not in (None, "", ())]
    lost = [row for row, value in valued if value in (None, "", ())]
    ordered = [row for row, _ in sorted(known, key=lambda pair: pair[1], reverse=down)]
    return tuple(sorted([*ordered, *lost], key=lambda row: row.reported))
