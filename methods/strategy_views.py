"""Training strategies that change what a method sees: absent modalities, mixed samples, masked spectrograms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from scipy.special import betaincinv
from torch import Tensor

from mmbench.data.augment import mix_images, mix_labels, spec_augment
from mmbench.data.batch import Batch
from mmbench.errors import ConfigError
from mmbench.method import Method
from mmbench.registry import strategy
from mmbench.strategy import Strategy


def check_shares(owner: Strategy, *names: str) -> None:
    """Raise ConfigError unless these options lie between 0 and 1 and so does their sum."""
    values = [owner.options[name] for name in names]
    if min(values) < 0 or sum(values) > 1:
        shown = ", ".join(f"{name} = {value:g}" for name, value in zip(names, values, strict=True))
        sum_too = " and so must their sum" if len(names) > 1 else ""
        raise ConfigError(f"{owner.card.name}: {shown}; shares must lie between 0 and 1{sum_too}")


@strategy(
    "modality-dropout",
    title="Modality dropout",
    reference="Neverova et al., ModDrop: Adaptive Multi-Modal Gesture Recognition, TPAMI 2016",
    year=2016,
    options={"p_audio": 0.25, "p_vision": 0.25},
    bibtex="neverova2016moddrop",
    note="fills with 0 of the normalised input, the mean, whatever the fill of the suite's missing cases; "
    "a sample keeps its case's name",
)
class ModalityDropout(Strategy):
    """Takes audio or vision, never both, from samples that have both; the batch then says that it is absent."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        check_shares(self, "p_audio", "p_vision")

    def view(self, method: Method, batch: Batch, rng: torch.Generator) -> Batch:
        p_audio, p_vision = self.options["p_audio"], self.options["p_vision"]
        draw = torch.rand(len(batch), generator=rng)
        falls = torch.stack([draw < p_audio, (draw >= p_audio) & (draw < p_audio + p_vision)], dim=1)  # (B, 2)
        falls = falls.to(batch.audio.device)
        available = torch.ones_like(falls) if batch.available is None else batch.available
        lost = falls & available.all(dim=1, keepdim=True)
        return replace(
            batch,
            audio=batch.audio.masked_fill(lost[:, 0, None, None], 0.0),
            image=batch.image.masked_fill(lost[:, 1, None, None, None], 0.0),
            available=available & ~lost,
            affected=None if batch.affected is None else batch.affected | lost,
        )


@strategy(
    "mixup",
    title="Mixup",
    reference="Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018; rate and shares as in CAV-MAE",
    year=2018,
    options={"rate": 0.5, "alpha": 10.0},
    bibtex="zhang2018mixup",
    note="mixes spectrograms where CAV-MAE mixes waveforms; partners share case and absent modality, and come from "
    "the batch",
)
class Mixup(Strategy):
    """Both modalities and the labels of `rate` of the samples, mixed with another's by a share from Beta(alpha, alpha).

    A sample that is alone with its case and its absent modality stays as it is: what the batch tells remains true.
    Labels become shares (B, C), also of samples that are not mixed.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        check_shares(self, "rate")
        if self.options["alpha"] <= 0:
            raise ConfigError(f"mixup: alpha must be positive, got {self.options['alpha']:g}")

    def view(self, method: Method, batch: Batch, rng: torch.Generator) -> Batch:
        assert batch.label is not None  # the harness trains on labelled batches only
        device = batch.audio.device
        draws = torch.rand(3, len(batch), generator=rng, dtype=torch.float64)
        alpha = self.options["alpha"]
        share = torch.from_numpy(betaincinv(alpha, alpha, draws[0].numpy()))  # (B,)
        partner = partners(batch, draws[2])  # (B,)
        mixes = (draws[1] < self.options["rate"]) & (partner != torch.arange(len(batch)))
        share, partner = torch.where(mixes, share, 1.0).to(device, torch.float32), partner.to(device)
        by = share[:, None, None]
        return replace(
            batch,
            audio=by * batch.audio + (1 - by) * batch.audio[partner],
            image=mix_images(batch.image, batch.image[partner], share),
            label=mix_labels(batch.label, batch.label[partner], share, method.net.config.n_classes, smoothing=0.0),
        )


def partners(batch: Batch, draws: Tensor) -> Tensor:
    """(B,) int64: for each sample another of which the batch tells the same, or itself; `draws` (B,) of [0, 1)."""
    told = zip(
        batch.case or ("",) * len(batch),
        *(([None] * len(batch)) if known is None else known.tolist() for known in (batch.available, batch.affected)),
        strict=True,
    )
    groups: dict[str, list[int]] = {}
    for row, facts in enumerate(told):
        groups.setdefault(repr(facts), []).append(row)
    chosen = torch.arange(len(batch))
    for rows in groups.values():
        for place, row in enumerate(rows):
            other = int(draws[row] * (len(rows) - 1))
            chosen[row] = rows[other + (other >= place)] if len(rows) > 1 else row
    return chosen


@strategy(
    "specaugment",
    title="SpecAugment",
    reference="Park et al., SpecAugment, Interspeech 2019; widths as in CAV-MAE",
    year=2019,
    options={"bands": 48, "time_share": 0.1875},
    bibtex="park2019specaugment",
    note="masks with 0 after normalisation, the mean; CAV-MAE masks before it; no time warping",
)
class SpecAugment(Strategy):
    """One span of mel bands and one of frames masked per sample, each up to its option's width (exclusive).

    `bands` counts of 128, `time_share` is a share of the frames: 192 of the 1024 of ten seconds. A spectrogram that
    stands in for absent audio is left alone, since it would look different from that of a test sample.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        check_shares(self, "time_share")

    def view(self, method: Method, batch: Batch, rng: torch.Generator) -> Batch:
        draws = torch.rand(len(batch), 4, generator=rng).to(batch.audio.device)
        frames = round(self.options["time_share"] * batch.audio.shape[1])
        masked = spec_augment(batch.audio, draws, self.options["bands"], frames)
        if batch.available is not None:
            masked = torch.where(batch.available[:, 0, None, None], masked, batch.audio)
        return replace(batch, audio=masked)
