"""Is one row better than another: where, by how much, and how sure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mmbench.cards import Track
from mmbench.errors import ConfigError, near_words
from mmbench.records import TrialRecord
from mmbench.report.aggregate import Board
from mmbench.report.case_scores import case_values
from mmbench.report.comparable import Selection, select
from mmbench.report.cost_ratios import CostRatio, cost_ratios
from mmbench.report.outcomes import Outcomes
from mmbench.report.standing import Grid, Holds, Name, applying, difference, grid_of, spreads
from mmbench.report.stats import ALPHA, SeedVariance, bootstrap_means, crossed, holm, iqm, iqm_interval

MEAN = "mean"
_DRAWS = 10_000


@dataclass(frozen=True)
class Difference:
    """The scores of both rows on one case, or their means over the cases; shares in 0..1."""

    case: str
    first: float
    second: float
    low: float | None
    """95 % interval of first - second; None where nothing tells its variance."""
    high: float | None
    p: float | None
    adjusted: float | None
    """p after Holm over the cases; of the mean, p itself."""

    @property
    def value(self) -> float:
        return self.first - self.second


@dataclass(frozen=True)
class Middle:
    """Interquartile mean over cases and seeds, which one collapsed case or seed does not move (Agarwal et al. 2021)."""

    value: float
    low: float | None
    """95 % by a bootstrap of the seeds within each case; None with one seed."""
    high: float | None


@dataclass(frozen=True)
class Comparison:
    """Two rows on one data set, backbone and track."""

    first: str
    second: str
    dataset: str
    backbone: str
    track: Track
    metric: str
    overall: Difference
    cases: tuple[Difference, ...]
    ahead: float | None
    """Share of bootstrap draws of seeds and samples in which the first row has the higher mean."""
    iqm: tuple[Middle, Middle]
    """Of the first row and of the second."""
    holds: Holds
    """Whose variance the intervals hold."""
    seeds: tuple[int, ...]
    """Used of both rows; none where they have none in common."""
    samples: int | None
    costs: tuple[CostRatio, ...]
    notes: tuple[str, ...]

    @property
    def winner(self) -> str | None:
        """The row that is significantly better on the whole; None if neither is."""
        if self.overall.p is None or not self.overall.p < ALPHA:
            return None
        return self.first if self.overall.value > 0 else self.second


def compare(board: Board, first: str, second: str, track: Track | None = None) -> tuple[Comparison, ...]:
    """Of every data set and backbone that has both rows.

    Raises ConfigError for a name that no row has, or several have, and for rows that must not be compared: of another
    data set, backbone, budget, evaluation set or track.
    """
    names = _name(board, first), _name(board, second)
    if names[0] == names[1]:
        raise ConfigError(f"'{first}' and '{second}' are one row; name two")
    selections = [select(board.records, dataset, backbone) for dataset, backbone in board.groups]
    with_both = [s for s in selections if all(_group(s, name) for name in names)]
    if not with_both:
        raise ConfigError(_why_apart(board, selections, names))
    return tuple(_compare(board, selection, names, track) for selection in with_both)


def row_words(name: Name) -> str:
    """A row as it is named on the command line."""
    title, regime = name
    return title if regime == "none" else f"{title}+{regime}"


def _name(board: Board, text: str) -> Name:
    rows = dict.fromkeys((r.trial.title, str(r.trial.regime)) for r in board.records if r.trial.online is None)
    exact = [name for name in rows if row_words(name) == text]
    found = exact or [name for name in rows if name[0] == text]
    known = sorted(map(row_words, rows))
    if not found:
        near = near_words(text, known)
        rest = "" if near.startswith("known") else f" rows: {', '.join(known)}"
        raise ConfigError(f"no row '{text}' in {board.name}; {near}{rest}")
    if len(found) > 1:
        raise ConfigError(f"several rows are named '{text}'; choose one: {', '.join(map(row_words, found))}")
    return found[0]


def _group(selection: Selection, name: Name) -> tuple[TrialRecord, ...]:
    return next((g for g in selection.rows() if (g[0].trial.title, g[0].trial.regime) == name), ())


def _why_apart(board: Board, selections: Sequence[Selection], names: tuple[Name, Name]) -> str:
    """Which rule keeps two rows out of one comparison."""
    words = " and ".join(map(row_words, names))
    for selection in selections:
        for title, _ in names:
            reasons = [text for text in selection.problems if text.startswith(f"left out: {title} (")]
            if reasons:
                return f"{words} cannot be compared on {selection.dataset}: {reasons[0]}"
    places = [
        sorted({f"{r.trial.dataset}, {r.trial.backbone}" for r in board.records if r.trial.title == title})
        for title, _ in names
    ]
    told = "; ".join(f"{row_words(name)} on {' and '.join(p)}" for name, p in zip(names, places, strict=True))
    return f"{words} were not run on one data set and backbone ({told}); compare rows of one suite"


def _compare(board: Board, selection: Selection, names: tuple[Name, Name], track: Track | None) -> Comparison:
    groups = _group(selection, names[0]), _group(selection, names[1])
    chosen = _track(selection, groups, names, track)
    pair = [grid_of(group, selection, chosen, board.outcomes) for group in groups]
    assert pair[0] is not None and pair[1] is not None  # both have scores on the track
    one, other = _shared_seeds(pair[0], pair[1])
    every = applying(selection)
    kept = [i for i in range(len(every)) if not (np.isnan(one.values[i]).any() or np.isnan(other.values[i]).any())]
    if not kept:
        raise ConfigError(f"{' and '.join(map(row_words, names))} have no case on which both have a score")
    one, other = _at(one, kept), _at(other, kept)
    rows = {name: _at(grid, kept) for name, grid in _rows(selection, chosen).items()}
    paired = difference(_mean(one), _mean(other))
    return Comparison(
        first=row_words(names[0]),
        second=row_words(names[1]),
        dataset=selection.dataset,
        backbone=selection.backbone,
        track=chosen,
        metric=selection.metric,
        overall=_tested(MEAN, _mean(one), _mean(other), _spread({k: _mean(g) for k, g in rows.items()}, names)),
        cases=_holm([_tested_case(every[i], place, (one, other), rows, names) for place, i in enumerate(kept)]),
        ahead=None if paired is None else _ahead(paired[0]),
        iqm=(_middle(one), _middle(other)),
        holds="" if paired is None else replace(one, values=paired).holds,
        seeds=_used(one, other),
        samples=None if paired is None or paired.shape[2] == 1 else paired.shape[2],
        costs=cost_ratios(*groups),
        notes=_notes(board, groups, [case for i, case in enumerate(every) if i not in kept]),
    )


def _shared_seeds(one: Grid, other: Grid) -> tuple[Grid, Grid]:
    """Both with the seeds that both have; as they are where there is none, or where one holds nothing random."""
    shared = tuple(seed for seed in one.seeds if seed in other.seeds)
    if one.fixed or other.fixed or not shared:
        return one, other
    left, right = (
        replace(grid, seeds=shared, values=grid.values[:, [grid.seeds.index(seed) for seed in shared]])
        for grid in (one, other)
    )
    return left, right


def _used(one: Grid, other: Grid) -> tuple[int, ...]:
    """The seeds that tell something about both."""
    if one.fixed:
        return other.seeds
    return one.seeds if other.fixed or one.seeds == other.seeds else ()


def _track(
    selection: Selection, groups: tuple[Sequence[TrialRecord], ...], names: tuple[Name, Name], wanted: Track | None
) -> Track:
    """The track asked for, or the most telling one on which both rows were scored themselves."""

    def has(group: Sequence[TrialRecord], track: Track) -> bool:
        found = [case_values(r, track, selection.metric) for r in group if r.status == "ok"]
        return any(entry is not None and entry[1] == track for entry in found)

    own = [[track for track in selection.tracks if has(group, track)] for group in groups]
    shared = [track for track in own[0] if track in own[1]]
    if not shared or (wanted is not None and wanted not in shared):
        told = "; ".join(
            f"{row_words(n)}: {', '.join(tracks) or 'none finished'}" for n, tracks in zip(names, own, strict=True)
        )
        what = f"on track {wanted}" if wanted else "on one track"
        raise ConfigError(f"these rows were not both scored {what} ({told}); scores of two tracks do not compare")
    return wanted or shared[0]


def _rows(selection: Selection, track: Track) -> Mapping[Name, Grid]:
    """Every row by its scores alone: what the variance over seeds is moderated by."""
    grids = {
        (g[0].trial.title, str(g[0].trial.regime)): grid_of(g, selection, track, Outcomes()) for g in selection.rows()
    }
    return {name: grid for name, grid in grids.items() if grid is not None}


def _mean(grid: Grid) -> Grid:
    return replace(grid, values=grid.mean[None])


def _at(grid: Grid, cases: Sequence[int]) -> Grid:
    return replace(grid, values=grid.values[list(cases)])


def _spread(rows: Mapping[Name, Grid], names: tuple[Name, Name]) -> SeedVariance:
    """Variance over seeds of the difference of two rows."""
    found = spreads(list(rows.values()))
    places = [list(rows).index(name) for name in names]
    one, other = (SeedVariance(found.variance[i : i + 1], found.freedom[i : i + 1]) for i in places)
    return one + other


def _tested_case(
    case: str, place: int, pair: tuple[Grid, Grid], rows: Mapping[Name, Grid], names: tuple[Name, Name]
) -> Difference:
    spread = _spread({name: _at(grid, [place]) for name, grid in rows.items()}, names)
    return _tested(case, _at(pair[0], [place]), _at(pair[1], [place]), spread)


def _tested(case: str, one: Grid, other: Grid, spread: SeedVariance) -> Difference:
    first, second = float(one.values.mean()), float(other.values.mean())
    values = difference(one, other)
    if values is None:
        return Difference(case, first, second, None, None, None, None)
    found = crossed(values, spread)
    low, high = found.interval()
    p = float(found.p()[0])
    return Difference(case, first, second, float(low[0]), float(high[0]), p, p)


def _holm(cases: Sequence[Difference]) -> tuple[Difference, ...]:
    tested = [entry.p for entry in cases if entry.p is not None]
    adjusted = iter(float(p) for p in holm(tested))
    return tuple(entry if entry.p is None else replace(entry, adjusted=next(adjusted)) for entry in cases)


def _ahead(values: npt.NDArray[np.float32]) -> float:
    means = bootstrap_means(values, np.random.default_rng(0), _DRAWS)
    return float((means > 0).mean() + (means == 0).mean() / 2)


def _middle(grid: Grid) -> Middle:
    scores = grid.values.mean(axis=2, dtype=np.float64).T  # (R, C)
    if len(scores) == 1:
        return Middle(iqm(scores), None, None)
    return Middle(iqm(scores), *iqm_interval(scores, np.random.default_rng(0)))


def _notes(board: Board, groups: Sequence[Sequence[TrialRecord]], gaps: Sequence[str]) -> tuple[str, ...]:
    """Why a variance is missing, and which trials and cases are."""
    records = [record for group in groups for record in group]
    absent = [reason for r in records if r.status == "ok" and (reason := board.outcomes.why_not(r))]
    notes = [f"Variance of samples unknown: {reason}." for reason in dict.fromkeys(absent)]
    notes += [f"{r.trial.title}, seed {r.trial.seed}: {r.status}, left out." for r in records if r.status != "ok"]
    notes += [f"Cases that one of them has no score on, left out: {', '.join(gaps)}."] if gaps else []
    return tuple(notes) + board.outcomes.problems
