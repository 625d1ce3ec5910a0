"""Tables for papers: booktabs, ASCII source, safe for any label."""

from __future__ import annotations

import textwrap
import unicodedata

from mmbench.report.model import Cell, Column, Row, Table, cell_text, plain

_COLUMNS_PER_BLOCK = 7
# Grave, acute, circumflex, tilde, macron, breve, diaeresis, ring, double acute, caron, cedilla.
_ACCENTS = "\u0300\u0301\u0302\u0303\u0304\u0306\u0308\u030a\u030b\u030c\u0327"
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "^": r"\textasciicircum{}",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "%": r"\%",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": r"{[}",
    "]": r"{]}",
    '"': "''",
    "±": r"$\pm$",
    "\u00d7": r"$\times$",
    "\u2013": "--",
    "\u2014": "---",
    "†": r"\dag{}",
    "‡": r"\ddag{}",
    "®": r"\textregistered{}",
    "™": r"\texttrademark{}",
    "\u2019": "'",
    "°": r"$^\circ$",
    "µ": r"$\mu$",
    "…": r"\dots{}",
}


def escape_latex(text: str) -> str:
    """Text that prints as it is; accented Latin letters pass, anything rarer becomes a question mark.

    pdflatex stops at a character its fonts lack, and a table must compile whatever a label holds.
    """
    return "".join(_SPECIAL.get(c) or (c if _prints(c) else "?") for c in plain(text))


def _prints(character: str) -> bool:
    """Whether the default fonts of pdflatex have it: ASCII, a few letters, and those with a stacked accent."""
    if character.isascii() or character in "ßæøåœłÆØÅŒŁ":
        return True
    parts = unicodedata.normalize("NFD", character)
    return len(parts) == 2 and parts[0].isascii() and parts[0].isalpha() and parts[1] in _ACCENTS


def as_latex(table: Table) -> str:
    """A floating table; needs \\usepackage{booktabs} and nothing else. Wide tables are stacked in blocks."""
    marks = table.marks()
    starts = range(0, len(table.columns), _COLUMNS_PER_BLOCK)
    blocks = [_tabular(table, range(i, min(i + _COLUMNS_PER_BLOCK, len(table.columns))), marks) for i in starts]
    notes = [rf"\textsuperscript{{{escape_latex(mark)}}} {escape_latex(text)}" for text, mark in marks.items()]
    notes += [escape_latex(note) for note in table.notes]
    lines = [
        "% needs \\usepackage{booktabs}",
        r"\begin{table}[tp]",
        r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{escape_latex(table.title)}.}}",
        rf"\label{{tab:{table.slug}}}",
        "\n\\par\\medskip\n".join(blocks),
    ]
    if notes:
        body = "\\par\n".join(notes)
        lines += [r"\par\smallskip", "\\begin{minipage}{\\linewidth}\\scriptsize\\raggedright", body, r"\end{minipage}"]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _tabular(table: Table, block: range, marks: dict[str, str]) -> str:
    columns = [table.columns[i] for i in block]
    lines = [rf"\begin{{tabular}}{{@{{}}ll{'r' * len(columns)}@{{}}}}", r"\toprule"]
    lines += [" & ".join(["Method", "Regime", *(_header(column) for column in columns)]) + r" \\", r"\midrule"]
    parted = False
    for row in table.rows:
        if row.reported and not parted and row is not table.rows[0]:
            lines.append(r"\midrule")
        parted = parted or row.reported
        cells = [_cell(row.cells[i], table.columns[i], marks) for i in block]
        lines.append(" & ".join([_name(row, marks), escape_latex(row.regime), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _header(column: Column) -> str:
    lines = textwrap.wrap(plain(column.label), 12) + ([column.unit] if column.unit else [])
    stacked = r"\\".join(escape_latex(line) for line in lines)
    return rf"\begin{{tabular}}[b]{{@{{}}r@{{}}}}{stacked}\end{{tabular}}"


def _name(row: Row, marks: dict[str, str]) -> str:
    name = escape_latex(row.name)
    return (rf"\emph{{{name}}}" if row.reported else name) + _raised(row.notes, marks)


def _cell(cell: Cell, column: Column, marks: dict[str, str]) -> str:
    text = escape_latex(cell_text(cell, column))
    return (rf"\textbf{{{text}}}" if cell.best else text) + _raised(cell.notes, marks)


def _raised(notes: tuple[str, ...], marks: dict[str, str]) -> str:
    return rf"\textsuperscript{{{escape_latex(','.join(marks[text] for text in notes))}}}" if notes else ""
