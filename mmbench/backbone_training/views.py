"""Training batches by CAV-MAE's recipe. Every draw is keyed by seed, epoch and place in the epoch: it depends neither
on batch size nor on the number of processes, and a training that goes on needs no state of a generator.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

from mmbench.backbone_training.recipes import Recipe
from mmbench.data.augment import (
    FREQUENCY_WIDTH,
    TIME_WIDTH,
    add_noise_and_roll,
    label_vector,
    mix_images,
    mix_labels,
    mix_waveforms,
    spec_augment,
)
from mmbench.data.batch import RawBatch
from mmbench.data.features import fbank, normalise_audio, normalise_image
from mmbench.errors import ConfigError
from mmbench.feed import TrialData
from mmbench.ranks import Ranks
from mmbench.rng import TRAINING, Draws, StreamKey, permutation, stream, uniforms

PUBLISHED_FRAMES = 1024
"""For which the width of a blanked span was chosen; shorter spectrograms lose the same share."""
MIXED_BETA = 10
"""The share of the first sample is drawn from Beta(10, 10)."""


@dataclass(frozen=True)
class View:
    """A batch as the model sees it."""

    audio: Tensor  # (B, T, 128)
    image: Tensor  # (B, 3, H, W)
    target: Tensor  # (B, C) float32: smoothed and mixed labels
    epoch: int
    places: tuple[int, ...]  # of the samples in the order of the epoch


@dataclass(frozen=True)
class Staged:
    """A batch as read, before its features are made on the device of the model."""

    epoch: int
    places: tuple[int, ...]
    mel: Tensor  # (B, T, 128) before normalisation
    image: Tensor  # (B, 3, H, W) uint8
    partner: Tensor  # (B, 3, H, W) uint8
    share: Tensor  # (B,): 1 where a sample is not mixed
    target: Tensor  # (B, C)
    spans: Tensor | None  # (B, 4) of [0, 1): places and widths of what is blanked
    cells: Tensor | None  # (B, T, 128) of [0, 1): noise
    roll: Tensor | None  # (B, 2) of [0, 1): strength of the noise, and the roll

    def to(self, device: torch.device) -> View:
        """The batch on a device; its floats differ between devices in their last bits."""
        mel = self.mel.to(device)
        if self.spans is not None:
            widest = TIME_WIDTH * mel.shape[1] // PUBLISHED_FRAMES
            mel = spec_augment(mel, self.spans.to(device), FREQUENCY_WIDTH, widest)
        audio = normalise_audio(mel)
        if self.cells is not None and self.roll is not None:
            audio = add_noise_and_roll(audio, self.cells.to(device), self.roll.to(device))
        image, share = normalise_image(self.image.to(device)), self.share.to(device)
        if bool((self.share < 1).any()):
            image = mix_images(image, normalise_image(self.partner.to(device)), share)
        return View(audio, image, self.target.to(device), self.epoch, self.places)


@dataclass(frozen=True)
class ViewFeed:
    """The training split of a data set under a recipe, as one of several processes reads it."""

    data: TrialData
    recipe: Recipe
    ranks: Ranks

    def __post_init__(self) -> None:
        size, count, samples = self.recipe.batch_size, self.ranks.world, len(self.data.splits.train)
        if size % count:
            raise ConfigError(
                f"a batch of {size} cannot be shared by {count} processes; set --batch-size to a multiple"
            )
        if size > samples:
            raise ConfigError(f"a batch of {size} is more than the {samples} training samples; lower --batch-size")

    @property
    def steps(self) -> int:
        """Optimiser steps of an epoch."""
        return len(self.data.splits.train) // self.recipe.batch_size

    def order(self, epoch: int) -> tuple[str, ...]:
        """The ids of an epoch: a permutation, or as many drawn with replacement, the rarer their labels the oftener."""
        ids = self.data.splits.train
        draw = stream(self._key(epoch), "", "backbone", 0, "order")
        if not self.recipe.balanced:
            return tuple(ids[row] for row in permutation(draw, len(ids)))
        rows = np.searchsorted(self._rarity, uniforms(draw, len(ids)) * self._rarity[-1])
        return tuple(ids[row] for row in rows)

    def stage(self, epoch: int, order: Sequence[str], step: int) -> Staged:
        """This process's part of a step; of an order of four, two processes read 0, 2 and 1, 3."""
        size, ranks = self.recipe.batch_size, self.ranks
        places = tuple(range(step * size + ranks.rank, (step + 1) * size, ranks.world))
        raw = self.data.store.batch([order[place] for place in places])
        keys = tuple(str(place) for place in places)
        draws = Draws(self._key(epoch), "backbone", 0, keys, raw.frames)
        raw = _shown(raw, draws, "shown")
        target = label_vector(raw.label, len(self.data.store.classes), self.recipe.smoothing)  # (B, C)
        recipe, ones = self.recipe, torch.ones(len(raw))
        spans = draws.uniform("blank", (4,)) if recipe.spec_augment else None
        cells = draws.uniform("noise", raw.fbank.shape[1:]) if recipe.noise else None
        roll = draws.uniform("roll", (2,)) if recipe.noise else None
        whole = Staged(epoch, places, raw.fbank, raw.image, raw.image, ones, target, spans, cells, roll)
        rows = (draws.uniform("mix") < recipe.mixup).nonzero()[:, 0]
        return self._mixed(whole, raw, draws.select(rows.tolist()), rows) if len(rows) else whole

    def _mixed(self, whole: Staged, raw: RawBatch, draws: Draws, rows: Tensor) -> Staged:
        """These rows mixed with another sample of the split each: waveforms, pictures and labels by one share."""
        ids = self.data.splits.train
        picked = draws.integers("partner", len(ids)).tolist()
        other = _shown(self.data.store.batch([ids[row] for row in picked]), draws, "partner shown")
        drawn = betaincinv(MIXED_BETA, MIXED_BETA, draws.uniform("share").double().numpy())
        share = torch.from_numpy(drawn).float()  # (b,)
        lengths = raw.wave_lengths[rows]
        wave = mix_waveforms(raw.wave[rows], other.wave, (lengths, other.wave_lengths), share)
        mel, _ = fbank(wave, lengths, raw.fbank.shape[1])
        labels = (raw.label[rows], other.label)
        target = mix_labels(*labels, share, len(self.data.store.classes), self.recipe.smoothing)
        return replace(
            whole,
            mel=whole.mel.index_copy(0, rows, mel),
            partner=whole.partner.index_copy(0, rows, other.image),
            share=whole.share.index_copy(0, rows, share),
            target=whole.target.index_copy(0, rows, target),
        )

    @cached_property
    def _rarity(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """(N,) running sum of the samples' weights: over their labels, 1000 / (samples of the label + 0.01)."""
        labels = dict(zip(self.data.store.ids, self.data.store.labels, strict=True))
        held = Counter(label for id in self.data.splits.train for label in labels[id])
        return np.cumsum([sum(1000 / (held[x] + 0.01) for x in labels[id]) for id in self.data.splits.train])

    def _key(self, epoch: int) -> StreamKey:
        return StreamKey(self.data.name, "train", self.recipe.seed, TRAINING, epoch)


def _shown(raw: RawBatch, draws: Draws, name: str) -> RawBatch:
    """Of a film any picture."""
    return raw if raw.film is None else replace(raw, image=raw.film.at(draws.integers(name, raw.film.length)))
