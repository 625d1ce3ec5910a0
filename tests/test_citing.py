"""`cite`: BibTeX of every part of a comparison, once each; the file of references is sound and fits the cards."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmbench.axes import entry_of, part_names
from mmbench.citing import REFERENCES, citations, read_bibtex
from mmbench.cli import app
from mmbench.errors import ConfigError, UnknownNameError

TEXT = REFERENCES.read_text(encoding="utf-8")
KNOWN = read_bibtex(TEXT)
BUILT_IN = [name for name in part_names() if (entry := entry_of(name)) and entry.origin.label == "mmbench"]
CONTROL = "control row of this suite"
PLUGIN = """
from mmbench.method import Method
from mmbench.registry import method

@method("own", title="Own idea", family="own", reference="Doe, unpublished", year=2026, memory="M0")
class Own(Method):
    pass
"""


def field(entry: str, name: str) -> str:
    found = re.search(rf"^\s*{name}\s*=\s*[{{\"](.*?)[}}\"],?$", entry, re.M | re.S)
    assert found, f"no {name} in {entry}"
    return found.group(1)


def plain(text: str) -> str:
    """Without braces, TeX accents and diacritics."""
    text = re.sub(r"\\.|[{}]", "", text)
    return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))


def surname(entry: str) -> str:
    """Of the first author, written `Surname, Given` or `Given Surname`."""
    first = plain(field(entry, "author")).split(" and ")[0].strip()
    return first.split(",")[0] if "," in first else first.split()[-1]


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_card_names_its_paper_and_agrees_with_it(name: str) -> None:
    entry = entry_of(name)
    assert entry is not None
    card = entry.card
    control = card.reference.startswith(CONTROL)  # has no paper of its own, and may name that of what it controls
    if control and not card.bibtex:
        return
    assert card.bibtex in KNOWN, f"{name}: bibtex='{card.bibtex}' is no key of methods/references.bib"
    if control:
        return
    paper = KNOWN[card.bibtex]
    assert field(paper, "year") == str(card.year)
    assert surname(paper) in plain(card.reference)


@pytest.mark.parametrize("key", KNOWN)
def test_an_entry_is_complete(key: str) -> None:
    assert field(KNOWN[key], "title") and field(KNOWN[key], "author")
    assert re.fullmatch(r"(19|20)\d\d", field(KNOWN[key], "year"))
    assert re.match(r"@(inproceedings|article|misc)\{", KNOWN[key])


def test_the_file_holds_nothing_but_entries() -> None:
    rest = TEXT
    for entry in KNOWN.values():
        rest = rest.replace(entry, "")
    assert rest.strip() == ""
    assert len(KNOWN) == TEXT.count("\n@") + TEXT.startswith("@")


def test_a_combination_cites_its_parts_once_each_and_regimes_cite_nothing() -> None:
    result = CliRunner().invoke(app, ["cite", "lora-qv+mixed+mixup+read", "lora-qv+casewise", "mixup"])
    assert result.exit_code == 0, result.output
    keys = list(read_bibtex(result.stdout))
    expected = [entry.card.bibtex for name in ("lora-qv", "mixup", "read") if (entry := entry_of(name))]
    assert keys == expected


def test_rows_of_one_paper_are_cited_once() -> None:
    assert len(citations(["prompt-input", "prompt-attention"])) == 1


def test_a_plugin_is_cited_by_its_card(use_plugin: Callable[[str], Path]) -> None:
    use_plugin(PLUGIN)
    (entry,) = citations(["own+clean"])
    assert entry.startswith("@misc{own,")
    assert (field(entry, "title"), field(entry, "year")) == ("Own idea", "2026")
    assert "Doe, unpublished" in entry
    assert list(read_bibtex(entry)) == ["own"]


def test_an_unknown_name_is_offered_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="'lora-qvv'; did you mean: lora-qv"):
        citations(["source+lora-qvv"])
    bad = CliRunner().invoke(app, ["cite", "lora-qvv"])
    assert bad.exit_code == 2 and "did you mean: lora-qv" in bad.stderr


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("@misc{a,\n year = {2020}\n}\n@misc{a,\n year = {2021}\n}", "'a' comes twice"),
        ("@misc{a,\n title = {x\n}\n@misc{b,\n title = {y}\n}", "'a' does not close"),
        ("@misc{a,\n title = {x}\n", "'a' does not close"),
    ],
)
def test_a_file_that_is_not_sound_is_named(text: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        read_bibtex(text)
