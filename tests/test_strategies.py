"""Training strategies seen from outside: what they show a method, what they ask of it, what they do to gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from beds import build, equal, make_bench, make_job, memory_data
from torch import Tensor

from mmbench import registry
from mmbench.cases import Case, Missing
from mmbench.conformance_bed import Bed
from mmbench.data.batch import Batch
from mmbench.errors import ConfigError
from mmbench.feed import TrainFeed
from mmbench.method import Method, State
from mmbench.strategy import Regimen, Strategy
from mmbench.train import SINGLE, fit


def strategy(name: str, **options: Any) -> Strategy:
    made: Strategy = registry.strategies().load(name)(options)
    return made


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def viewed(batch: Batch, *strategies: Strategy, seed: int = 0, method: Method | None = None) -> Batch:
    return Regimen(method or build("linear-probe"), strategies).view(batch, rng(seed))


def told(batch: Batch) -> tuple[Tensor, Tensor]:
    assert batch.available is not None and batch.affected is not None
    return batch.available, batch.affected


def complete(samples: int) -> Batch:
    batch = Bed().batch(samples=samples)
    here = torch.ones(samples, 2, dtype=torch.bool)
    noise = torch.randn(batch.audio.shape, generator=rng()), torch.randn(batch.image.shape, generator=rng())
    return replace(batch, audio=noise[0], image=noise[1], case=("complete",) * samples, available=here, affected=~here)


# Modality dropout ---------------------------------------------------------------------------------------------------


def test_modality_dropout_takes_a_quarter_each_and_says_so() -> None:
    batch = complete(400)
    view = viewed(batch, strategy("modality-dropout"))
    available, affected = told(view)
    assert torch.equal(affected, ~available)
    assert bool(available.any(dim=1).all())
    assert [80 < int(absent) < 120 for absent in (~available).sum(dim=0)] == [True, True]
    assert not view.audio[~available[:, 0]].any() and not view.image[~available[:, 1]].any()
    assert torch.equal(view.audio[available[:, 0]], batch.audio[available[:, 0]])
    assert torch.equal(view.image[available[:, 1]], batch.image[available[:, 1]])


def test_modality_dropout_leaves_samples_that_lack_something_alone() -> None:
    batch = Bed().batch(samples=30)
    view = viewed(batch, strategy("modality-dropout", p_audio=1.0, p_vision=0.0))
    before, after = told(batch)[0], told(view)[0]
    whole = before.all(dim=1)
    assert not after[whole, 0].any() and after[whole, 1].all()
    assert torch.equal(after[~whole], before[~whole])
    assert torch.equal(view.audio[~whole], batch.audio[~whole])


# Mixup --------------------------------------------------------------------------------------------------------------


def test_mixup_mixes_both_modalities_and_labels_by_one_share() -> None:
    """Sample i is filled with the value i and labelled i, so its mixture tells what it was made of."""
    value = torch.arange(4.0)
    batch = complete(4)
    batch = replace(
        batch,
        audio=torch.ones_like(batch.audio) * value[:, None, None],
        image=torch.ones_like(batch.image) * value[:, None, None, None],
        label=torch.arange(4),
    )
    shares, method = [], build("linear-probe")
    for seed in range(150):
        view = viewed(batch, strategy("mixup"), seed=seed, method=method)
        assert view.label is not None and view.label.shape == (4, 4)
        torch.testing.assert_close(view.label.sum(dim=1), torch.ones(4))
        expected = view.label @ value  # (4,)
        torch.testing.assert_close(view.audio, torch.ones_like(view.audio) * expected[:, None, None])
        torch.testing.assert_close(view.image, torch.ones_like(view.image) * expected[:, None, None, None])
        shares += view.label.diagonal().tolist()
    mixed = torch.tensor([share for share in shares if share < 1])
    assert 0.45 < len(mixed) / len(shares) < 0.55
    assert float(mixed.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(mixed.std()) == pytest.approx(84**-0.5, abs=0.02)  # of Beta(10, 10)


def test_mixup_partners_lack_the_same_and_share_the_case() -> None:
    batch = Bed().batch(samples=12)
    batch = replace(batch, label=torch.arange(12) % 3)  # the label tells the case
    label = viewed(batch, strategy("mixup", rate=1.0)).label
    assert label is not None and bool((label.max(dim=1).values == 1).all())
    view = viewed(batch, strategy("mixup", rate=1.0))
    available = told(batch)[0]
    assert not view.audio[~available[:, 0]].any() and not view.image[~available[:, 1]].any()
    assert all(float((view.audio[i] - batch.audio[i]).abs().max()) > 0.1 for i in range(12) if available[i, 0])


def test_a_sample_without_a_partner_stays_as_it_is() -> None:
    batch = Bed().batch(samples=3)  # three cases
    view = viewed(batch, strategy("mixup", rate=1.0))
    assert torch.equal(view.audio, batch.audio) and torch.equal(view.image, batch.image)
    assert batch.label is not None and view.label is not None
    assert torch.equal(view.label.argmax(dim=1), batch.label) and bool((view.label.max(dim=1).values == 1).all())


def test_mixup_of_several_labels_keeps_a_label_that_both_have() -> None:
    batch = replace(complete(6), label=torch.tensor([[1.0, 1, 0, 0], [1, 0, 1, 0]]).repeat(3, 1))
    label = viewed(batch, strategy("mixup", rate=1.0)).label
    assert label is not None
    torch.testing.assert_close(label.sum(dim=1), torch.full((6,), 2.0))
    torch.testing.assert_close(label[:, 0], torch.ones(6))


# SpecAugment --------------------------------------------------------------------------------------------------------


def test_specaugment_masks_one_band_and_one_span_with_the_mean() -> None:
    batch = complete(60)
    view = viewed(batch, strategy("specaugment", bands=48, time_share=0.5))
    masked = view.audio != batch.audio  # (B, T, F)
    assert not view.audio[masked].any()
    bands, spans = masked.all(dim=1), masked.all(dim=2)  # (B, F), (B, T)
    assert torch.equal(masked, bands[:, None, :] | spans[:, :, None])
    for lines, widest in ((bands, 47), (spans, 15)):
        widths = lines.sum(dim=1)
        assert int(widths.max()) <= widest and int(widths.max()) > widest // 2 and len(widths.unique()) > 5
        assert int(lines.int().diff(dim=1, prepend=torch.zeros(60, 1)).clamp(min=0).sum(dim=1).max()) == 1
    assert torch.equal(view.image, batch.image)


def test_specaugment_leaves_what_stands_in_for_absent_audio() -> None:
    batch = replace(Bed().batch(), audio=torch.full_like(Bed().batch().audio, -2.42))
    view = viewed(batch, strategy("specaugment", bands=128))
    changed = (view.audio != batch.audio).flatten(1).any(dim=1)
    assert changed.tolist() == [True, False, True, True, False, True]


# Options ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("modality-dropout", {"p_audio": 0.6, "p_vision": 0.6}, "p_audio = 0.6, p_vision = 0.6"),
        ("modality-dropout", {"p_audio": -0.1}, "between 0 and 1"),
        ("mixup", {"rate": 1.5}, "rate = 1.5"),
        ("mixup", {"alpha": 0.0}, "alpha must be positive"),
        ("specaugment", {"time_share": 2.0}, "time_share = 2"),
        ("augmix", {"alpha": -1.0}, "alpha must be positive"),
        ("augmix", {"severity": 11.0}, "up to 10"),
        ("ogm-ge", {"alpha": 1.1}, "at most 1"),
        ("mixup", {"lambda": 1.0}, "no option of mixup 'lambda'"),
    ],
)
def test_impossible_options_are_refused_by_name(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        strategy(name, **options)


# Training -----------------------------------------------------------------------------------------------------------


def trained(*names: str, seed: int = 0, method: str = "full-finetune") -> State:
    strategies = tuple(strategy(name) for name in names)
    job = make_job(strategies=strategies, seed=seed, samples=48, lr=1e-3)
    return fit(build(method), memory_data(), job, make_bench()).states[SINGLE]


EVERY = ("modality-dropout", "mixup", "specaugment", "augmix", "ogm-ge")


@pytest.mark.parametrize("names", [("mixup", "specaugment"), EVERY, EVERY[::-1]])
def test_strategies_compose_and_repeat_by_seed(names: tuple[str, ...]) -> None:
    once = trained(*names)
    assert all(bool(tensor.isfinite().all()) for tensor in once.values())
    assert equal(once, trained(*names))
    assert not equal(once, trained(*names, seed=1))
    assert not any(equal(once, trained(*names[:index], *names[index + 1 :])) for index in range(len(names)))


def test_micro_batches_end_where_the_whole_batch_does() -> None:
    ends = []
    for size in (8, 3):
        strategies = tuple(strategy(name) for name in EVERY)
        job = make_job(samples=3 * 8, micro_batch=size, lr=1e-4, strategies=strategies)
        ends.append(fit(build("adapter-pfeiffer"), memory_data(), job, make_bench()))
    whole, parts = (fitted.states[SINGLE] for fitted in ends)
    assert not equal(whole, build("adapter-pfeiffer").state())
    assert all(torch.allclose(whole[name], parts[name], atol=2e-5) for name in whole)


# Missing-rate training: a regime that strategies combine with -------------------------------------------------------


def absent(feed: TrainFeed, epoch: int) -> dict[str, tuple[bool, bool]]:
    ids = feed.data.splits.train
    batch = feed.load(epoch, ids)
    return {i: (not a, not v) for i, (a, v) in zip(batch.ids, told(batch)[0].tolist(), strict=True) if not (a and v)}


def at_rate(rate: float, train: int = 23) -> TrainFeed:
    return TrainFeed(memory_data(train=train), 0, (Case(f"missing-rate-{rate:g}", missing=Missing("mixed", rate)),))


@pytest.mark.parametrize(("rate", "count"), [(0.3, 6), (0.7, 16), (0.9, 20), (1.0, 23)])
def test_missing_rate_counts_are_exact_in_every_epoch(rate: float, count: int) -> None:
    feed = at_rate(rate)
    for epoch in range(3):
        lacking = absent(feed, epoch)
        assert len(lacking) == count
        assert sum(vision for _, vision in lacking.values()) == count // 2
        assert all(audio != vision for audio, vision in lacking.values())
    assert rate == 1.0 or absent(feed, 0).keys() != absent(feed, 1).keys()
    assert absent(feed, 0) != absent(feed, 1)


def test_what_lacks_at_one_rate_lacks_the_same_at_a_higher_one() -> None:
    lower, middle, higher = (absent(at_rate(rate), 2) for rate in (0.3, 0.7, 0.9))
    assert lower.items() < middle.items() < higher.items()


def test_a_missing_rate_epoch_in_batches_is_the_epoch_as_a_whole() -> None:
    feed = at_rate(0.7)
    whole, seen = absent(feed, 0), 0
    for epoch, ids in feed.order(23, 8):
        lacking = (~told(feed.load(epoch, ids))[0]).tolist()
        assert [tuple(row) for row in lacking] == [whole.get(i, (False, False)) for i in ids]
        seen += len(ids)
    assert seen == 23
