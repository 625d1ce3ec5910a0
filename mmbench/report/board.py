"""A board: records in, tables, plots and a README out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mmbench.files import RecordError, read_plain, write_atomic
from mmbench.layout import SUITE, SUITE_BYTES
from mmbench.records import TrialRecord
from mmbench.report.aggregate import Board, load_board
from mmbench.report.comparable import name_of, select
from mmbench.report.figures import Plot
from mmbench.report.model import plain
from mmbench.report.outcomes import OUTCOMES, write_outcomes
from mmbench.report.plots import write_plots
from mmbench.report.published import reported_tables
from mmbench.report.tables import FORMATS, check_format, group_tables, ranking_problems, write_tables
from mmbench.report.text import as_markdown, escape_markdown
from mmbench.strict_yaml import read_yaml

README = "README.md"
TABLES = "tables"
PLOTS = "plots"
RECORDS = "records"
_PATHS = {"datasets": ("root", "manifest", "label_csv"), "backbones": ("path", "init")}


@dataclass(frozen=True)
class Written:
    """What a board consists of now."""

    board: Board
    folder: Path
    files: tuple[Path, ...]
    problems: tuple[str, ...]
    """Unreadable and incomparable records; the same lines stand in the README."""


def write_board(
    folder: Path, out: Path | None = None, formats: Iterable[str] = FORMATS, command: str | None = None
) -> Written:
    """Tables, plots and README of the records in `folder`, written beside them or into `out`.

    With `out`, the records and the suite are copied there first, so that the board can be rebuilt from itself.
    `command` is the line that makes the records, for the README. Raises RecordError if there is no record.
    """
    wanted = [check_format(fmt) for fmt in formats]
    board = load_board(folder)
    target = folder if out is None else out
    _make_folders(target)
    copied: tuple[Path, ...] = ()
    lost = board.problems
    if out is not None and out.resolve() != folder.resolve():
        copied, more = _publish(board, out)
        lost += more
        board = load_board(out)
        lost = tuple(dict.fromkeys((*lost, *board.problems)))
    tables = write_tables(board, target / TABLES, wanted)
    plots = write_plots(board, target / PLOTS)
    problems = lost + board.outcomes.problems + all_problems(board)
    readme = target / README
    write_atomic(readme, readme_text(board, plots, problems, command).encode())
    return Written(
        board, target, (*copied, *tables, *(path for plot in plots for path in (plot.path, plot.svg)), readme), problems
    )


def all_problems(board: Board) -> tuple[str, ...]:
    """Records that were read but could not stand beside the others, and rows that could not be ranked."""
    selected = tuple(
        text
        for dataset, backbone in board.groups
        for online in (False, True)
        for text in select(board.records, dataset, backbone, online).problems
    )
    return selected + ranking_problems(board)


def _make_folders(target: Path) -> None:
    """Raises RecordError before any work is done if the board cannot be written there."""
    try:
        for name in (TABLES, PLOTS):
            (target / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecordError(f"cannot write board {target}: {error.strerror}; choose another folder with --out") from None


def _publish(board: Board, out: Path) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Add records, outcomes and the suite to what the board holds; returns the files and what was not taken.

    Of a trial on both sides the newer record stays. Nothing that names one machine's folders is written.
    """
    (out / RECORDS).mkdir(exist_ok=True)
    written = []
    if (board.folder / SUITE).is_file() and not (out / SUITE).exists():
        write_atomic(out / SUITE, portable_suite(_suite_bytes(board.folder / SUITE)).encode())
        written.append(out / SUITE)
    there = _held(out)
    newest = {record.trial.id: record.environment.date for record in there.records}
    fresh = {r.trial.id: r for r in board.records if r.environment.date >= newest.get(r.trial.id, "")}
    for id, record in fresh.items():
        path = out / RECORDS / f"{id}.json"
        write_atomic(path, (_without_traceback(record).model_dump_json(indent=1) + "\n").encode())
        written.append(path)
    outcomes = {r.trial.id: there.outcomes.all_of(r) for r in there.records if r.trial.id not in fresh}
    # What the board kept of a trial may still fit its record when that comes without predictions.
    outcomes |= {id: board.outcomes.all_of(r) or there.outcomes.all_of(r) for id, r in fresh.items()}
    if write_outcomes(outcomes, out / OUTCOMES):
        written.append(out / OUTCOMES)
    stale = (record for record in board.records if record.trial.id not in fresh)
    told = (f"{name_of(record)}: the board has a newer record of this trial, which stays" for record in stale)
    return tuple(written), (*there.outcomes.problems, *board.outcomes.problems, *told)


def _held(out: Path) -> Board:
    """What a board's folder holds before more is added; damaged records are told when it is read again."""
    try:
        return load_board(out)
    except RecordError:
        return Board(out, "", (), ())


def _suite_bytes(path: Path) -> bytes:
    try:
        return read_plain(path, SUITE_BYTES)
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror}; copy there the suite of the results") from None


class _WrittenOut(yaml.SafeDumper):
    """Writes what stands in several places of a suite there each time, without aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def portable_suite(text: str | bytes) -> str:
    """A suite as a results folder keeps it, with the last part of every path only: the rest names one machine."""
    try:
        suite = read_yaml(text)
        if not isinstance(suite, dict):
            raise ValueError("no mapping of keys")
        _shorten(suite)
    except (ValueError, TypeError) as error:
        raise RecordError(f"{SUITE} of the results is no suite: {error}; copy the one they were run with") from None
    return str(yaml.dump(suite, Dumper=_WrittenOut, sort_keys=False, allow_unicode=True))


def _shorten(suite: dict[str, Any]) -> None:
    for section, keys in _PATHS.items():
        for entry in suite.get(section) or ():
            if isinstance(entry, dict):  # a bare name holds no path
                entry.update({key: Path(entry[key]).name for key in keys if entry.get(key)})
    suite.update({key: Path(suite[key]).name for key in ("assets", "frozen") if suite.get(key)})


def _without_traceback(record: TrialRecord) -> TrialRecord:
    if record.failure is None:
        return record
    return record.model_copy(update={"failure": record.failure.model_copy(update={"traceback": None})})


def readme_text(board: Board, plots: Sequence[Plot], problems: Sequence[str], command: str | None) -> str:
    """The board in Markdown: headline table, costs and plots of every data set, how it was made, what is missing."""
    parts = [f"# Leaderboard: {escape_markdown(board.name)}\n"]
    for dataset, backbone in board.groups:
        parts.append(f"## {escape_markdown(dataset)}, {escape_markdown(backbone)}\n")
        for table in group_tables(board, dataset, backbone):
            parts.append(as_markdown(table))
            parts += [_picture(plot) for plot in plots if plot.group == table.slug]
    ranks = [_picture(plot) for plot in plots if plot.kind == "ranks"]
    if ranks:
        parts += ["## Mean ranks over all data sets and cases\n", *ranks]
    parts.append("## Reported by the papers\n")
    parts += [as_markdown(table) for table in reported_tables()]
    parts.append(_how_made(board, command))
    if problems:
        lines = "\n".join(f"- {escape_markdown(text)}" for text in problems)
        parts.append(f"## Not in the tables\n\n{lines}\n")
    return "\n".join(parts)


def _picture(plot: Plot) -> str:
    return f"![{escape_markdown(plot.alt)}]({PLOTS}/{plot.path.name})\n"


def _how_made(board: Board, command: str | None) -> str:
    statuses = [record.status for record in board.records]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
    lines = [f"{len(statuses)} trials of suite {escape_markdown(board.name)}: {counts}."]
    if command:
        lines.append(f"The records are made by\n\n```sh\n{plain(command)}\n```")
    lines.append(f"Every table stands in `{TABLES}/` in further formats, every plot in `{PLOTS}/` as PNG and SVG.")
    return "## How this was made\n\n" + "\n\n".join(lines) + "\n"
