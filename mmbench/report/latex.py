"""Tables for papers: booktabs, ASCII source, safe for any label, within the text width of a plain article."""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections.abc import Sequence

from mmbench.report.model import Cell, Column, Table, cell_text, plain

# Grave, acute, circumflex, tilde, macron, breve, diaeresis, ring, double acute, caron, cedilla.
_ACCENTS = "\u0300\u0301\u0302\u0303\u0304\u0306\u0308\u030a\u030b\u030c\u0327"
_LAST_LETTER = "\u017f"
"""Of Latin Extended-A: beyond it pdflatex knows some accented letters and stops at others."""
_TEXT_WIDTH_PT = 345.0  # article at 10 pt
_DIGIT_PT = 4.25  # of the 8 pt font that \footnotesize is
_GAP_PT = 6.0
_NAME_CHARS = 30
_REGIME_CHARS = 14
_HEADER_CHARS = 12
_WIDEST_HEADER_CHARS = 18
_MOST_CHARS = 300  # of a label: no row may be higher than a page
_PAGE_LINES = 48
_NOTE_CHARS = 110  # a line of \scriptsize
_UNBROKEN_CHARS = 30
_SPECIAL = {
    "\0": "{}",
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
    "*": "{*}",
    "`": "{`}",
    '"': "''",
    "±": r"$\pm$",
    "\u00d7": r"$\times$",
    "\u2013": "--",
    "\u2014": "---",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
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
    apart = re.sub("-(?=-)", "-\0", plain(text))  # two hyphens would print as a dash
    return "".join(_SPECIAL.get(c) or (c if _prints(c) else "?") for c in apart)


def _prints(character: str) -> bool:
    """Whether the default fonts of pdflatex have it: ASCII, a few letters, and those with a stacked accent."""
    if character.isascii() or character in "ßæøåœłÆØÅŒŁ":
        return True
    parts = unicodedata.normalize("NFD", character)
    stacked = len(parts) == 2 and parts[0].isascii() and parts[0].isalpha() and parts[1] in _ACCENTS
    return stacked and character <= _LAST_LETTER


def as_latex(table: Table) -> str:
    """A floating table that needs booktabs alone; one longer than a page needs longtable too, and a single column.

    Columns beyond the text width go to further blocks with the names repeated.
    """
    marks = table.marks()
    blocks = _blocks(table, marks)
    notes = [rf"\textsuperscript{{{escape_latex(mark)}}} {_paragraph(text)}" for text, mark in marks.items()]
    notes += [_paragraph(note) for note in table.notes]
    return (
        _long(table, blocks, marks, notes)
        if _lines(table, blocks) > _PAGE_LINES
        else _float(table, blocks, marks, notes)
    )


def _blocks(table: Table, marks: dict[str, str]) -> list[range]:
    """Columns that fit beside the names, as many a block as the text is wide."""
    names = [(line, row.notes) for row in table.rows for line in _wrap(row.name, _NAME_CHARS)]
    regimes = [(line, ()) for row in table.rows for line in _wrap(row.regime, _REGIME_CHARS)]
    room = _TEXT_WIDTH_PT - _points(names, marks) - _points(regimes, marks)
    blocks, start, used = [], 0, 0.0
    for i, column in enumerate(table.columns):
        cells = [(_shown(row.cells[i], column), row.cells[i].notes) for row in table.rows]
        width = _points([*((line, ()) for line in _header_lines(column)), *cells], marks)
        if i > start and used + width > room:
            blocks.append(range(start, i))
            start, used = i, 0.0
        used += width
    return [*blocks, range(start, len(table.columns))]


def _points(texts: Sequence[tuple[str, Sequence[str]]], marks: dict[str, str]) -> float:
    """Width of a column of texts with raised marks, in points."""
    wide = [_extent(text) + 0.7 * len(_listed(notes, marks)) for text, notes in texts]
    return max([6.0, *wide]) * _DIGIT_PT + _GAP_PT


def _extent(text: str) -> float:
    """Width in digits of the Computer Modern fonts, about."""
    widths = {**dict.fromkeys(".,:;ijlt'|!-", 0.65), **dict.fromkeys("mw%@&\u00b1", 1.6)}
    return sum(1.6 if c.isupper() else widths.get(c, 1.0) for c in text)


def _lines(table: Table, blocks: Sequence[range]) -> int:
    """Lines of the whole table, notes included."""
    rows = sum(max(1, len(_wrap(row.name, _NAME_CHARS)), len(_wrap(row.regime, _REGIME_CHARS))) for row in table.rows)
    notes = sum(1 + len(text) // _NOTE_CHARS for text in (*table.marks(), *table.notes))
    return len(blocks) * (rows + 4) + notes


def _float(table: Table, blocks: Sequence[range], marks: dict[str, str], notes: Sequence[str]) -> str:
    lines = [
        "% needs \\usepackage{booktabs}",
        r"\begin{table}[tp]",
        r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{_paragraph(table.title)}.}}",
        rf"\label{{tab:{table.slug}}}",
        "\n\\par\\medskip\n".join(_tabular(table, block, marks) for block in blocks),
    ]
    if notes:
        body = "\\par\n".join(notes)
        lines += [r"\par\smallskip", "\\begin{minipage}{\\linewidth}\\scriptsize\\raggedright", body, r"\end{minipage}"]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _long(table: Table, blocks: Sequence[range], marks: dict[str, str], notes: Sequence[str]) -> str:
    """Blocks and notes that break across pages, heads repeated."""
    caption = [rf"\caption{{{_paragraph(table.title)}.}}\label{{tab:{table.slug}}}\\"]
    parts = [_longtable(table, block, marks, caption if i == 0 else []) for i, block in enumerate(blocks)]
    parts += [rf"\addtocounter{{table}}{{-{len(blocks) - 1}}}"]  # each longtable counts, one of them has a caption
    return "\n".join(
        [
            "% needs \\usepackage{booktabs} and, longer than a page, \\usepackage{longtable} in one column",
            r"\begingroup\footnotesize\setlength{\tabcolsep}{3pt}\setlength{\LTcapwidth}{\linewidth}",
            *parts,
            r"{\scriptsize\raggedright\noindent",
            *(note + r"\par\noindent" for note in notes),
            r"\par}\endgroup",
            "",
        ]
    )


def _tabular(table: Table, block: range, marks: dict[str, str]) -> str:
    lines = [rf"\begin{{tabular}}{{@{{}}ll{'r' * len(block)}@{{}}}}", *_head(table, block)]
    return "\n".join([*lines, *_body(table, block, marks), r"\bottomrule", r"\end{tabular}"])


def _longtable(table: Table, block: range, marks: dict[str, str], caption: Sequence[str]) -> str:
    head = _head(table, block)
    lines = [rf"\begin{{longtable}}{{@{{}}ll{'r' * len(block)}@{{}}}}", *caption, *head, r"\endfirsthead", *head]
    lines += [r"\endhead", r"\bottomrule", r"\endfoot", *_body(table, block, marks), r"\end{longtable}"]
    return "\n".join(lines)


def _head(table: Table, block: range) -> list[str]:
    titles = ["Method", escape_latex(table.setting.capitalize()), *(_header(table.columns[i]) for i in block)]
    return [r"\toprule", " & ".join(titles) + r" \\", r"\midrule"]


def _body(table: Table, block: range, marks: dict[str, str]) -> list[str]:
    lines: list[str] = []
    parted = False
    for row in table.rows:
        if row.reported and not parted and row is not table.rows[0]:
            lines.append(r"\midrule")
        parted = parted or row.reported
        cells = [_cell(row.cells[i], table.columns[i], marks) for i in block]
        name = _stacked(_wrap(row.name, _NAME_CHARS), "l")
        name = (rf"\emph{{{name}}}" if row.reported else name) + _raised(row.notes, marks)
        lines.append(" & ".join([name, _stacked(_wrap(row.regime, _REGIME_CHARS), "l"), *cells]) + r" \\")
    return lines


def _wrap(text: str, width: int) -> list[str]:
    shown = plain(text)
    return textwrap.wrap(shown if len(shown) <= _MOST_CHARS else shown[:_MOST_CHARS] + "...", width)


def _stacked(lines: Sequence[str], side: str, place: str = "t") -> str:
    """Lines above each other in one cell."""
    escaped = [escape_latex(line) for line in lines]
    if len(escaped) < 2:
        return "".join(escaped)
    joined = r"\\".join(escaped)
    return rf"\begin{{tabular}}[{place}]{{@{{}}{side}@{{}}}}{joined}\end{{tabular}}"


def _header_lines(column: Column) -> list[str]:
    # Long labels get wider lines, so that the head does not fill the page.
    width = min(max(_HEADER_CHARS, len(column.label) // 4), _WIDEST_HEADER_CHARS)
    return _wrap(column.label, width) + ([plain(column.unit)] if column.unit else [])


def _header(column: Column) -> str:
    return _stacked(_header_lines(column), "r", "b")


def _shown(cell: Cell, column: Column) -> str:
    return cell_text(cell, column, "±")


def _cell(cell: Cell, column: Column, marks: dict[str, str]) -> str:
    text = escape_latex(_shown(cell, column))
    return (rf"\textbf{{{text}}}" if cell.best else text) + _raised(cell.notes, marks)


def _listed(notes: Sequence[str], marks: dict[str, str]) -> str:
    return ",".join(marks[text] for text in notes)


def _raised(notes: Sequence[str], marks: dict[str, str]) -> str:
    return rf"\textsuperscript{{{escape_latex(_listed(notes, marks))}}}" if notes else ""


def _paragraph(text: str) -> str:
    """Running text; words longer than a line would take may break."""
    words = (textwrap.wrap(word, _UNBROKEN_CHARS) for word in plain(text).split())
    return " ".join(r"\allowbreak{}".join(escape_latex(piece) for piece in pieces) for pieces in words)
