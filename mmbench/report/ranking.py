"""Mean ranks over all data sets and cases, and which of them differ (Friedman, Nemenyi; Demsar, JMLR 2006)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmbench.cards import Track
from mmbench.records import TrialRecord
from mmbench.report.aggregate import Board, regime_word, seeds_wanted, slug
from mmbench.report.case_scores import scored_on
from mmbench.report.comparable import Selection, content_of, select
from mmbench.report.model import NOT_MEASURED, Cell, Column, Row, Table
from mmbench.report.notes import facts_of, how_each_made, provenance_of
from mmbench.report.stats import Friedman, critical_difference, friedman, iqm, mean_ranks

RANKING = "ranks"
_IQM = Column("iqm", "IQM", "%", 1, "higher")
Name = tuple[str, str]
"""(title, regime) of a row."""
_FEWEST_ROWS, _FEWEST_BLOCKS = 3, 2


@dataclass(frozen=True)
class Ranking:
    """Rows by mean rank over the blocks, the best first; what a critical-difference diagram draws."""

    names: tuple[Name, ...]
    mean_ranks: tuple[float, ...]
    critical_difference: float
    groups: tuple[tuple[int, ...], ...]
    """Rows, by position, that the test does not tell apart: the longest runs within one critical difference."""
    blocks: int
    """Pairs of a data set (with its backbone) and a case."""
    test: Friedman
    left_out: tuple[str, ...]
    """Rows without a score in every block."""
    changing: tuple[str, ...] = ()
    """Rows left out because their method or options are others on another data set."""
    empty: tuple[str, ...] = ()
    """Data sets with their backbones, left out because no row has every score there."""
    selections: tuple[Selection, ...] = ()
    """What the blocks are of."""
    iqms: tuple[float, ...] = ()
    """Interquartile mean of each row's scores over blocks and seeds, in 0..1."""


def ranking(board: Board, track: Track) -> Ranking | None:
    """Of all rows that have every seed in every block; None with fewer than three such rows or two blocks."""
    selections = [s for d, b in board.groups if (s := select(board.records, d, b)).records]
    found = [_scores(selection, track) for selection in selections]
    places = [scores for scores in found if scores]
    used = [selection for selection, scores in zip(selections, found, strict=True) if scores]
    contents = _contents(used)
    changing = [name for name, content in contents.items() if len(content) > 1]
    whole = [name for name in contents if all(name in scores for scores in places)]
    names = [name for name in whole if name not in changing]
    told = {*whole, *changing}
    means = [{name: values.mean(axis=0) for name, values in scores.items()} for scores in places]
    if len(names) < _FEWEST_ROWS:
        return None
    table = np.concatenate([np.array([scores[name] for name in names]).T for scores in means])  # (N, k)
    if len(table) < _FEWEST_BLOCKS:
        return None
    ranks = mean_ranks(table)
    order = np.argsort(ranks, kind="stable")
    sorted_ranks = tuple(float(ranks[i]) for i in order)
    reach = critical_difference(len(names), len(table))
    return Ranking(
        names=tuple(names[i] for i in order),
        mean_ranks=sorted_ranks,
        iqms=tuple(iqm(np.concatenate([scores[names[i]].ravel() for scores in places])) for i in order),
        critical_difference=reach,
        groups=_runs(sorted_ranks, reach),
        blocks=len(table),
        test=friedman(table),
        left_out=tuple(_words(name) for name in contents if name not in told),
        changing=tuple(map(_words, changing)),
        empty=tuple(_place(s) for s, scores in zip(selections, found, strict=True) if not scores),
        selections=tuple(used),
    )


def unranked(board: Board, track: Track) -> str | None:
    """Why a board has no mean ranks on a track; None if it has, or has too few rows or cases to rank at all."""
    if ranking(board, track) is not None:
        return None
    selections = [s for d, b in board.groups if (s := select(board.records, d, b)).records]
    rows = set().union(*(_contents([selection]) for selection in selections))
    blocks = sum(len(set(selection.cases) - set(selection.idle)) for selection in selections)
    if len(rows) < _FEWEST_ROWS or blocks < _FEWEST_BLOCKS:
        return None
    fewer = f"fewer than {_FEWEST_ROWS} of its {len(rows)} rows have every seed and case on every data set"
    return f"no mean ranks, {track} track: {fewer}"


def _contents(selections: Sequence[Selection]) -> dict[Name, set[str]]:
    """Every row, with what its title stands for in each selection."""
    found: dict[Name, set[str]] = {}
    for selection in selections:
        for group in selection.rows():
            found.setdefault(_name(group), set()).add(content_of(group[0]))
    return found


def _name(group: Sequence[TrialRecord]) -> Name:
    return group[0].trial.title, regime_word(group[0])


def _words(name: Name) -> str:
    title, regime = name
    return title if regime == NOT_MEASURED else f"{title} {regime}"


def _place(selection: Selection) -> str:
    return f"{selection.dataset}, {selection.backbone}"


def _scores(selection: Selection, track: Track) -> dict[Name, npt.NDArray[np.float64]]:
    """(title, regime) -> (R, C) scores of each seed on each case that applies; rows with a gap are not in it."""
    cases = [case for case in selection.cases if case not in selection.idle]
    rows: dict[Name, npt.NDArray[np.float64]] = {}
    for group in selection.rows():
        finished = [record for record in group if record.status == "ok"]
        scored = [entry for record in finished if (entry := scored_on(record, selection, track)) is not None]
        values = [[entry.values[case].value for case in cases] for entry in scored]
        known = [[value for value in seed if value is not None] for seed in values]
        if len(scored) == seeds_wanted(group, selection.seeds) and all(len(seed) == len(cases) for seed in known):
            rows[_name(group)] = np.array(known)
    return rows


def _runs(ranks: Sequence[float], reach: float) -> tuple[tuple[int, ...], ...]:
    """Maximal runs of two rows or more, the first and last of which lie within `reach`."""
    runs: list[tuple[int, ...]] = []
    for start, rank in enumerate(ranks):
        end = bisect_right(ranks, reach, key=lambda other: other - rank) - 1
        if end > start and (not runs or end > runs[-1][-1]):
            runs.append(tuple(range(start, end + 1)))
    return tuple(runs)


def ranking_table(board: Board, track: Track) -> Table | None:
    """Mean ranks with the groups that the test does not tell apart, as letters; None where `ranking` is."""
    found = ranking(board, track)
    if found is None:
        return None
    columns = (Column("mean_rank", "mean rank", "", 2, "lower", headline=True), Column("groups", "same", ""), _IQM)
    letters = [
        "".join(_letter(g) for g, run in enumerate(found.groups) if run[0] <= i <= run[-1])
        for i in range(len(found.names))
    ]
    facts = {_name(g): facts_of(g[0].trial) for selection in found.selections for g in selection.rows()}
    rows = tuple(
        Row(*name, (Cell(mean, n=found.blocks), Cell(word=same or "-"), Cell(100 * middle, n=1)), facts=facts[name])
        for name, mean, same, middle in zip(found.names, found.mean_ranks, letters, found.iqms, strict=True)
    )
    return Table(
        title=f"Mean ranks over data sets and cases, {track} track",
        slug=slug(board.name, track, RANKING),
        columns=columns,
        rows=rows,
        notes=_notes(found),
        provenance=provenance_of([record for selection in found.selections for record in selection.records]),
    )


def _notes(found: Ranking) -> tuple[str, ...]:
    """How to read the ranks, what is not among them, and how the scores were made."""
    notes = (
        f"Mean rank over {found.blocks} blocks (data set x case), 1 is best, each score a mean over seeds. Rows that "
        f"share a letter are not told apart: their mean ranks lie within the critical difference "
        f"{found.critical_difference:.2f} (Nemenyi, 5 %; Demsar 2006).",
        f"All rows equal: Friedman chi squared {found.test.statistic:.1f}, p {_p_words(found.test.p)} "
        "(Iman-Davenport). Cases of one data set share samples and corruptions, so the blocks are not independent and "
        "p is a guide.",
        "IQM: mean of the middle half of all scores over blocks and seeds (Agarwal et al. 2021).",
    )
    left = {
        "Without a score in every block, left out": ", ".join(found.left_out),
        "Other methods or options under one name on another data set, left out": ", ".join(found.changing),
        "No row has every score there, left out": "; ".join(found.empty),
    }
    told = tuple(f"{why}: {names}." for why, names in left.items() if names)
    return notes + told + how_each_made({_place(selection): selection.records for selection in found.selections})


def _letter(index: int) -> str:
    return chr(ord("a") + index) if index < 26 else f"({index + 1})"


def _p_words(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"
