"""Where each row of a table stands: intervals, and ranks that rows share unless their difference is significant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from mmbench.cards import Track
from mmbench.records import TrialRecord
from mmbench.report.blocks import Block
from mmbench.report.case_scores import Scored, scored_on
from mmbench.report.comparable import Selection, is_fixed
from mmbench.report.model import NOT_MEASURED, Cell, Column, Row
from mmbench.report.outcome_files import SampleList
from mmbench.report.outcomes import Outcomes
from mmbench.report.prediction_groups import Key
from mmbench.report.stats import SeedVariance, crossed, moderated, rank_groups

Name = tuple[str, str]
"""(title, regime) of a row."""
Interval = tuple[float, float]
PAIRED = "paired by sample; seeds of two rows count as independent"
"""A paired test over three seeds has two degrees of freedom and tells no row from another under Holm."""
Holds = Literal["seeds and samples", "samples", "seeds", ""]


@dataclass(frozen=True)
class Standing:
    """What a row's scores support; shares in 0..1."""

    interval: Interval | None
    """95 % of the mean over cases; None where neither seeds nor samples tell its variance."""
    holds: Holds
    """Whose variance the intervals hold."""
    rank: int | None
    """None for rows that do not compete or that nothing can be compared with."""
    columns: tuple[Interval | None, ...]
    """95 % of each block, then of the mean and the worst case."""


@dataclass(frozen=True, eq=False)
class Grid:
    """A row's scores: for every case that applies, by seed and, where outcomes are kept, by sample."""

    seeds: tuple[int, ...]
    fixed: bool
    """Nothing in the row is random, so that one trial stands for every seed."""
    list: SampleList | None
    values: npt.NDArray[np.float32]
    """(C, R, S), S = 1 without outcomes; NaN where a seed has no score."""

    @property
    def mean(self) -> npt.NDArray[np.float32]:
        """(R, S) over the cases."""
        return np.asarray(self.values.mean(axis=0))

    @property
    def worst(self) -> npt.NDArray[np.float32]:
        """(R, S) of the case that is worst in each seed."""
        lowest = self.values.mean(axis=2).argmin(axis=0)  # (R,)
        return np.asarray(self.values[lowest, np.arange(len(lowest))])

    @property
    def holds(self) -> Holds:
        _, seeds, samples = self.values.shape
        if samples > 1:
            return "seeds and samples" if seeds > 1 else "samples"
        return "seeds" if seeds > 1 else ""


def applying(selection: Selection) -> tuple[str, ...]:
    """The cases that a mean is taken over."""
    return tuple(case for case in selection.cases if case not in selection.idle)


def grid_of(group: Sequence[TrialRecord], selection: Selection, track: Track, outcomes: Outcomes) -> Grid | None:
    """The finished trials of a row on a track; None if there is none with a score there."""
    pairs = [(r, s) for r in group if r.status == "ok" and (s := scored_on(r, selection, track)) is not None]
    cases = applying(selection)
    if not pairs or not cases:
        return None
    scores = [[np.nan if (v := s.values[case].value) is None else v for case in cases] for _, s in pairs]  # (R, C)
    values = np.array(scores, np.float32).T[:, :, None]  # (C, R, 1)
    seeds = tuple(record.trial.seed for record, _ in pairs)
    fixed = is_fixed(pairs[0][0])
    sampled = _sampled(pairs, cases, selection.metric, outcomes)
    return Grid(seeds, fixed, None, values) if sampled is None else Grid(seeds, fixed, *sampled)


def _sampled(
    pairs: Sequence[tuple[TrialRecord, Scored]], cases: Sequence[str], metric: str, outcomes: Outcomes
) -> tuple[SampleList, npt.NDArray[np.float32]] | None:
    """Which samples are right, (C, R, S); None unless every score has its outcomes on the same samples."""
    if metric != "accuracy":
        return None
    rows = []
    lists: dict[int, SampleList] = {}
    for record, scored in pairs:
        kept = outcomes.all_of(record)
        severities: dict[str, list[int]] = {}
        for score in record.scores if kept else ():
            if (score.track, score.metric, score.stream) == (scored.track, metric, ""):
                severities.setdefault(score.case, []).append(score.severity)
        wanted = [Key(case, severity, scored.track) for case in cases for severity in severities.get(case, ())]
        coded = [entry for key in wanted if (entry := kept.get(key)) is not None]
        lists |= {id(entry.list): entry.list for entry in coded}
        if len(coded) < len(wanted) or not severities.keys() >= set(cases) or len(lists) != 1:
            return None
        right = np.stack([entry.predicted for entry in coded]) == coded[0].list.labels  # (cases x severities, S)
        counts = np.array([len(severities[case]) for case in cases])
        starts = np.cumsum(counts) - counts
        rows.append(np.add.reduceat(right, starts, axis=0, dtype=np.float32) / counts[:, None].astype(np.float32))
    (found,) = lists.values()
    return found, np.stack(rows, axis=1)


def difference(one: Grid, other: Grid) -> npt.NDArray[np.float32] | None:
    """(C, R, S) one minus the other in the same seed and sample; (C, R, 1) where their samples are not the same.

    None without a seed in common, or if neither seeds nor samples are left to tell a variance.
    """
    left, right = one.values, other.values
    if not (one.fixed or other.fixed):
        seeds = [seed for seed in one.seeds if seed in other.seeds]
        left = left[:, [one.seeds.index(seed) for seed in seeds]]
        right = right[:, [other.seeds.index(seed) for seed in seeds]]
    order = _order(one.list, other.list)
    if order is None:
        left, right = left.mean(axis=2, keepdims=True), right.mean(axis=2, keepdims=True)
    elif order:
        right = right[:, :, list(order)]
    found = left - right
    return found if found[0].size > 1 else None


def _order(one: SampleList | None, other: SampleList | None) -> tuple[int, ...] | None:
    """Where each of one's samples stands in the other; empty if they are in one order, None if they differ."""
    if one is None or other is None:
        return None
    if one is other or one.samples == other.samples:
        return ()
    place = {sample: i for i, sample in enumerate(other.samples)}
    if place.keys() != set(one.samples):
        return None
    return tuple(place[sample] for sample in one.samples)


def standings(
    selection: Selection, track: Track, outcomes: Outcomes, blocks: Sequence[Block], rows: Sequence[Row]
) -> Mapping[Name, Standing]:
    """Every row that has a score on the track; the complete ones of `rows` are ranked by their mean over the cases."""
    competing = {_name(row) for row in rows if row.complete}
    weights = _weights(blocks, applying(selection))
    found: dict[Name, Standing] = {}
    ranked: dict[Name, Grid] = {}
    for group in selection.rows():
        grid = grid_of(group, selection, track, outcomes)
        if grid is None:
            continue
        name: Name = (group[0].trial.title, group[0].trial.regime)
        intervals = _intervals(grid, weights)
        found[name] = Standing(intervals[-2], grid.holds, None, intervals)
        if name in competing and not np.isnan(grid.mean).any():
            ranked[name] = replace(grid, values=grid.mean[None])  # a thousand rows could not all keep their cases
    for name, rank in zip(ranked, ranks(list(ranked.values())), strict=True):
        found[name] = replace(found[name], rank=rank)
    return found


def _weights(blocks: Sequence[Block], cases: Sequence[str]) -> npt.NDArray[np.float32]:
    """(blocks, cases) what each case counts in a block's mean; NaN for second scores, which have no outcomes."""
    place = {case: i for i, case in enumerate(cases)}
    weights = np.zeros((len(blocks), len(cases)), np.float32)
    for row, block in enumerate(blocks):
        if block.second or not place.keys() >= set(block.cases):
            weights[row] = np.nan
            continue
        for case in block.cases:
            weights[row, place[case]] = block.mean({other: float(other == case) for other in block.cases}) or 0.0
    return weights


def _intervals(grid: Grid, weights: npt.NDArray[np.float32]) -> tuple[Interval | None, ...]:
    """Of each block, the mean and the worst case; None where a score is missing or nothing varies."""
    lacks = np.asarray(np.isnan(grid.values).any(axis=(1, 2)))  # (C,)
    known = np.where(lacks[:, None, None], 0, grid.values)
    unusable = np.isnan(weights).any(axis=1) | ((weights != 0) & lacks).any(axis=1)  # (blocks,)
    columns = np.tensordot(np.nan_to_num(weights), known, axes=1)  # (blocks, R, S)
    columns = np.concatenate([columns, grid.mean[None], grid.worst[None]])
    low, high = crossed(columns).interval()
    fine = ~np.append(unusable, [lacks.any()] * 2) & np.isfinite(low)
    low, high = np.clip(low, 0, 1), np.clip(high, 0, 1)
    return tuple((float(a), float(b)) if ok else None for a, b, ok in zip(low, high, fine, strict=True))


def ranks(rows: Sequence[Grid]) -> list[int | None]:
    """Of rows with one mean (1, R, S) each, by tests whose variance over seeds is moderated by all of them."""
    spread = spreads(rows)
    of = {i: SeedVariance(spread.variance[i], spread.freedom[i]) for i in range(len(rows))}

    def worse(head: int, others: Sequence[int]) -> list[float | None]:
        pairs = [(difference(rows[head], rows[other]), of[head] + of[other]) for other in others]
        return _probabilities(pairs)

    return rank_groups([float(row.values.mean()) for row in rows], worse)


def spreads(rows: Sequence[Grid]) -> SeedVariance:
    """(rows,) moderated variance over seeds of each grid's first quantity, by the seeds that have a score.

    It is 0 of rows in which nothing is random.
    """
    means = [row.values[0].mean(axis=1, dtype=np.float64) for row in rows]  # (R,) each
    means = [found[np.isfinite(found)] for found in means]
    several = [i for i, found in enumerate(means) if len(found) > 1]
    own = SeedVariance(
        np.array([means[i].var(ddof=1) for i in several]), np.array([len(means[i]) - 1.0 for i in several])
    )
    shrunk = moderated(own)
    variance, freedom = np.zeros(len(rows)), np.ones(len(rows))
    variance[several], freedom[several] = shrunk.variance, shrunk.freedom
    return SeedVariance(variance, freedom)


def _probabilities(pairs: Sequence[tuple[npt.NDArray[np.float32] | None, SeedVariance]]) -> list[float | None]:
    """Of each mean (1, R, S) being 0; those of equal shape are computed together."""
    found: list[float | None] = [None] * len(pairs)
    for shape in dict.fromkeys(values.shape for values, _ in pairs if values is not None):
        alike = [(i, values, s) for i, (values, s) in enumerate(pairs) if values is not None and values.shape == shape]
        spread = SeedVariance(np.array([s.variance for _, _, s in alike]), np.array([s.freedom for _, _, s in alike]))
        p = crossed(np.concatenate([values for _, values, _ in alike]), spread).p()
        for (i, _, _), value in zip(alike, p, strict=True):
            found[i] = float(value)
    return found


def with_standing(rows: Sequence[Row], found: Mapping[Name, Standing]) -> tuple[tuple[Column, ...], tuple[Row, ...]]:
    """Columns of the interval and the rank, as far as some row has one, and the rows with these cells at their end."""
    columns: tuple[Column, ...] = ()
    if any(standing.interval is not None for standing in found.values()):
        columns += (Column("ci_low", "CI low", "%", 1), Column("ci_high", "CI high", "%", 1))
    if any(standing.rank is not None for standing in found.values()):
        columns += (Column("rank", "rank", "", 0),)
    keys = [column.key for column in columns]
    return columns, tuple(replace(row, cells=row.cells + _cells(row, found.get(_name(row)), keys)) for row in rows)


def _name(row: Row) -> Name:
    return row.name, "none" if row.regime == NOT_MEASURED else row.regime


def _cells(row: Row, standing: Standing | None, keys: Sequence[str]) -> tuple[Cell, ...]:
    if standing is None:  # nothing finished: its status stands in these cells too
        return tuple(Cell(word=row.cells[-1].word) for _ in keys)
    low, high = standing.interval or (None, None)
    values = {"ci_low": low and 100 * low, "ci_high": high and 100 * high, "rank": standing.rank}
    return tuple(Cell() if (v := values[key]) is None else Cell(float(v), n=row.cells[-1].n) for key in keys)


def mark_first(rows: Sequence[Row], headline: int, found: Mapping[Name, Standing]) -> tuple[Row, ...]:
    """The mark of the best mean for every row of rank 1, since nothing tells them apart."""
    if all(standing.rank is None for standing in found.values()):
        return tuple(rows)

    def marked(row: Row) -> Row:
        first = not row.reported and _name(row) in found and found[_name(row)].rank == 1
        cells = [replace(cell, best=first) if i == headline else cell for i, cell in enumerate(row.cells)]
        return replace(row, cells=tuple(cells))

    return tuple(marked(row) for row in rows)


def standing_notes(found: Mapping[Name, Standing]) -> tuple[str, ...]:
    """What the intervals hold and what a rank claims; empty without either."""
    kinds: dict[str, list[str]] = {}
    for (title, regime), standing in found.items():
        if standing.interval is not None:
            kinds.setdefault(standing.holds, []).append(title if regime == "none" else f"{title} ({regime})")
    if not kinds:
        return ()
    usual = max(kinds, key=lambda kind: len(kinds[kind]))
    others = "".join(f"; of {kind} alone: {', '.join(names)}" for kind, names in kinds.items() if kind != usual)
    alone = "" if usual == "seeds and samples" else " alone"
    notes = [f"CI: 95 % interval of the mean, holding the variance of {usual}{alone}{others}."]
    if any(standing.rank is not None for standing in found.values()):
        notes.append(
            f"Rank: rows share one unless its best row has a significantly higher mean ({PAIRED}; Holm over all pairs "
            "of rows, 5 %); bold means are of rank 1. Order within a rank says nothing."
        )
    return tuple(notes)
