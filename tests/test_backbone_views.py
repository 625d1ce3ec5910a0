"""The published recipes, and training batches that depend on neither batch size nor number of processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from beds import MemoryStore, asked, memory_data
from training_bed import DATA, SMALL, TUNING, view

from mmbench.backbone_training.recipes import FINETUNE, PRETRAIN, Recipe, recipe_of
from mmbench.backbone_training.views import ViewFeed
from mmbench.conformance_bed import SIZES
from mmbench.data.batch import Film, RawBatch
from mmbench.data.features import normalise_image
from mmbench.data.shards import Shards
from mmbench.data.store import Store
from mmbench.errors import ConfigError, UnknownNameError
from mmbench.ranks import ALONE, Ranks

# Recipes


@pytest.mark.parametrize(
    ("recipe", "halved_in"),
    [
        (PRETRAIN["audioset-scale++"], {10, 15, 20}),
        (PRETRAIN["vggsound-from-audioset"], set()),
        (FINETUNE["vggsound"], {2, 3, 4, 5, 6, 7, 8, 9}),
        (FINETUNE["audioset-20k"], {5, 6, 7, 8, 9, 10, 11, 12, 13, 14}),
    ],
    ids=["pretrain", "pretrain-short", "vggsound", "audioset-20k"],
)
def test_the_rate_is_halved_where_the_published_runs_halve_it(recipe: Recipe, halved_in: set[int]) -> None:
    rates = [recipe.lr_in(epoch) for epoch in range(recipe.epochs)]
    assert rates[0] == recipe.lr
    for epoch in range(1, recipe.epochs):
        assert rates[epoch] == rates[epoch - 1] * (0.5 if epoch in halved_in else 1), epoch


def test_published_recipes_hold_the_published_figures() -> None:
    best = PRETRAIN["audioset-scale++"]
    assert (best.lr, best.batch_size, best.epochs, best.contrast_weight, best.mae_weight) == (2e-4, 256, 25, 0.01, 1.0)
    assert (best.audio_mask_ratio, best.vision_mask_ratio, best.mixup, best.smoothing) == (0.75, 0.75, 0, 0)
    vgg, small = FINETUNE["vggsound"], FINETUNE["audioset-20k"]
    assert (vgg.lr, vgg.head_lr, vgg.batch_size, vgg.average_from, vgg.balanced) == (1e-4, 10, 48, 3, True)
    assert (small.lr, small.head_lr, small.batch_size, small.epochs, small.balanced) == (5e-5, 100, 36, 15, False)
    assert (vgg.mixup, vgg.smoothing, vgg.spec_augment, vgg.noise) == (0.5, 0.1, True, True)


def test_a_recipe_takes_changes() -> None:
    recipe = recipe_of(PRETRAIN, "tiny", ("epochs=4", "contrast_weight=0", "audio_mask=time", "norm_pix=false"))
    assert (recipe.epochs, recipe.settings().audio_mask, recipe.settings().norm_pix) == (4, "time", False)
    assert recipe_of(FINETUNE, "tiny", ("freeze_base=true",)).freeze_base


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("epoch=4", "did you mean: epochs"),
        ("epochs", "key=value"),
        ("epochs=0", "epochs: .* greater than 0 .*got 0"),
        ("lr=.nan", "no finite number"),
        ("lr=[1", "not valid YAML"),
        ("audio_mask=rows", "no audio mask 'rows'|audio_mask: .*unstructured"),
        ("audio_mask_ratio=1", r"audio_mask_ratio must be in \[0, 1\)"),
        ("audio_mask_ratio=0", "nothing to reconstruct"),
        ("mae_weight=-1", "mae_weight"),
    ],
)
def test_a_change_that_cannot_be_is_told(change: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        recipe_of(PRETRAIN, "tiny", (change,))


def test_what_trains_or_averages_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing would train"):
        recipe_of(PRETRAIN, "tiny", ("mae_weight=0", "contrast_weight=0"))
    with pytest.raises(ConfigError, match="average_from is 3, but there are 2 epochs"):
        recipe_of(FINETUNE, "vggsound", ("epochs=2",))
    with pytest.raises(UnknownNameError, match="audioset-20k"):
        recipe_of(FINETUNE, "audioset20k")


# Views


def test_an_epoch_shows_every_sample_at_most_once_in_an_order_of_its_own() -> None:
    feed = ViewFeed(DATA, SMALL, ALONE)
    orders = [feed.order(epoch) for epoch in range(2)]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(DATA.splits.train)
    assert orders[0] != orders[1]
    assert feed.steps == 2  # of 22 samples in batches of 8, the last 6 are left out


@pytest.mark.parametrize("recipe", [SMALL, TUNING.model_copy(update={"mixup": 0.5, "spec_augment": True})])
def test_processes_share_the_batch_of_one(recipe: Recipe) -> None:
    whole = view(recipe, epoch=1, step=1)
    parts = [view(recipe, 1, 1, Ranks(rank, 2)) for rank in range(2)]
    for name in ("audio", "image", "target"):
        shared = torch.stack([getattr(part, name) for part in parts], dim=1).flatten(0, 1)
        torch.testing.assert_close(shared, getattr(whole, name), atol=1e-5, rtol=1e-5)


def test_draws_depend_on_seed_and_epoch() -> None:
    plain = view(SMALL)
    assert torch.equal(plain.audio, view(SMALL).audio)
    for other in (view(SMALL, epoch=1), view(SMALL.model_copy(update={"seed": 1}))):
        assert not torch.equal(plain.audio, other.audio)


def test_without_augmentation_the_view_is_what_is_stored() -> None:
    recipe = SMALL.model_copy(update={"noise": False})
    feed, seen = ViewFeed(DATA, recipe, ALONE), view(recipe)
    raw = DATA.store.batch(feed.order(0)[:8])
    torch.testing.assert_close(seen.audio, (raw.fbank + 5.081) / 4.4849)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(seen.image[0, :, 3, 5], (raw.image[0, :, 3, 5] / 255 - mean) / std)
    assert torch.equal(seen.target.argmax(1), raw.label)


def test_noise_is_small_and_the_spectrogram_rolls() -> None:
    quiet, noisy = (view(SMALL.model_copy(update={"noise": on})).audio for on in (False, True))
    rolls = []
    for before, after in zip(quiet, noisy, strict=True):
        gaps = [(after - before.roll(k, 0)) for k in range(len(before))]
        best = min(range(len(gaps)), key=lambda k: float(gaps[k].abs().max()))
        assert gaps[best].min() >= -1e-5 and gaps[best].max() <= 0.1
        rolls.append(best)
    assert len(set(rolls)) > 1


def test_blanked_cells_are_zero_before_the_normalisation() -> None:
    plain, blanked = (view(SMALL.model_copy(update={"noise": False, "spec_augment": on})).audio for on in (False, True))
    changed = plain != blanked
    assert changed.any()
    assert torch.allclose(blanked[changed], torch.tensor(1.1329), atol=1e-4)


def test_mixed_samples_share_labels_as_they_share_pictures() -> None:
    """Base s / C; a mixed sample's two labels get their parts of 1 - s on top, a plain one's label is 1 - s."""
    recipe, data = TUNING.model_copy(update={"mixup": 0.5, "smoothing": 0.1, "noise": False}), memory_data(train=22)
    plain, mixed = view(recipe.model_copy(update={"mixup": 0.0}), epoch=3), view(recipe, epoch=3, data=data)
    changed = (plain.image != mixed.image).flatten(1).any(1)
    assert 0 < changed.sum() < 8
    assert torch.equal((plain.audio != mixed.audio).flatten(1).any(1), changed)
    assert torch.equal(mixed.target[~changed], plain.target[~changed])
    read = tuple(asked(data))  # the batch, then the partners
    first, other = data.store.batch(read[:8]), data.store.batch(read[8:])
    for row, partner in zip(changed.nonzero()[:, 0].tolist(), range(len(other)), strict=True):
        whole, part = (normalise_image(raw.image[at]) for raw, at in ((first, row), (other, partner)))
        shares = ((mixed.image[row] - part) / (whole - part))[(whole - part).abs() > 1]
        share = float(shares.median())
        assert float((shares - share).abs().max()) < 1e-4
        expected = [0.025, 0.025, 0.025, 0.025]
        expected[int(first.label[row])] += 0.9 * share
        expected[int(other.label[partner])] += 0.9 * (1 - share)
        torch.testing.assert_close(mixed.target[row], torch.tensor(expected), atol=1e-4, rtol=0)


@dataclass
class OneFilm(MemoryStore):
    """Every sample is the same film of ten pictures; the one with number n is white at row 0, column n alone."""

    folder: Path = Path()

    def batch(self, ids: Sequence[str]) -> RawBatch:
        pictures = np.zeros((1, 10, 3, SIZES.image_size, SIZES.image_size), np.uint8)
        pictures[0, range(10), :, 0, range(10)] = 255
        np.save(self.folder / "film.npy", pictures)
        film = Film(Shards([self.folder / "film.npy"]), torch.zeros(len(ids), dtype=torch.long))
        return replace(super().batch(ids), film=film)


def test_of_a_film_any_picture_is_shown_and_of_its_partner_any_other(tmp_path: Path) -> None:
    data = replace(DATA, store=cast(Store, OneFilm(folder=tmp_path)))
    recipe = TUNING.model_copy(update={"mixup": 1.0})
    numbers = []
    for epoch in range(2):
        plain, mixed = (view(recipe.model_copy(update={"mixup": x}), epoch, data=data).image for x in (0.0, 1.0))
        # 0.224 and 0.456: of the green channel, which black and white leave at 0 and 1.
        alone, both = (image[:, 1, 0, :10] * 0.224 + 0.456 for image in (plain, mixed))  # (8, 10)
        torch.testing.assert_close(alone.sort(1).values, torch.eye(10)[9].expand(8, 10), atol=1e-5, rtol=0)
        torch.testing.assert_close(both.sum(1), torch.ones(8), atol=1e-5, rtol=0)
        own = alone.argmax(1)
        rest = both.scatter(1, own[:, None], 0.0)
        numbers.append((own, rest.argmax(1), rest.amax(1) > 1e-3))
    assert not torch.equal(numbers[0][0], numbers[1][0])
    own, partner, differs = (torch.cat(parts) for parts in zip(*numbers, strict=True))
    assert len(set(own.tolist())) > 4
    assert differs.sum() > 8 and len(set(partner[differs].tolist())) > 4


def test_balanced_sampling_draws_labels_alike() -> None:
    """Three of four samples bear one label; drawn by their weights, both labels come about as often."""
    ids = tuple(f"train/{number}" for number in range(400))
    labels = tuple((0,) if number % 4 else (1,) for number in range(400))
    store = replace(cast(MemoryStore, DATA.store))
    vars(store).update(ids=ids, labels=labels)
    data = replace(DATA, store=cast(Any, store), splits=replace(DATA.splits, train=ids))
    drawn = ViewFeed(data, TUNING.model_copy(update={"balanced": True}), ALONE).order(0)
    label_of = dict(zip(ids, labels, strict=True))
    assert len(drawn) == 400
    assert 150 < Counter(label_of[id] for id in drawn)[(1,)] < 250


@pytest.mark.parametrize(
    ("recipe", "ranks", "words"),
    [
        (SMALL, Ranks(0, 3), "cannot be shared by 3 processes"),
        (SMALL.model_copy(update={"batch_size": 23}), ALONE, "22"),
    ],
)
def test_a_batch_must_be_shareable_and_at_hand(recipe: Recipe, ranks: Ranks, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ViewFeed(DATA, recipe, ranks)
