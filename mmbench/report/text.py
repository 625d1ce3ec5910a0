"""Tables for terminals (rich) and for README files (Markdown)."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len, chop_cells
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from mmbench.report.model import Cell, Column, Row, Table, cell_text, plain

_HEADER_CHARS = 9
_NAME_CHARS = 28
_NAME_CHARS_TIGHT = 13
_REGIME_CHARS = 18


def for_terminal(table: Table, width: int = 80) -> Group:
    """A renderable of at most `width` columns; a wide table becomes several blocks with the names repeated."""
    marks = table.marks()
    parts: list[RenderableType] = [Text(plain(table.title), style="bold")]
    names, blocks = _layout(table, marks, width)
    for block in blocks:
        parts.append(Padding(_block(table, block, names, marks), (1, 0, 0, 0)))
    notes = [f"{mark} {plain(text)}" for text, mark in marks.items()] + [plain(note) for note in table.notes]
    parts.append(Text("\n" + "\n".join(notes), style="dim") if notes else Text(""))
    return Group(*parts)


def as_text(table: Table, width: int = 80) -> str:
    """The terminal form without colours."""
    console = Console(width=width, color_system=None, force_terminal=False, record=False, file=None)
    with console.capture() as capture:
        console.print(for_terminal(table, width))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


@dataclass(frozen=True)
class _Names:
    """Widths of the two columns that name a row."""

    name: int
    regime: int


def _layout(table: Table, marks: dict[str, str], width: int) -> tuple[_Names, list[range]]:
    """Fit all columns beside wrapped names if that goes, else split into blocks beside wider names."""
    regime = min(_REGIME_CHARS, max([6, *(_longest(row.regime) for row in table.rows)]))
    longest = max([6, *(cell_len(_name(row, marks)) for row in table.rows)])
    widths = [_column_width(table, i, marks) for i in range(len(table.columns))]
    room = width - regime - 1 - sum(w + 1 for w in widths)
    if room >= min(longest, _NAME_CHARS_TIGHT):
        return _Names(min(longest, room), regime), [range(len(widths))]
    names = _Names(min(longest, _NAME_CHARS, max(8, width // 3)), min(regime, max(6, width // 5)))
    room = width - names.name - names.regime - 1  # one blank between columns
    blocks, start, used = [], 0, 0
    for i, column in enumerate(widths):
        if i > start and used + column + 1 > room:
            blocks.append(range(start, i))
            start, used = i, 0
        used += column + 1
    return names, [*blocks, range(start, len(widths))]


def _longest(text: str) -> int:
    return max((cell_len(piece) for piece in _wrap(plain(text), _REGIME_CHARS)), default=0)


def _wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns of a terminal, where some characters take two."""
    pieces = textwrap.wrap(text, width, break_on_hyphens=True)
    return [line for piece in pieces for line in (chop_cells(piece, width) if cell_len(piece) > width else [piece])]


def _header(column: Column) -> list[str]:
    lines = _wrap(plain(column.label), _HEADER_CHARS)
    return [*lines, column.unit] if column.unit else lines


def _column_width(table: Table, index: int, marks: dict[str, str]) -> int:
    column = table.columns[index]
    words = _header(column)
    for row in table.rows:
        text = _cell(row.cells[index], column, marks)
        # A status may wrap between its words, a number may not.
        words += [text] if row.cells[index].mean is not None else text.split()
    return max([4, *map(cell_len, words)])


def _name(row: Row, marks: dict[str, str]) -> str:
    noted = ",".join(marks[text] for text in row.notes)
    return plain(row.name) + (f" [{noted}]" if noted else "")


def _cell(cell: Cell, column: Column, marks: dict[str, str]) -> str:
    noted = ",".join(marks[text] for text in cell.notes)
    return plain(cell_text(cell, column, "±")) + (f"[{noted}]" if noted else "")


def _block(table: Table, block: range, names: _Names, marks: dict[str, str]) -> RichTable:
    grid = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    grid.add_column(Text("method"), width=names.name)
    grid.add_column(Text(table.setting), width=names.regime)
    for i in block:
        column = table.columns[i]
        style = "bold" if column.headline else ""
        header = Text("\n".join(_header(column)), style=style)
        grid.add_column(header, justify="right", vertical="top", width=_column_width(table, i, marks))
    for row, following in zip(table.rows, [*table.rows[1:], None], strict=True):
        name = Text("\n".join(_wrap(_name(row, marks), names.name)), style="italic" if row.reported else "")
        regime = Text("\n".join(_wrap(plain(row.regime), names.regime)))
        cells = [
            Text(_cell(row.cells[i], table.columns[i], marks), style="bold green" if row.cells[i].best else "")
            for i in block
        ]
        parted = following is not None and following.reported and not row.reported
        grid.add_row(name, regime, *cells, end_section=parted)
    return grid


_MARKDOWN = str.maketrans({c: f"\\{c}" for c in "\\`*_[]|~$#"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def escape_markdown(text: str) -> str:
    """Text that shows as it is in a Markdown table, raw HTML included."""
    return plain(text).translate(_MARKDOWN)


def as_markdown(table: Table) -> str:
    """A pipe table, best values in bold, reported rows in italics, notes below."""
    marks = table.marks()
    header = ["Method", table.setting.capitalize(), *(escape_markdown(column.title) for column in table.columns)]
    aligned = [":--", ":--", *["--:"] * len(table.columns)]
    lines = [f"### {escape_markdown(table.title)}", "", _pipes(header), _pipes(aligned)]
    for row in table.rows:
        name = escape_markdown(row.name)
        name = (f"*{name}*" if row.reported else name) + _raised(row.notes, marks)
        cells = [_markdown_cell(cell, column, marks) for cell, column in zip(row.cells, table.columns, strict=True)]
        lines.append(_pipes([name, escape_markdown(row.regime), *cells]))
    notes = [f"<sup>{mark}</sup> {escape_markdown(text)}" for text, mark in marks.items()]
    notes += [escape_markdown(note) for note in table.notes]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)]).rstrip() + "\n"


def _markdown_cell(cell: Cell, column: Column, marks: dict[str, str]) -> str:
    text = escape_markdown(cell_text(cell, column))
    return (f"**{text}**" if cell.best else text) + _raised(cell.notes, marks)


def _raised(notes: tuple[str, ...], marks: dict[str, str]) -> str:
    return f"<sup>{','.join(marks[text] for text in notes)}</sup>" if notes else ""


def _pipes(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
