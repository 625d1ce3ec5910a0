"""What a board holds, arranged as a site shows it: by data set and backbone, by method, by corruption."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from mmbench.records import TrialRecord
from mmbench.report.aggregate import Board, accuracy_table, slug
from mmbench.report.comparable import select
from mmbench.report.conditions import CLEAN, Condition, Group, conditions_of, corruptions_of
from mmbench.report.figures import Plot
from mmbench.report.model import Row, Table
from mmbench.report.site.model import file_names
from mmbench.report.tables import group_tables, ranking_tables


@dataclass(frozen=True)
class Place:
    """One data set and backbone."""

    dataset: str
    backbone: str
    path: str
    tables: tuple[Table, ...]
    by_case: tuple[Table, ...]
    """Tables with a column for every case."""
    conditions: tuple[Condition, ...]

    @property
    def title(self) -> str:
        return f"{self.dataset}, {self.backbone}"

    @property
    def slug(self) -> str:
        return slug(self.dataset, self.backbone)

    @property
    def headline(self) -> Table | None:
        """Scores on the track that tells most; None for a board of online rows alone."""
        return next((table for table in self.tables if table.headline is not None), None)


@dataclass(frozen=True)
class Content:
    """Everything the pages draw on, and where each page stands."""

    board: Board
    places: tuple[Place, ...]
    subjects: tuple[Group, ...]
    """Undamaged samples, and every corruption with the cases that stand for it anywhere on the board."""
    methods: Mapping[str, tuple[TrialRecord, ...]]
    """Title of a row -> its trials."""
    method_paths: Mapping[str, str]
    subject_paths: Mapping[str, str]
    trial_paths: Mapping[str, str]
    case_paths: Mapping[str, str]
    """Case -> the page of its corruption."""
    rows: Mapping[str, tuple[Table, ...]]
    """Title of a row -> every table that has it, cut down to its rows."""
    rankings: tuple[Table, ...]
    """Over all data sets and cases."""
    drawn: Callable[[], tuple[Plot, ...]]
    """Gives the plots, once they are drawn."""

    @cached_property
    def plots(self) -> tuple[Plot, ...]:
        return self.drawn()

    def plots_of(self, table: Table) -> tuple[Plot, ...]:
        return tuple(plot for plot in self.plots if plot.group == table.slug)

    def plots_in(self, place: Place, kinds: Sequence[str]) -> tuple[Plot, ...]:
        """Of one data set and backbone."""
        return tuple(p for table in place.tables for p in self.plots_of(table) if p.kind in kinds)

    def row_path(self, row: Row) -> str | None:
        """The page of a row's method; none for what a paper reports and for rows without trials."""
        return None if row.reported else self.method_paths.get(row.name)


def arrange(board: Board, drawn: Callable[[], tuple[Plot, ...]] = tuple) -> Content:
    """Read the tables off a board once, and give every page its name."""
    paths = file_names(board.groups, "tables")
    places = tuple(_place(board, group, paths[group]) for group in board.groups)
    subjects = _subjects(places)
    methods: dict[str, list[TrialRecord]] = {}
    for record in sorted(board.records, key=lambda r: (r.trial.title, r.trial.dataset, r.trial.regime, r.trial.seed)):
        methods.setdefault(record.trial.title, []).append(record)
    rankings = ranking_tables(board)
    subject_paths = file_names((subject.label for subject in subjects), "cases")
    return Content(
        board=board,
        places=places,
        subjects=subjects,
        methods={title: tuple(records) for title, records in methods.items()},
        method_paths=file_names(methods, "methods"),
        subject_paths=subject_paths,
        trial_paths=file_names((record.trial.id for record in board.records), "trials"),
        case_paths={case: subject_paths[subject.label] for subject in subjects for case in subject.cases},
        rows=_rows_by_title((*(table for place in places for table in place.tables), *rankings)),
        rankings=rankings,
        drawn=drawn,
    )


def _place(board: Board, group: tuple[str, str], path: str) -> Place:
    tables = group_tables(board, *group)
    selections = [select(board.records, *group, online=online) for online in (False, True)]
    conditions = dict.fromkeys(c for selection in selections for c in conditions_of(selection))
    scored = selections[0].tracks if selections[0].records else ()
    by_case = [accuracy_table(board, *group, track) for track in scored]
    online = slug(*group, "online")
    by_case += [t for t in tables if t.slug.startswith(f"{online}_") and not t.slug.startswith(f"{online}_settings_")]
    return Place(*group, path, tables, tuple(by_case), tuple(conditions))


def _subjects(places: Sequence[Place]) -> tuple[Group, ...]:
    """Undamaged samples first, then corruptions in the order of the cases; the same label is the same page."""
    found: dict[str, tuple[str, dict[str, Condition]]] = {}
    for place in places:
        clean = [Group(c.case, CLEAN, (c,)) for c in place.conditions if c.clean]
        for group in (*clean, *corruptions_of(place.conditions)):
            _, known = found.setdefault(group.label, (group.family, {}))
            known.update({condition.case: condition for condition in group.conditions})
    return tuple(Group(label, family, tuple(known.values())) for label, (family, known) in found.items())


def _rows_by_title(tables: Iterable[Table]) -> dict[str, tuple[Table, ...]]:
    found: dict[str, list[Table]] = {}
    for table in tables:
        members: dict[str, list[Row]] = {}
        for row in table.rows:
            if not row.reported:
                members.setdefault(row.name, []).append(row)
        for title, rows in members.items():
            found.setdefault(title, []).append(replace(table, rows=tuple(rows), notes=()))
    return {title: tuple(parts) for title, parts in found.items()}


def narrowed(table: Table, cases: Sequence[str]) -> Table | None:
    """The columns of these cases, best first by their mean; None if the table has none of them."""
    kept = [index for index, column in enumerate(table.columns) if column.key in cases]
    if not kept:
        return None

    def cut(row: Row) -> Row:
        return replace(row, cells=tuple(row.cells[index] for index in kept), notes=())

    def order(row: Row) -> tuple[bool, bool, float, str]:
        means = [cell.mean for cell in row.cells if cell.mean is not None]
        return (not means, row.reported, -sum(means) / len(means) if means else 0.0, row.name)

    rows = sorted(map(cut, table.rows), key=order)
    return replace(table, columns=tuple(table.columns[index] for index in kept), rows=tuple(rows), notes=())
