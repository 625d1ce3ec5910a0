"""Statistics against published examples, other libraries and brute force."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
from scipy import stats as scipy_stats

from mmbench.report.outcome_files import SampleList
from mmbench.report.standing import Grid, ranks
from mmbench.report.stats import (
    SeedVariance,
    bootstrap_means,
    critical_difference,
    crossed,
    effective_robustness,
    friedman,
    holm,
    hypervolume,
    iqm,
    iqm_interval,
    mean_ranks,
    moderated,
    ppt,
    rank_groups,
)

# Table 6 of Demsar (JMLR 2006): AUC of C4.5, C4.5+m, C4.5+cf and C4.5+m+cf on 14 data sets. The paper ranks voting,
# the last but one, by more digits than it prints: its third value is the higher of the two that look equal.
DEMSAR = np.array(
    [
        [0.763, 0.768, 0.771, 0.798],
        [0.599, 0.591, 0.590, 0.569],
        [0.954, 0.971, 0.968, 0.967],
        [0.628, 0.661, 0.654, 0.657],
        [0.882, 0.888, 0.886, 0.898],
        [0.936, 0.931, 0.916, 0.931],
        [0.661, 0.668, 0.609, 0.685],
        [0.583, 0.583, 0.563, 0.625],
        [0.775, 0.838, 0.866, 0.875],
        [1.000, 1.000, 1.000, 1.000],
        [0.940, 0.962, 0.965, 0.962],
        [0.619, 0.666, 0.614, 0.669],
        [0.972, 0.981, 0.9751, 0.975],
        [0.957, 0.978, 0.946, 0.970],
    ]
)


def layout(seed: int = 0, seeds: int = 3, samples: int = 40) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(seeds, 1)) + rng.normal(size=(1, samples)) + 0.5 * rng.normal(size=(seeds, samples))


def test_demsars_example_gives_his_ranks_statistics_and_critical_differences() -> None:
    ranks = mean_ranks(DEMSAR)
    assert ranks == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    assert critical_difference(4, 14, 0.10) == pytest.approx(1.12, abs=0.005)
    # The paper's chi squared of 9.28 is not corrected for ties, of which one of n equal values counts n^3 - n.
    ties = sum(
        count**3 - count for row in DEMSAR for count in np.unique(row, return_counts=True)[1].tolist() if count > 1
    )
    found = friedman(DEMSAR)
    assert found.statistic * (1 - ties / (14 * 4 * 15)) == pytest.approx(9.28, abs=0.01)


@pytest.mark.parametrize(("rows", "q"), [(2, 1.960), (3, 2.343), (4, 2.569), (10, 3.164)])
def test_nemenyis_critical_values_are_the_published_ones(rows: int, q: float) -> None:
    assert critical_difference(rows, 6) == pytest.approx(q * math.sqrt(rows * (rows + 1) / 36), rel=5e-4)


def test_friedman_is_scipys_chi_squared_and_davenports_f() -> None:
    scores = np.random.default_rng(3).normal(size=(9, 5)) + np.arange(5) * 0.5
    found = friedman(scores)
    chi = scipy_stats.friedmanchisquare(*scores.T).statistic
    assert found.statistic == pytest.approx(chi)
    assert found.f == pytest.approx(8 * chi / (36 - chi))
    assert found.p == pytest.approx(1 - scipy_stats.f.cdf(found.f, 4, 32))
    assert friedman(np.ones((4, 3))).p == 1.0
    assert friedman(np.tile([1.0, 2.0, 3.0], (5, 1))).p == 0.0


def test_holm_on_a_textbook_family() -> None:
    # p .01 .02 .03 .04 .05: times 5, 4, 3, 2, 1, never below the one before.
    assert holm([0.04, 0.01, 0.05, 0.03, 0.02]) == pytest.approx([0.09, 0.05, 0.09, 0.09, 0.08])
    assert holm([0.01, 0.04], family=10) == pytest.approx([0.1, 0.36])
    assert holm([0.9, 0.6]) == pytest.approx([1.0, 1.0])
    assert len(holm([])) == 0


def test_the_two_way_variance_is_that_of_a_hand_made_analysis() -> None:
    # Rows 1 2 3 / 3 4 8: mean 3.5, seed means 2 and 5, sample means 2, 3, 5.5.
    found = crossed(np.array([[1.0, 2.0, 3.0], [3.0, 4.0, 8.0]]))
    of_seeds, of_samples = 3 * (1.5**2 + 1.5**2) / 1, 2 * (1.5**2 + 0.5**2 + 2.0**2) / 2
    rest = (0.5**2 + 0.5**2 + 1.0**2) * 2 / 2
    total = of_seeds + of_samples - rest
    assert float(found.mean) == 3.5
    assert float(found.error) == pytest.approx(math.sqrt(total / 6))
    assert float(found.freedom) == pytest.approx(total**2 / (of_seeds**2 / 1 + of_samples**2 / 2 + rest**2 / 2))


def test_one_seed_or_one_sample_is_students_t() -> None:
    values = np.array([0.2, 0.5, 0.9, 0.4, 0.7])
    for shape in ((1, 5), (5, 1)):
        found = crossed(values.reshape(shape))
        expected = scipy_stats.ttest_1samp(values, 0.0)
        low, high = found.interval()
        assert float(found.p()) == pytest.approx(expected.pvalue)
        assert (float(low), float(high)) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert np.isnan(crossed(np.array([[0.5]])).error)


def test_quantities_computed_together_are_those_computed_alone() -> None:
    several = np.stack([layout(seed) for seed in range(4)])
    together = crossed(several)
    for i, values in enumerate(several):
        alone = crossed(values)
        assert float(alone.error) == pytest.approx(together.error[i])
        assert float(alone.freedom) == pytest.approx(together.freedom[i])


def test_the_bootstrap_draws_the_variance_that_the_closed_form_corrects() -> None:
    values = layout(5, seeds=5, samples=60)
    drawn = bootstrap_means(values, np.random.default_rng(0), 40_000)
    seeds, samples = values.shape
    by_seed, by_sample = values.mean(axis=1), values.mean(axis=0)
    rest = values - by_seed[:, None] - by_sample[None] + values.mean()
    # Owen (2007), theorem 3 for a full layout: the parts as they are, the rest once more for the product of weights.
    ideal = by_seed.var() / seeds + by_sample.var() / samples + (rest**2).mean() / (seeds * samples)
    assert drawn.mean() == pytest.approx(values.mean(), abs=0.02)
    assert drawn.var() == pytest.approx(ideal, rel=0.03)


def test_a_variance_is_drawn_towards_those_that_agree_and_not_far_towards_those_that_do_not() -> None:
    rng = np.random.default_rng(0)
    # True variances of a scaled inverse chi squared with 8 degrees of freedom around 2, told by 2 more each.
    own = 2.0 * 8 / rng.chisquare(8, 20_000) * rng.chisquare(2, 20_000) / 2
    found = moderated(SeedVariance(own, np.full(20_000, 2.0)))
    assert found.freedom == pytest.approx(8 + 2, rel=0.1)
    assert found.variance == pytest.approx((8 * 2.0 + 2 * own) / 10, rel=0.1)
    same = moderated(SeedVariance(rng.chisquare(200, 5) / 200, np.full(5, 2.0)))
    assert same.freedom == pytest.approx(10)  # never better known than all rows together
    unlike = SeedVariance(10.0 ** rng.uniform(-4, 4, 60) * rng.chisquare(2, 60) / 2, np.full(60, 2.0))
    kept = moderated(unlike)
    assert kept.freedom.max() < 4
    assert np.corrcoef(np.log(kept.variance), np.log(unlike.variance))[0, 1] > 0.9
    two = SeedVariance(np.array([1.0, 9.0]), np.array([2.0, 2.0]))
    assert moderated(two) is two


@dataclass(frozen=True)
class World:
    """Rows whose samples share their difficulty; `spread` is the deviation over seeds, on a probit scale, of each."""

    seeds: int
    samples: int
    spread: float
    uneven: float = 0.0

    def rows(self, count: int, rng: np.random.Generator, lower: float = 0.0) -> np.ndarray:
        """(rows, R, S) right or wrong; the last row is `lower` than the others."""
        spread = self.spread * np.exp(self.uneven * rng.normal(size=(count, 1, 1)))
        base = ACCURACY_AT * math.sqrt(1 + HARD**2)
        level = base + spread * rng.normal(size=(count, self.seeds, 1))
        level[-1] -= lower
        shape = (count, self.seeds, self.samples)
        return (level + HARD * rng.normal(size=self.samples) + rng.normal(size=shape) > 0).astype(float)

    @property
    def truth(self) -> float:
        """Expected accuracy, over all seeds and samples; rows must be even."""
        wide = math.sqrt(1 + HARD**2 + self.spread**2)
        return float(scipy_stats.norm.cdf(ACCURACY_AT * math.sqrt(1 + HARD**2) / wide))


HARD, ACCURACY_AT = 1.5, 0.84


@pytest.mark.parametrize("seeds", [1, 3, 5])
@pytest.mark.parametrize("spread", [0.0, 0.05, 0.1])
def test_intervals_hold_the_truth_as_often_as_they_say(seeds: int, spread: float) -> None:
    world = World(seeds, 200, spread if seeds > 1 else 0.0)
    rng = np.random.default_rng(seeds)
    boards = np.concatenate([world.rows(1, rng) for _ in range(1500)])
    low, high = crossed(boards).interval()
    assert 0.93 <= np.mean((low <= world.truth) & (world.truth <= high)) <= 0.975


def ranked(rows: np.ndarray) -> list[int | None]:
    _, seeds, samples = rows.shape
    alike = SampleList(tuple(map(str, range(samples))), np.zeros(samples, np.int64))
    return ranks([Grid(tuple(range(seeds)), False, alike, row[None].astype(np.float32)) for row in rows])


@pytest.mark.parametrize(
    ("world", "most"),
    [
        (World(3, 200, 0.0), 0.05),
        (World(3, 200, 0.1), 0.06),
        (World(5, 200, 0.05), 0.05),
        (World(3, 200, 0.05, 0.8), 0.12),
    ],
)
def test_equal_rows_are_seldom_told_apart_and_a_lower_one_is(world: World, most: float) -> None:
    rng = np.random.default_rng(7)
    boards = 250
    false = sum(set(ranked(world.rows(12, rng))) != {1} for _ in range(boards))
    assert false / boards <= most
    found = sum(ranked(world.rows(12, rng, lower=0.8))[-1] == 2 for _ in range(60))
    assert found / 60 >= 0.9


def test_rows_share_a_rank_unless_its_head_is_better() -> None:
    chances = {(0, 1): 0.5, (0, 2): 1e-6, (0, 3): 0.2, (0, 4): 1e-6, (2, 4): 1e-6}

    def worse(head: int, others: object) -> list[float | None]:
        return [chances[head, other] for other in others]  # type: ignore[attr-defined]

    assert rank_groups([0.9, 0.8, 0.7, 0.6, 0.5], worse) == [1, 1, 2, 1, 3]
    # p 0.006 would be significant among four tests, but the ten pairs of five rows could all have been the one tested.
    assert rank_groups([5, 4, 3, 2, 1], lambda _, others: [0.006] * len(others)) == [1] * 5
    assert rank_groups([1.0, 2.0], lambda _, others: [None] * len(others)) == [None, None]


def test_the_interquartile_mean_is_that_of_the_middle_half() -> None:
    scores = np.array([[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 100.0]])
    assert iqm(scores) == pytest.approx((2 + 3 + 4 + 5) / 4)
    low, high = iqm_interval(scores, np.random.default_rng(0), 20_000)
    # Two seeds a case and four cases: the 16 draws can be listed.
    every = sorted(
        iqm(np.array(list(zip(*pick, strict=True))))
        for pick in product(*([[(c[a], c[b]) for a in (0, 1) for b in (0, 1)] for c in scores.T]))
    )
    assert (low, high) == (np.quantile(every, 0.025), np.quantile(every, 0.975))


def test_effective_robustness_is_the_distance_from_the_line() -> None:
    clean = np.array([0.5, 0.7, 0.9])
    logits = np.log(clean / (1 - clean))
    shifted = 1 / (1 + np.exp(-(0.8 * logits - 1.0)))
    line = np.stack([clean, shifted], axis=1)
    on_line = 1 / (1 + math.exp(-(0.8 * math.log(0.8 / 0.2) - 1.0)))
    assert effective_robustness(0.8, on_line + 0.07, line) == pytest.approx(0.07)
    with pytest.raises(ValueError, match="two different"):
        effective_robustness(0.8, 0.5, line[:1])


def test_ppt_has_the_factors_of_the_benchmark() -> None:
    assert ppt(1.0, 0) == 1.0  # linear probing
    assert ppt(80.0, 10_000_000) == pytest.approx(80.0 * 0.74007, rel=1e-4)  # exp(-log10 2)
    assert ppt(1.0, 90_000_000) == pytest.approx(1 / math.e)


def test_the_hypervolume_is_the_area_that_counting_gives() -> None:
    rng = np.random.default_rng(2)
    costs, scores = rng.integers(0, 12, 9), rng.integers(0, 12, 9)
    counted = sum(
        any(c <= x and s >= y + 1 for c, s in zip(costs, scores, strict=True)) for x in range(10) for y in range(3, 12)
    )
    assert hypervolume(costs.tolist(), scores.tolist(), (10.0, 3.0)) == counted
    assert hypervolume([], [], (1.0, 0.0)) == 0.0
    assert hypervolume([2.0], [1.0], (1.0, 0.0)) == 0.0


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (3, 0.05), (3, 0.2), (5, 0.1)])
def test_two_equal_rows_are_told_apart_at_most_as_often_as_the_level_says(seeds: int, spread: float) -> None:
    rng = np.random.default_rng(11)
    pairs = np.stack([World(seeds, 200, spread).rows(2, rng) for _ in range(1500)])  # (N, 2, R, S)
    assert np.mean(crossed(pairs[:, 0] - pairs[:, 1]).p() < 0.05) <= 0.065
