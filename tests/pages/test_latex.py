"""Tables compiled by pdflatex, whatever their labels hold, and read back from the page.

Needs Debian's texlive-latex-base, texlive-latex-recommended (booktabs) and poppler-utils (pdftotext).
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from report_records import board, failed, field, of, record

from mmbench.report.aggregate import load_board
from mmbench.report.latex import as_latex, escape_latex
from mmbench.report.model import Cell, Column, Row, Table
from mmbench.report.tables import all_tables

NAMES = (
    "100% & a_b #1 {c} ~d ^e \\f $g$",
    "\\input{/etc/passwd}\\end{document}",
    "*starred",
    "[optional]",
    "--two-hyphens---three",
    "?`!`<<>>,,''",
    "Müller Škoda Ångström ẁ ǹ ȩ Ȳ ḧ",
    "漢字 кириллица العربية עברית 🙂 e\u0301 \u202edesrever",
    "null\0 escape\x1b[31m bell\x07 line\nbreak",
    "long words " * 40,
    "unbroken" * 60,
)
PACKAGES = "texlive-latex-base texlive-latex-recommended poppler-utils"


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is not installed; on Debian: apt-get install --no-install-recommends {PACKAGES}")
    return found


def compiled(folder: Path, body: Sequence[str]) -> tuple[str, str]:
    """Log of pdflatex and text of the pages; fails where it stops."""
    source = folder / "tables.tex"
    start = "\\documentclass{article}\n\\usepackage{booktabs,longtable}\n\\begin{document}\n"
    source.write_text(start + "\n".join(body) + "\n\\end{document}\n", encoding="utf-8")
    # No file is read but the source and the packages, and no command is run, whatever a label asks for.
    command = [tool("pdflatex"), "-no-shell-escape", "-interaction=nonstopmode", "-halt-on-error", source.name]
    for _ in range(2):  # longtable settles its widths in a second pass
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=120, check=False)
    log = done.stdout.decode("utf-8", "replace")
    assert done.returncode == 0, log[-2000:]
    pages = subprocess.run(
        [tool("pdftotext"), "-layout", "tables.pdf", "-"], cwd=folder, capture_output=True, check=True
    )
    return log, pages.stdout.decode("utf-8")


def assert_on_the_page(log: str) -> None:
    lost = [line for line in log.splitlines() if "Overfull \\hbox" in line or "Float too large" in line]
    assert lost == []


def hostile_tables() -> tuple[Table, ...]:
    made = [record(name, 0, of(90 - i, 60, 60, 60)) for i, name in enumerate(NAMES)]
    made += [failed(name, "crashed", f"cannot {name}") for name in ("broken", *NAMES[:2])]
    columns = tuple(Column(f"c{i}", name, "% of _&#", 1, "higher") for i, name in enumerate(NAMES))
    rows = tuple(Row(name, name, tuple(Cell(1.5, 0.5, 3, notes=(name,)) for _ in columns), NAMES) for name in NAMES)
    return (*all_tables(board(made), "tex"), Table(NAMES[1], "everything", columns, rows, NAMES))


def test_hostile_labels_compile_and_stay_on_the_page(tmp_path: Path) -> None:
    log, pages = compiled(tmp_path, [as_latex(table) for table in hostile_tables()])
    assert_on_the_page(log)
    # Underscores are rules on the page and accents stand apart, so names with them are not looked for as a whole.
    for shown in ("100% & a", "\\input{/etc/passwd}", "*starred", "[optional]", "--two-hyphens---three"):
        assert shown in pages, shown
    assert "root:" not in pages
    assert pages.count("unbroken") > 60 * len(NAMES)


def test_tables_longer_than_a_page_lose_no_row_and_keep_their_numbers(tmp_path: Path) -> None:
    columns = tuple(Column(f"c{i}", f"case {i}", "%", 1, "higher") for i in range(12))
    rows = tuple(
        Row(f"method-{i:03d}", "casewise", tuple(Cell(i + j / 100, 0.1, 3) for j in range(12))) for i in range(150)
    )
    long = Table("Long", "long", columns, rows, ("the last word",))
    short = Table("Short", "short", columns[:2], tuple(Row("one", "mixed", row.cells[:2]) for row in rows[:1]))
    log, pages = compiled(tmp_path, [as_latex(short), as_latex(long), as_latex(short)])
    assert_on_the_page(log)
    blocks = pages.count("method-000")
    assert blocks > 1
    assert [pages.count(row.name) for row in rows] == [blocks] * len(rows)
    assert "the last word" in pages
    assert [f"Table {i}:" in pages for i in (1, 2, 3, 4)] == [True, True, True, False]


def test_every_character_that_passes_compiles(tmp_path: Path) -> None:
    every = [chr(code) for code in range(0x20, 0x3000) if chr(code).isprintable()]
    passed = [c for c in every if "?" not in escape_latex(c)]
    assert len(passed) > 200
    compiled(tmp_path, [f"{escape_latex(c)}\n" for c in passed])


@pytest.mark.parametrize("name", ["methods-tiny", "av-digits"])
def test_tables_of_published_boards_compile_as_they_are(name: str, tmp_path: Path) -> None:
    folder = Path(__file__).resolve().parents[2] / "leaderboards" / name
    log, pages = compiled(tmp_path, [as_latex(table) for table in all_tables(load_board(folder), "tex")])
    assert_on_the_page(log)
    assert "prompt-the-missing" in pages


def test_tables_of_every_kind_compile(tmp_path: Path) -> None:
    log, pages = compiled(tmp_path, [as_latex(table) for table in all_tables(board(field()), "tex")])
    assert_on_the_page(log)
    assert "does not fit" in pages and "reported" in pages
