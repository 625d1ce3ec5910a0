"""Mean ranks over all data sets and cases, and which of them differ (Friedman, Nemenyi; Demsar, JMLR 2006)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmbench.cards import Track
from mmbench.report.aggregate import Board, regime_word, seeds_wanted, slug
from mmbench.report.case_scores import scored_on
from mmbench.report.comparable import Selection, select
from mmbench.report.model import Cell, Column, Row, Table
from mmbench.report.notes import how_made
from mmbench.report.stats import Friedman, critical_difference, friedman, iqm, mean_ranks

RANKING = "ranks"
_IQM = Column("iqm", "IQM", "%", 1, "higher")
_FEWEST_ROWS, _FEWEST_BLOCKS = 3, 2


@dataclass(frozen=True)
class Ranking:
    """Rows by mean rank over the blocks, the best first; what a critical-difference diagram draws."""

    names: tuple[tuple[str, str], ...]
    """(title, regime) of each row."""
    mean_ranks: tuple[float, ...]
    critical_difference: float
    groups: tuple[tuple[int, ...], ...]
    """Rows, by position, that the test does not tell apart: the longest runs within one critical difference."""
    blocks: int
    """Pairs of a data set (with its backbone) and a case."""
    test: Friedman
    left_out: tuple[str, ...]
    """Rows without a score in every block."""
    iqms: tuple[float, ...] = ()
    """Interquartile mean of each row's scores over blocks and seeds, in 0..1."""


def ranking(board: Board, track: Track) -> Ranking | None:
    """Of all rows that have every seed in every block; None with fewer than three such rows or two blocks."""
    found = [_scores(select(board.records, d, b), track) for d, b in board.groups]
    places = [scores for scores in found if scores]
    every = list(dict.fromkeys(name for scores in places for name in scores))
    names = [name for name in every if all(name in scores for scores in places)]
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
        left_out=tuple(f"{title} {regime}" for title, regime in every if (title, regime) not in names),
    )


def _scores(selection: Selection, track: Track) -> dict[tuple[str, str], npt.NDArray[np.float64]]:
    """(title, regime) -> (R, C) scores of each seed on each case that applies; rows with a gap are not in it."""
    cases = [case for case in selection.cases if case not in selection.idle]
    rows: dict[tuple[str, str], npt.NDArray[np.float64]] = {}
    for group in selection.rows():
        finished = [record for record in group if record.status == "ok"]
        scored = [entry for record in finished if (entry := scored_on(record, selection, track)) is not None]
        values = [[entry.values[case].value for case in cases] for entry in scored]
        known = [[value for value in seed if value is not None] for seed in values]
        if len(scored) == seeds_wanted(group, selection.seeds) and all(len(seed) == len(cases) for seed in known):
            rows[group[0].trial.title, regime_word(group[0])] = np.array(known)
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
    rows = tuple(
        Row(title, regime, (Cell(mean, n=found.blocks), Cell(word=same or "-"), Cell(100 * middle, n=1)))
        for (title, regime), mean, same, middle in zip(found.names, found.mean_ranks, letters, found.iqms, strict=True)
    )
    notes = (
        f"Mean rank over {found.blocks} blocks (data set x case), 1 is best, each score a mean over seeds. Rows that "
        f"share a letter are not told apart: their mean ranks lie within the critical difference "
        f"{found.critical_difference:.2f} (Nemenyi, 5 %; Demsar 2006).",
        f"All rows equal: Friedman chi squared {found.test.statistic:.1f}, p {_p_words(found.test.p)} "
        "(Iman-Davenport). Cases of one data set share samples and corruptions, so the blocks are not independent and "
        "p is a guide.",
        "IQM: mean of the middle half of all scores over blocks and seeds (Agarwal et al. 2021).",
    )
    left = (f"Without a score in every block, left out: {', '.join(found.left_out)}.",) if found.left_out else ()
    title = f"Mean ranks over data sets and cases, {track} track"
    return Table(title, slug(board.name, track, RANKING), columns, rows, notes + left + how_made(board.records))


def _letter(index: int) -> str:
    return chr(ord("a") + index) if index < 26 else f"({index + 1})"


def _p_words(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"
