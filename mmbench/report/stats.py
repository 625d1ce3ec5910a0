"""Statistics of benchmark results, on plain arrays.

A score is a mean over seeds (R) and test samples (S). Every seed meets the same samples, so the two are crossed: both
are random, neither is nested in the other, and the variance of the mean has a part of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.optimize import brentq
from scipy.special import digamma, expit, logit, polygamma

LEVEL = 0.95
ALPHA = 0.05
PPT_PARAMETERS = 1e7
"""Normaliser of the trainable parameters in V-PETL Bench's PPT."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Estimate:
    """Means with their standard errors and degrees of freedom, one entry a quantity; NaN where nothing varies."""

    mean: Floats
    error: Floats
    freedom: Floats

    def interval(self, level: float = LEVEL) -> tuple[Floats, Floats]:
        """Lower and upper end by the quantile of Student's t."""
        half = stats.t.ppf(0.5 + level / 2, self.freedom) * self.error
        return self.mean - half, self.mean + half

    def p(self) -> Floats:
        """Two-sided probability of a mean this far from 0 if the true one is 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.abs(self.mean) / self.error
        return np.asarray(np.where(self.mean == 0, 1.0, 2 * stats.t.sf(t, self.freedom)))


@dataclass(frozen=True, eq=False)
class SeedVariance:
    """Variances of a score over seeds, with the degrees of freedom they are known to; one entry a row."""

    variance: Floats
    freedom: Floats

    def __add__(self, other: SeedVariance) -> SeedVariance:
        """Of a difference, or sum, of independent rows (Satterthwaite)."""
        total = self.variance + other.variance
        parts = self.variance**2 / self.freedom + other.variance**2 / other.freedom
        return SeedVariance(total, np.where(parts > 0, total**2 / np.where(parts > 0, parts, 1), 1.0))


def moderated(own: SeedVariance) -> SeedVariance:
    """Each row's variance drawn towards those of the others, as far as they agree (Smyth, SAGMB 2004, section 6).

    Three seeds tell a row's variance poorly and many rows together well. The prior is fitted to the logarithms of the
    variances by their moments; a result is never known better than all rows taken together.
    """
    variance, freedom = own.variance, own.freedom
    if len(variance) < 3 or not (variance > 0).any():
        return own
    floored = np.maximum(variance, 1e-5 * float(np.median(variance[variance > 0])))
    logs = np.log(floored) - digamma(freedom / 2) + np.log(freedom / 2)
    excess = float(logs.var(ddof=1) - polygamma(1, freedom / 2).mean())
    half = math.inf if excess <= polygamma(1, 1e4) else brentq(lambda x: polygamma(1, x) - excess, 1e-3, 1e4)
    if math.isinf(half):
        shared, known = math.exp(logs.mean()), float(freedom.sum())
    else:
        shared, known = math.exp(logs.mean() + digamma(half) - math.log(half)), 2 * half
    total = np.minimum(known + freedom, freedom.sum())
    return SeedVariance((known * shared + freedom * variance) / (known + freedom), total)


def crossed(values: npt.NDArray[Any], of_seeds: SeedVariance | None = None) -> Estimate:
    """Mean over seeds and samples of values (..., R, S); R = 1 leaves the variance of samples, S = 1 that of seeds.

    The variance of a two-way layout without replication: mean squares of seeds, samples and the rest, each part of the
    variance at least 0. It is what a bootstrap that resamples seeds and samples independently (Owen, Annals of Applied
    Statistics 2007, pigeonhole bootstrap) draws, without that bootstrap's threefold count of the rest and with R - 1
    in place of R. Degrees of freedom by Satterthwaite (Biometrics Bulletin 1946). `of_seeds` (...) replaces the
    variance over seeds that the values themselves show.
    """
    values = np.asarray(values, np.float64)
    seeds, samples = values.shape[-2:]
    mean = values.mean(axis=(-2, -1))
    if seeds == 1:
        error = values[..., 0, :].std(axis=-1, ddof=1) / math.sqrt(samples) if samples > 1 else mean * np.nan
        return Estimate(mean, error, np.full(mean.shape, max(samples - 1, 1), np.float64))
    means = values.mean(axis=-1)  # (..., R)
    if of_seeds is None:
        of_seeds = SeedVariance(means.var(axis=-1, ddof=1), np.full(mean.shape, seeds - 1, np.float64))
    if samples == 1:
        return Estimate(mean, np.sqrt(of_seeds.variance / seeds), of_seeds.freedom)
    by_seed, by_sample = means - mean[..., None], values.mean(axis=-2) - mean[..., None]
    square = ((values - mean[..., None, None]) ** 2).sum(axis=(-2, -1))
    square_samples = seeds * (by_sample**2).sum(axis=-1)
    free_samples, free_rest = samples - 1, (seeds - 1) * (samples - 1)
    rest = np.maximum(square - samples * (by_seed**2).sum(axis=-1) - square_samples, 0) / free_rest
    seed, sample = samples * of_seeds.variance, square_samples / free_samples
    total = rest + np.maximum(seed - rest, 0) + np.maximum(sample - rest, 0)
    parts = seed**2 / of_seeds.freedom + sample**2 / free_samples + rest**2 / free_rest
    freedom = np.where(parts > 0, total**2 / np.where(parts > 0, parts, 1), 1.0)
    return Estimate(mean, np.sqrt(total / (seeds * samples)), np.maximum(freedom, 1.0))


def bootstrap_means(values: npt.NDArray[Any], rng: np.random.Generator, draws: int = 10_000) -> Floats:
    """(B,) means of values (R, S) under resampled seeds and, independently, resampled samples (Owen 2007)."""
    seeds, samples = values.shape
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) / seeds  # (B, R)
    of_samples = rng.multinomial(samples, np.full(samples, 1 / samples), size=draws) / samples  # (B, S)
    return np.asarray(((of_seeds @ values) * of_samples).sum(axis=1))


def holm(p: Sequence[float], family: int | None = None) -> Floats:
    """Adjusted probabilities of a family of tests, in the order given (Holm, Scandinavian J. of Statistics 1979).

    `family` is its size where not all of its tests were made.
    """
    found = np.asarray(p, np.float64)
    order = np.argsort(found, kind="stable")
    stepped = np.maximum.accumulate(found[order] * ((family or len(found)) - np.arange(len(found))))
    adjusted = np.empty(len(found))
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


Worse = Callable[[int, Sequence[int]], Sequence[float | None]]


def rank_groups(means: Sequence[float], worse: Worse) -> list[int | None]:
    """Rank of each row, where rows share a rank unless its best row is significantly better (Holm, 5 %).

    `worse(head, others)` gives the probability that each of the others equals the head; None where that cannot be
    tested, and then the row has no rank. The best row heads rank 1, the best of those found worse heads rank 2. As the
    heads are chosen by the scores that they are tested with, the family holds every pair of rows.
    """
    ranks: list[int | None] = [None] * len(means)
    left = sorted(range(len(means)), key=lambda i: -means[i])
    family = len(left) * (len(left) - 1) // 2
    rank = 0
    while left:
        rank += 1
        head, *others = left
        found = [(i, p) for i, p in zip(others, worse(head, others), strict=True) if p is not None]
        if rank == 1 and not found:
            return ranks  # nothing can be compared with the best row
        ranks[head] = rank
        adjusted = holm([p for _, p in found], family)
        for (i, _), p in zip(found, adjusted, strict=True):
            ranks[i] = None if p < ALPHA else rank
        left = [i for (i, _), p in zip(found, adjusted, strict=True) if p < ALPHA]
    return ranks


@dataclass(frozen=True)
class Friedman:
    """Friedman's test: whether all rows have the same mean rank over the blocks."""

    statistic: float
    """Chi squared with k - 1 degrees of freedom, corrected for ties."""
    p: float
    """Of the F statistic of Iman and Davenport (1980), which is less conservative."""
    f: float


def friedman(scores: npt.NDArray[Any]) -> Friedman:
    """Of scores (N blocks, k rows), k > 2 (Demsar, JMLR 2006, section 3.2.2); equal rows have p = 1."""
    blocks, rows = scores.shape
    if (scores == scores[:, :1]).all():
        return Friedman(0.0, 1.0, 0.0)
    chi = float(stats.friedmanchisquare(*np.asarray(scores, np.float64).T).statistic)
    most = blocks * (rows - 1)
    f = math.inf if chi >= most else (blocks - 1) * chi / (most - chi)
    return Friedman(chi, float(stats.f.sf(f, rows - 1, (rows - 1) * (blocks - 1))), f)


def mean_ranks(scores: npt.NDArray[Any]) -> Floats:
    """(k,) mean rank over the blocks of scores (N, k), 1 for the highest; ties share the mean of their ranks."""
    return np.asarray(stats.rankdata(-np.asarray(scores, np.float64), axis=1).mean(axis=0))


def critical_difference(rows: int, blocks: int, alpha: float = ALPHA) -> float:
    """How far two mean ranks must lie apart to differ (Nemenyi; Demsar 2006, section 3.2.2)."""
    q = float(stats.studentized_range.ppf(1 - alpha, rows, np.inf)) / math.sqrt(2)
    return q * math.sqrt(rows * (rows + 1) / (6 * blocks))


def iqm(scores: npt.NDArray[Any]) -> float:
    """Interquartile mean: of the middle half of all scores (Agarwal et al., NeurIPS 2021)."""
    return float(stats.trim_mean(np.asarray(scores, np.float64), 0.25, axis=None))


def iqm_interval(
    scores: npt.NDArray[Any], rng: np.random.Generator, draws: int = 2000, level: float = LEVEL
) -> tuple[float, float]:
    """Percentile interval of the IQM of scores (R seeds, C cases), seeds resampled within each case (ibid.)."""
    seeds, cases = scores.shape
    picked = rng.integers(seeds, size=(draws, seeds, cases))
    drawn = scores[picked, np.arange(cases)].reshape(draws, -1)  # (B, R * C)
    found = stats.trim_mean(drawn, 0.25, axis=1)
    low, high = np.quantile(found, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def effective_robustness(clean: float, shifted: float, line: npt.NDArray[Any]) -> float:
    """Accuracy under shift beyond what the clean accuracy predicts (Taori et al., NeurIPS 2020).

    `line` (M, 2) holds clean and shifted accuracies, all inside (0, 1), of the models that set the baseline.
    """
    return shifted - expected_under_shift(clean, *logit_line(line))


def expected_under_shift(clean: float, slope: float, intercept: float) -> float:
    """The accuracy under shift that a line between logits expects of a clean accuracy inside (0, 1)."""
    return float(expit(slope * logit(clean) + intercept))


def logit_line(line: npt.NDArray[Any]) -> tuple[float, float]:
    """Slope and intercept between the logits of clean and shifted accuracies, (M, 2).

    Raises ValueError with fewer than two different clean accuracies.
    """
    x, y = logit(np.asarray(line, np.float64)).T
    if len(x) < 2 or np.ptp(x) == 0:
        raise ValueError("effective robustness needs two different clean accuracies to fit a line")
    fit = stats.linregress(x, y)
    return float(fit.slope), float(fit.intercept)


def ppt(score: float, trainable_parameters: int) -> float:
    """Performance-Parameter Trade-off of V-PETL Bench (NeurIPS 2024): score * exp(-log10(P / 10^7 + 1))."""
    return score * math.exp(-math.log10(trainable_parameters / PPT_PARAMETERS + 1))


def hypervolume(costs: Sequence[float], scores: Sequence[float], worst: tuple[float, float]) -> float:
    """Exact area between the points (lower cost, higher score) and a reference of the worst cost and score.

    (Zitzler and Thiele, IEEE TEC 1999.) Points that are not better than the reference in both add nothing.
    """
    cost, floor = worst
    area, best = 0.0, floor
    for c, s in sorted(zip(costs, scores, strict=True), key=lambda point: (point[0], -point[1])):
        if c < cost and s > best:
            area += (cost - c) * (s - best)
            best = s
    return area
