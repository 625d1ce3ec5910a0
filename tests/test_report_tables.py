"""Every format shows the same table, whatever its labels hold."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_records import CASES, failed, field, record, save
from rich.cells import cell_len

from mmbench.errors import UnknownNameError
from mmbench.report.aggregate import Board, accuracy_table, load_board, slug
from mmbench.report.html import as_html
from mmbench.report.latex import escape_latex
from mmbench.report.model import Cell, Column, Row, Table
from mmbench.report.tables import FORMATS, all_tables, render, write_tables

HOSTILE = r"<script>alert(1)</script> & a_b|c {d} $x$ 50% #1 ^~\ [e] *f* `g`" + "\n\x1b[31mred 漢字"


def hostile_table() -> Table:
    records = (record(HOSTILE), record("plain"), failed("broken", "crashed", HOSTILE))
    return accuracy_table(Board(Path("b"), "b", records, ()), "synthetic-av", "cavmae-tiny", "blind")


def full_tables() -> tuple[Table, ...]:
    return all_tables(Board(Path("b"), "b", tuple(field()), ()))


class Page(HTMLParser):
    """Open tags, texts and attribute values; fails on a tag closed out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.links: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "action", "style")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        self.texts.append(text)


def test_html_shows_a_hostile_label_as_text_and_asks_nothing_from_outside() -> None:
    source = as_html(HOSTILE, (hostile_table(), *full_tables()))
    page = Page()
    page.feed(source)
    page.close()
    assert page.open == []
    assert "script" not in page.seen and page.links == []
    assert "http" not in source and "@import" not in source and "url(" not in source
    assert any("<script>alert(1)</script>" in text for text in page.texts)
    assert page.seen.count("table") == 1 + len(full_tables())


def balanced(text: str) -> bool:
    depth = 0
    for brace in re.sub(r"\\[\\{}]", "", text):
        depth += {"{": 1, "}": -1}.get(brace, 0)
        if depth < 0:
            return False
    return depth == 0


@pytest.mark.parametrize("table", [hostile_table(), *full_tables()], ids=lambda table: table.slug)
def test_latex_is_balanced_escaped_and_rectangular(table: Table) -> None:
    source = render(table, "tex")
    assert balanced(source)
    environments = re.findall(r"\\(begin|end)\{(\w+)\}", source)
    stack: list[str] = []
    for kind, name in environments:
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert stack == []
    body = "\n".join(line for line in source.splitlines() if not line.startswith("%"))
    assert not re.search(r"(?<!\\)[%#]", body)
    assert not re.search(r"(?<!\\)\$", re.sub(r"\$\\(pm|times|d?dagger)\$", "", body))
    assert "_" not in body.replace(r"\_", "").replace(rf"\label{{tab:{table.slug}}}", "")
    assert all(ord(c) < 0x180 and (c.isprintable() or c == "\n") for c in source)
    for block in body.split(r"\toprule")[1:]:
        rows = [line for line in block.split(r"\bottomrule")[0].splitlines() if line.endswith(r" \\")]
        assert len({len(re.findall(r"(?<!\\)&", line)) for line in rows}) == 1


def test_latex_keeps_accented_letters_and_replaces_what_pdflatex_lacks() -> None:
    assert escape_latex("Müller Škoda 5 µm ą 漢 «x» a_b") == r"Müller Škoda 5 $\mu$m ? ? ?x? a\_b"


def test_markdown_rows_have_one_cell_a_column() -> None:
    for table in (hostile_table(), *full_tables()):
        lines = [line for line in render(table, "md").splitlines() if line.startswith("|")]
        assert len(lines) == len(table.rows) + 2
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {len(table.columns) + 3}
    text = render(hostile_table(), "md")
    assert "<script" not in text and r"a\_b\|c" in text and "\x1b" not in text


@pytest.mark.parametrize("table", [hostile_table(), *full_tables()], ids=lambda table: table.slug)
def test_the_terminal_form_keeps_to_80_columns_and_cuts_nothing(table: Table) -> None:
    text = render(table, "txt")
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text and "\x1b" not in text
    for row in table.rows:
        for cell, column in zip(row.cells, table.columns, strict=True):
            if cell.mean is not None and column.digits is not None:
                assert f"{cell.mean:.{column.digits}f}" in text


def test_the_terminal_form_splits_many_cases_into_blocks() -> None:
    columns = tuple(Column(f"c{i}", f"very-long-case-name-{i}", "%", 1, "higher") for i in range(20))
    rows = tuple(
        Row(f"a-method-with-a-long-name-{i}", "casewise", tuple(Cell(50.0 + i, 1.5, 3) for _ in columns))
        for i in (0, 1)
    )
    text = render(Table("wide", "wide", columns, rows), "txt")
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("50.0±1.5") == 20
    assert text.count("regime") > 2


def test_characters_two_columns_wide_are_counted_as_two_and_none_is_cut() -> None:
    wide = "漢字" * 40
    columns = (Column("a", wide, "%", 1, "higher"), Column("b", "b", "%", 1, "higher"))
    cells = (Cell(1.0, n=1), Cell(2.0, n=1))
    text = render(Table(wide, "wide", columns, (Row(wide, wide[:9], cells), Row("a", "mixed", cells))), "txt")
    assert max(map(cell_len, text.splitlines())) <= 80
    assert "…" not in text and text.count("漢") == 40 * 3 + 5


def test_html_keeps_the_direction_of_a_label_to_itself() -> None:
    hebrew = "\u05d0\u05d1 \u202e123"  # letters from right to left, and a mark that would turn what follows
    columns = (Column("a", hebrew, "%", 1), Column("b", "b", "%", 1))
    source = as_html("t", (Table("t", "t", columns, (Row(hebrew, hebrew, (Cell(1.0, n=1), Cell(word=hebrew))),)),))
    assert "\u202e" not in source
    assert source.count("<bdi>\u05d0\u05d1 123</bdi>") == 3  # head, name, regime


def test_csv_holds_plain_numbers_and_the_word_where_there_is_none() -> None:
    records = (
        record("a", 0, dict.fromkeys(CASES, 0.5)),
        record("a", 1, dict.fromkeys(CASES, 0.7)),
        failed("b", "diverged", "NaN"),
    )
    table = accuracy_table(Board(Path("b"), "b", records, ()), "synthetic-av", "cavmae-tiny", "blind")
    lines = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    assert len(lines) == 16  # four cases, mean, worst case and the interval of two rows
    mean = next(line for line in lines if (line["method"], line["measure"]) == ("a", "mean"))
    assert float(mean["mean"]) == pytest.approx(60)
    assert float(mean["std"]) == pytest.approx(14.142136)
    assert (mean["n"], mean["word"]) == ("2", "")
    lost = next(line for line in lines if line["method"] == "b")
    assert (lost["mean"], lost["std"], lost["word"]) == ("", "", "diverged")


def test_small_values_keep_three_digits() -> None:
    columns = (Column("p", "trainable", "M"), Column("q", "zero", "M"))
    table = Table("t", "t", columns, (Row("a", "clean", (Cell(0.000123456, n=1), Cell(0.0, n=1))),))
    assert "0.000123 (" not in render(table, "md")
    assert "| 0.000123 | 0 |" in render(table, "md")


def test_an_unknown_format_offers_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="no table format 'markdwn'"):
        render(hostile_table(), "markdwn")
    with pytest.raises(UnknownNameError, match="html"):
        render(hostile_table(), "htlm")


def test_file_names_are_stable_and_two_labels_never_share_one() -> None:
    assert slug("synthetic-av", "cavmae-tiny", "informed") == "synthetic-av_cavmae-tiny_informed"
    assert slug("a_b") != slug("a-b") and slug("A") != slug("a")
    assert re.fullmatch(r"[a-z0-9.-]+", slug("../../etc/passwd"))
    assert not slug("../x").startswith(".")


def test_all_formats_are_written(tmp_path: Path) -> None:
    board = load_board(save(tmp_path, field(2)))
    written = write_tables(board, tmp_path / "tables")
    names = {path.name for path in written}
    assert {path.suffix for path in written} == {f".{fmt}" for fmt in FORMATS}
    assert "synthetic-av_cavmae-tiny_informed.md" in names and "synthetic-av_cavmae-tiny_efficiency.tex" in names
    assert "tables.html" in names and "reported_accuracy.csv" in names
    assert all(path.stat().st_size > 0 for path in written)
    assert {p.suffix for p in write_tables(board, tmp_path / "only", ("csv",))} == {".csv"}
