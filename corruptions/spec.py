"""Masks on the normalised spectrogram: the augmentation SpecAugment as a corruption of stated strength."""

from __future__ import annotations

from torch import Tensor

from corruptions.sensor_audio import disjoint
from mmbench.registry import corruption
from mmbench.rng import Draws

MASKED_SHARE = {1: 0.05, 2: 0.1, 3: 0.2, 4: 0.3, 5: 0.5}  # of the valid frames
MASKED_BINS = {1: 8, 2: 16, 3: 32, 4: 48, 5: 64}  # of 128 mel bins
MASKS = 2

SHARED = {
    "family": "spec",
    "modality": "audio",
    "stage": "normalised",
    "variant": "fixed-width",
}


@corruption(
    "spec/time_mask",
    **SHARED,
    reference="Park et al., SpecAugment, Interspeech 2019: two masks over .05 .1 .2 .3 .5 of the frames",
    note="widths are fixed and masks disjoint, where SpecAugment draws widths and lets masks overlap, so that a "
    "severity is a share; within the valid frames; masked is 0 after normalisation, the mean level; no time warp",
)
def time_mask(x: Tensor, draws: Draws, severity: int) -> Tensor:
    """Stretches of time at the mean level."""
    out = x.clone()  # (B, T, 128)
    for row, frames in enumerate(draws.lengths.tolist()):
        for part in disjoint(draws.select([row]), round(MASKED_SHARE[severity] * frames), MASKS, frames):
            out[row, part] = 0
    return out


@corruption(
    "spec/freq_mask",
    **SHARED,
    reference="Park et al., SpecAugment, Interspeech 2019: two masks over 8 16 32 48 64 of the mel bins",
    note="widths are fixed and masks disjoint, where SpecAugment draws widths and lets masks overlap, so that a "
    "severity is a share; valid frames only; masked is 0 after normalisation, the mean level; no time warp",
)
def freq_mask(x: Tensor, draws: Draws, severity: int) -> Tensor:
    """Bands of the spectrum at the mean level."""
    out = x.clone()  # (B, T, 128)
    bins = x.shape[2]
    for row, frames in enumerate(draws.lengths.tolist()):
        for part in disjoint(draws.select([row]), min(MASKED_BINS[severity], bins), MASKS, bins):
            out[row, :frames, part] = 0
    return out
