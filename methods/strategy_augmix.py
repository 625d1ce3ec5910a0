"""AugMix: the prediction stays the same under mixtures of harmless changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from scipy.special import betaincinv, gammaincinv
from torch import Tensor
from torch.nn import functional as F

from mmbench.data.batch import Batch
from mmbench.data.features import IMAGE_MEAN, IMAGE_STD
from mmbench.errors import ConfigError
from mmbench.method import Loss, Method, Recipe
from mmbench.registry import strategy
from mmbench.strategy import Inner, Strategy

VIEWS = 2
SMALLEST_SHARE = 1e-6

Change = Callable[[Tensor, Tensor], Tensor]
"""A view (b, C, H, W) of (b, C, H, W), by a strength (b,) on the CPU whose sign is a direction."""


@dataclass(frozen=True)
class Warp:
    """An affine map around the centre; `size` is its extent at strength 1, what comes from outside is 0, the mean.

    Row and column name the entry of the 3 x 3 generator in (x, y, 1), whose exponential maps coordinates of [-1, 1].
    """

    row: int
    column: int
    size: float

    def __call__(self, x: Tensor, strength: Tensor) -> Tensor:
        generator = torch.zeros(len(x), 3, 3)
        generator[:, self.row, self.column] = self.size * strength
        theta = torch.matrix_exp(generator)[:, :2].to(x, non_blocking=True)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)


@dataclass(frozen=True)
class OnPixels:
    """A change that is defined on values of [0, 1], for normalised images."""

    change: Change

    def __call__(self, x: Tensor, strength: Tensor) -> Tensor:
        mean, std = (torch.tensor(v).view(3, 1, 1).to(x, non_blocking=True) for v in (IMAGE_MEAN, IMAGE_STD))
        pixels = (x * std + mean).clamp(0, 1)
        return (self.change(pixels, strength.to(x, non_blocking=True).view(-1, 1, 1, 1)) - mean) / std


def posterise(pixels: Tensor, strength: Tensor) -> Tensor:
    """Four bits a channel at strength 0, one less for every quarter, never fewer than one."""
    levels = (2 ** (4 - 4 * strength.abs())).floor().clamp(min=2)
    return (pixels * levels).floor().minimum(levels - 1) / (levels - 1)


def solarise(pixels: Tensor, strength: Tensor) -> Tensor:
    return torch.where(pixels >= 1 - strength.abs(), 1 - pixels, pixels)


def equalise(pixels: Tensor, strength: Tensor) -> Tensor:
    """Flat histograms of each channel, at 256 levels; a channel of one value stays as it is."""
    level = (pixels * 255).round().long().flatten(2)  # (b, 3, HW)
    counts = torch.zeros(*level.shape[:2], 256, device=pixels.device)
    below = counts.scatter_add(2, level, torch.ones_like(level, dtype=counts.dtype)).cumsum(2)
    lowest = below.gather(2, level.amin(2, keepdim=True))
    spread = level.shape[2] - lowest
    flat = (below.gather(2, level) - lowest) / spread.clamp(min=1)
    return torch.where(spread > 0, flat, pixels.flatten(2)).view(pixels.shape)


# None of these is a corruption: no noise, blur, brightness, contrast, rotation, masking, desynchrony or roll of bands.
IMAGE_CHANGES: tuple[Change, ...] = (
    Warp(0, 1, 0.3),  # shear
    Warp(1, 0, 0.3),
    Warp(0, 2, 2 / 3),  # shift by a third of the side
    Warp(1, 2, 2 / 3),
    OnPixels(posterise),
    OnPixels(solarise),
    OnPixels(equalise),
)
AUDIO_CHANGES: tuple[Change, ...] = (  # rows are frames, columns are bands
    Warp(1, 1, 0.5),  # faster or slower
    Warp(0, 0, 0.5),  # narrower or wider spectrum
    Warp(0, 1, 0.3),  # bands drift with time
    Warp(1, 0, 0.3),  # high bands come earlier or later
)


@dataclass(frozen=True)
class Mixture:
    """How AugMix composes changes; shares come from Dirichlet(alpha) and Beta(alpha, alpha)."""

    width: int
    depth: int
    alpha: float
    severity: float

    def columns(self) -> int:
        """Uniforms a chain takes: the share of the original, its own share, its length, and three for each change."""
        return 3 + 3 * self.depth

    def mixed(self, x: Tensor, draws: Tensor, changes: Sequence[Change]) -> Tensor:
        """An augmented view of x (B, C, H, W); `draws` (B, width, columns) of [0, 1)."""
        uniform = draws.double().numpy()
        kept = torch.from_numpy(betaincinv(self.alpha, self.alpha, uniform[:, 0, 0])).to(x, non_blocking=True)  # (B,)
        gammas = torch.from_numpy(gammaincinv(self.alpha, uniform[:, :, 1])).clamp(min=SMALLEST_SHARE)
        shares = (gammas / gammas.sum(dim=1, keepdim=True)).to(x, non_blocking=True)  # (B, width)
        total = torch.zeros_like(x)
        for chain in range(self.width):
            total += shares[:, chain, None, None, None] * self._chain(x, draws[:, chain, 2:], changes)
        return torch.lerp(total, x, kept[:, None, None, None])

    def _chain(self, x: Tensor, draws: Tensor, changes: Sequence[Change]) -> Tensor:
        x, length = x.clone(), (draws[:, 0] * self.depth).long() + 1
        for step in range(self.depth):
            which, strength, sign = draws[:, 1 + 3 * step : 4 + 3 * step].unbind(1)
            signed = (0.1 + strength * (self.severity - 0.1)) / 10 * torch.where(sign < 0.5, -1.0, 1.0)
            chosen = (which * len(changes)).long().masked_fill(length <= step, -1)
            for index, change in enumerate(changes):
                rows = (chosen == index).nonzero()[:, 0]  # on the CPU: no wait for the device
                if len(rows):
                    at = rows.to(x.device, non_blocking=True)
                    x[at] = change(x[at], signed[rows])
        return x


@dataclass(frozen=True)
class Drawn(Batch):
    """A batch with the uniforms of its augmented views; the views themselves are made when the loss needs them.

    So strategies that come later may still change the samples, and parts of the batch keep their draws.
    """

    draws: Tensor | None = None  # (B, VIEWS, 2, width, columns) on the CPU; modalities are audio, vision

    def select(self, index: Tensor | Sequence[int]) -> Drawn:
        assert self.draws is not None
        return drawn(super().select(index), self.draws[torch.as_tensor(index, dtype=torch.int64).cpu()])


def drawn(batch: Batch, draws: Tensor) -> Drawn:
    return Drawn(**{f.name: getattr(batch, f.name) for f in fields(Batch)}, draws=draws)


@strategy(
    "augmix",
    title="AugMix consistency",
    reference="Hendrycks et al., AugMix, ICLR 2020",
    year=2020,
    extra_forwards=2.0,
    options={"width": 3, "depth": 3, "alpha": 1.0, "weight": 12.0, "severity": 3.0},
    bibtex="hendrycks2020augmix",
    note="both modalities are augmented; images without rotation and autocontrast, spectrograms by stretching and "
    "shearing; labels with several classes: divergence per class, averaged",
)
class AugMix(Strategy):
    """The inner objective plus `weight` times the Jensen-Shannon divergence between a sample and two views of it.

    A view mixes the sample with `width` chains of 1 to `depth` changes. What stands in for an absent modality is left
    alone. Without `view` (when a step is only counted) every draw is 1/2.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        for name in ("alpha", "weight", "severity"):
            if self.options[name] <= 0:
                raise ConfigError(f"augmix: {name} must be positive, got {self.options[name]:g}")
        if self.options["severity"] > 10:
            raise ConfigError(f"augmix: severity goes up to 10, got {self.options['severity']:g}")
        self._mixture = Mixture(**{key: value for key, value in self.options.items() if key != "weight"})

    def view(self, method: Method, batch: Batch, rng: torch.Generator) -> Batch:
        return drawn(batch, torch.rand(self._shape(batch), generator=rng))

    def loss(self, method: Method, batch: Batch, inner: Inner) -> Loss:
        clean = inner(batch)
        draws = batch.draws if isinstance(batch, Drawn) and batch.draws is not None else None
        draws = torch.full(self._shape(batch), 0.5) if draws is None else draws
        others = [method.logits(self._augmented(batch, draws[:, i])) for i in range(VIEWS)]
        spread = jensen_shannon([clean.logits, *others], method.recipe)
        return Loss(clean.total + self.options["weight"] * spread, clean.logits)

    def _shape(self, batch: Batch) -> tuple[int, ...]:
        return (len(batch), VIEWS, 2, self._mixture.width, self._mixture.columns())

    def _augmented(self, batch: Batch, draws: Tensor) -> Batch:
        audio = self._mixture.mixed(batch.audio.unsqueeze(1), draws[:, 0], AUDIO_CHANGES).squeeze(1)
        image = self._mixture.mixed(batch.image, draws[:, 1], IMAGE_CHANGES)
        if batch.available is not None:
            audio = torch.where(batch.available[:, 0, None, None], audio, batch.audio)
            image = torch.where(batch.available[:, 1, None, None, None], image, batch.image)
        return replace(batch, audio=audio, image=image)


def jensen_shannon(logits: Sequence[Tensor], recipe: Recipe) -> Tensor:
    """Mean over samples (and over classes that are judged one by one) of the divergence among several logits (B, C)."""
    stacked = torch.stack([each.float() for each in logits])  # (V, B, C)
    if recipe.multi_label or recipe.bce:
        log_p = torch.stack([F.logsigmoid(stacked), F.logsigmoid(-stacked)], dim=-1)  # (V, B, C, 2)
    else:
        log_p = stacked.log_softmax(dim=-1)
    p = log_p.exp()
    centre = p.mean(dim=0).clamp(min=1e-7).log()
    return (p * (log_p - centre)).sum(dim=-1).mean()
