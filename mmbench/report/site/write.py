"""A board as a static site: pages that link to each other by relative paths and ask no other host for anything."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mmbench.files import read_plain
from mmbench.layout import SUITE, SUITE_BYTES
from mmbench.report.board import all_problems
from mmbench.report.conditions import Group
from mmbench.report.model import STATUS_WORDS, Table, plain
from mmbench.report.notes import how_each_made
from mmbench.report.published import reported_tables
from mmbench.report.site.compare import comparisons
from mmbench.report.site.content import Content, narrowed
from mmbench.report.site.lists import method_rows, trial_rows
from mmbench.report.site.model import Extras
from mmbench.report.site.render import Pages
from mmbench.report.site.trial_page import view_of
from mmbench.report.trial_files import trial_folders
from mmbench.strict_yaml import read_yaml

PARETO = ("accuracy-memory", "accuracy-time")
"""Kinds of plots that show what a score costs."""
RANKS = "ranks.html"


@dataclass(frozen=True)
class Built:
    """What a site consists of."""

    pages: int
    problems: tuple[str, ...]


def write_site(content: Content, out: Path, extras: Extras) -> Built:
    """Write every page into `out`, where the plots and samples already lie.

    Raises RecordError if a page cannot be written.
    """
    board = content.board
    problems = tuple(dict.fromkeys((*board.problems, *all_problems(board))))
    pages = Pages(out, site=content, name=plain(board.name))
    pages.write_static()
    unread = _trials(pages, content)  # most of the work, and the only kind that shows no plot
    _overview(pages, content, problems)
    for place in content.places:
        pages.write(place.path, "place.html", here="", title=place.title, tables=place.tables)
    if content.rankings:
        pages.write(RANKS, "place.html", here="", title="Mean ranks", tables=content.rankings)
    _methods(pages, content, extras)
    _cases(pages, content, extras)
    pages.write("compare.html", "compare.html", here="compare.html", data=comparisons(content))
    return Built(pages.written, (*problems, *unread))


def _overview(pages: Pages, content: Content, problems: tuple[str, ...]) -> None:
    records = content.board.records
    statuses = Counter(STATUS_WORDS.get(record.status, record.status) for record in records)
    groups = {
        place.title: [r for r in records if (r.trial.dataset, r.trial.backbone) == (place.dataset, place.backbone)]
        for place in content.places
    }
    pages.write(
        "index.html",
        "index.html",
        here="index.html",
        about=_about(content.board.folder),
        statuses=statuses,
        made=how_each_made(groups),
        reported=reported_tables(),
        problems=problems,
        pareto=PARETO,
        ranks=RANKS if content.rankings else "",
    )


def _about(folder: Path) -> tuple[str, ...]:
    """Title and note of the suite, as far as the folder has one that can be read."""
    try:
        suite = read_yaml(read_plain(folder / SUITE, SUITE_BYTES))
    except (OSError, ValueError):
        return ()
    texts = (suite.get(key) for key in ("title", "note")) if isinstance(suite, dict) else ()
    return tuple(plain(text) for text in texts if isinstance(text, str) and text.strip())


def _methods(pages: Pages, content: Content, extras: Extras) -> None:
    rows = method_rows(content)
    pages.write("methods.html", "methods.html", here="methods.html", rows=rows)
    for title, records in content.methods.items():
        pages.write(
            content.method_paths[title],
            "method.html",
            here="methods.html",
            title=title,
            records=records,
            failed=[record for record in records if record.status != "ok"],
            cards=extras.parts.get(title, ()),
            tables=content.rows.get(title, ()),
        )


def _cases(pages: Pages, content: Content, extras: Extras) -> None:
    pages.write("cases.html", "cases.html", here="cases.html", extras=extras)
    for subject in content.subjects:
        pages.write(
            content.subject_paths[subject.label],
            "case.html",
            here="cases.html",
            subject=subject,
            cards=extras.corruptions.get(subject.label, ()),
            sample=extras.samples.get(subject.label),
            tables=_tables_of(content, subject),
        )


def _tables_of(content: Content, subject: Group) -> tuple[Table, ...]:
    found = (narrowed(table, subject.cases) for place in content.places for table in place.by_case)
    return tuple(table for table in found if table is not None)


def _trials(pages: Pages, content: Content) -> list[str]:
    """Returns what could not be read."""
    pages.write("trials.html", "trials.html", here="trials.html", rows=trial_rows(content))
    folders = trial_folders(content.board.folder)
    problems = []
    for record in content.board.records:
        view = view_of(record, folders.get(record.trial.id))
        pages.write(content.trial_paths[record.trial.id], "trial.html", here="trials.html", view=view)
        if view.problem:
            problems.append(f"{record.trial.id}: {view.problem}")
    return problems
