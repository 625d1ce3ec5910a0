"""The published recipes, and training batches that depend on neither batch size nor number of processes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from beds import MemoryStore
from training_bed import DATA, SMALL, TUNING, view

from mmbench.backbone_training.recipes import FINETUNE, PRETRAIN, Recipe, recipe_of
from mmbench.backbone_training.views import ViewFeed
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


def test_mixed_samples_share_labels_as_published() -> None:
    """A mixed sample's labels sum to 1, a plain one's of C classes to 1 - s / C."""
    recipe = TUNING.model_copy(update={"mixup": 0.5, "smoothing": 0.1, "noise": False})
    plain, mixed = view(recipe.model_copy(update={"mixup": 0.0})), view(recipe)
    changed = (plain.image != mixed.image).flatten(1).any(1)
    assert 0 < changed.sum() < 8
    assert torch.equal((plain.audio != mixed.audio).flatten(1).any(1), changed)
    classes = len(DATA.store.classes)
    torch.testing.assert_close(mixed.target[changed].sum(1), torch.ones(int(changed.sum())))
    torch.testing.assert_close(mixed.target[~changed].sum(1), torch.full((int((~changed).sum()),), 1 - 0.1 / classes))


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
