"""The noise of *Prompt the Missing*, twice: as its paper describes it and as its published code does it.

As described: every type is active, shift and mask act on time and stay within the valid frames, and the audio noise
is in raw log-mel units (its commands normalise with mean 0 and std 1), which on our normalised spectrogram is
std / 4.4849. As shipped: shift and mask act on mel bins, images become zero (the mean colour), and the audio noise is
added to the normalised spectrogram as it comes. A mask is 0 as normalised in both, the mean level. Each has a strong
form (this modality alone is noisy) and a weak one (both are).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.ndimage import uniform_filter1d
from torch import Tensor
from torch.nn import functional

from mmbench.data.features import AUDIO_STD
from mmbench.parallel import side_by_side
from mmbench.registry import corruption
from mmbench.rng import Draws

GAUSSIAN, SHIFT, MASK = range(3)
BLUR, PIXELATE = 1, 2  # of vision; 0 is GAUSSIAN and 3 "none", an image of zeros
AUDIO_TYPES, VISION_TYPES = 3, 4
AUDIO_STD_ALONE, AUDIO_STD_BOTH = 10.0, 1.0
VISION_STD_ALONE, VISION_STD_BOTH = 5.0, 0.5
BLUR_ALONE, BLUR_BOTH = 51, 7  # pixels
PIXELATE_ALONE, PIXELATE_BOTH = 0.05, 0.3  # share of the side that is kept
MAX_SHIFT, MAX_MASK = 64, 32  # frames or mel bins; shifts of [-64, 64), masks of [0, 32)
CLAMP = 3.0


@corruption(
    "seed/audio-alone",
    family="seed",
    modality="audio",
    stage="normalised",
    severities=(0,),
    variant="as-described",
    reference="Prompt the Missing: gaussian std 10 in raw log-mel units, time shift, time mask",
)
def audio_alone(x: Tensor, draws: Draws, severity: int) -> Tensor:
    return _audio_over_time(x, draws, AUDIO_STD_ALONE / AUDIO_STD)


@corruption(
    "seed/audio-both",
    family="seed",
    modality="audio",
    stage="normalised",
    severities=(0,),
    variant="as-described",
    reference="Prompt the Missing: gaussian std 1 in raw log-mel units, time shift, time mask",
)
def audio_both(x: Tensor, draws: Draws, severity: int) -> Tensor:
    return _audio_over_time(x, draws, AUDIO_STD_BOTH / AUDIO_STD)


@corruption(
    "seed/vision-alone",
    family="seed",
    modality="vision",
    stage="normalised",
    severities=(0,),
    variant="as-described",
    reference="Prompt the Missing: gaussian std 5 clamped to 3, box blur 51, pixelate .05, none (zeros)",
)
def vision_alone(x: Tensor, draws: Draws, severity: int) -> Tensor:
    return _vision(x, draws, VISION_STD_ALONE, BLUR_ALONE, PIXELATE_ALONE)


@corruption(
    "seed/vision-both",
    family="seed",
    modality="vision",
    stage="normalised",
    severities=(0,),
    variant="as-described",
    reference="Prompt the Missing: gaussian std .5 clamped to 3, box blur 7, pixelate .3, none (zeros)",
)
def vision_both(x: Tensor, draws: Draws, severity: int) -> Tensor:
    return _vision(x, draws, VISION_STD_BOTH, BLUR_BOTH, PIXELATE_BOTH)


@corruption(
    "seed/audio-alone-as-shipped",
    family="seed",
    modality="audio",
    stage="normalised",
    severities=(0,),
    variant="as-shipped",
    reference="Prompt the Missing, published code: normalised + gaussian std 10, mel roll, mel mask",
)
def audio_alone_as_shipped(x: Tensor, draws: Draws, severity: int) -> Tensor:
    return _audio_over_mel(x, draws, AUDIO_STD_ALONE)


@corruption(
    "seed/audio-both-as-shipped",
    family="seed",
    modality="audio",
    stage="normalised",
    severities=(0,),
    variant="as-shipped",
    reference="Prompt the Missing, published code: normalised + gaussian std 1, mel roll, mel mask",
)
def audio_both_as_shipped(x: Tensor, draws: Draws, severity: int) -> Tensor:
    return _audio_over_mel(x, draws, AUDIO_STD_BOTH)


@corruption(
    "seed/vision-alone-as-shipped",
    family="seed",
    modality="vision",
    stage="normalised",
    severities=(0,),
    variant="as-shipped",
    deterministic=True,
    reference="Prompt the Missing, published code: every image zero",
)
def vision_alone_as_shipped(x: Tensor, draws: Draws, severity: int) -> Tensor:
    return torch.zeros_like(x)


@corruption(
    "seed/vision-both-as-shipped",
    family="seed",
    modality="vision",
    stage="normalised",
    severities=(0,),
    variant="as-shipped",
    deterministic=True,
    reference="Prompt the Missing, published code: every image zero",
)
def vision_both_as_shipped(x: Tensor, draws: Draws, severity: int) -> Tensor:
    return torch.zeros_like(x)


def _audio_over_time(x: Tensor, draws: Draws, std: float) -> Tensor:
    def change(sample: Tensor, kind: int, own: Draws) -> None:
        valid = sample[: int(own.lengths)]  # (t, 128): padding stays where it is
        if kind == GAUSSIAN:
            _add_noise(sample, own, std)
        elif kind == SHIFT:
            valid.copy_(valid.roll(_shift(own), 0))
        elif kind == MASK:
            valid[_masked(own, valid.shape[0])] = 0

    return _each(x, draws, AUDIO_TYPES, change)


def _audio_over_mel(x: Tensor, draws: Draws, std: float) -> Tensor:
    def change(sample: Tensor, kind: int, own: Draws) -> None:
        if kind == GAUSSIAN:
            _add_noise(sample, own, std)
        elif kind == SHIFT:
            sample.copy_(sample.roll(_shift(own), 1))
        elif kind == MASK:
            sample[:, _masked(own, sample.shape[1])] = 0

    return _each(x, draws, AUDIO_TYPES, change)


def _vision(x: Tensor, draws: Draws, std: float, blur: int, kept: float) -> Tensor:
    def change(sample: Tensor, kind: int, own: Draws) -> None:
        if kind == GAUSSIAN:
            _add_noise(sample, own, std)
            sample.clamp_(-CLAMP, CLAMP)
        elif kind == BLUR:
            sample.copy_(_box_blur(sample, blur))
        elif kind == PIXELATE:
            sample.copy_(_pixelate(sample, kept))
        else:
            sample.zero_()

    return _each(x, draws, VISION_TYPES, change)


def _each(x: Tensor, draws: Draws, types: int, change: Callable[[Tensor, int, Draws], None]) -> Tensor:
    """x (B, ...) with each sample changed in place by its type: only the streams of that type are generated."""
    out = torch.empty_like(x)
    kinds = draws.integers("type", types).tolist()

    def one(row: int) -> None:
        change(out[row].copy_(x[row]), kinds[row], draws.select([row]))

    side_by_side(one, range(len(x)))
    return out


def _add_noise(sample: Tensor, own: Draws, std: float) -> None:
    sample.add_(own.normal("noise", sample.shape)[0].to(sample.device), alpha=std)


def _shift(own: Draws) -> int:
    return int(own.integers("shift", 2 * MAX_SHIFT)) - MAX_SHIFT


def _masked(own: Draws, size: int) -> slice:
    width = min(int(own.integers("mask_width", MAX_MASK)), size)
    start = int(own.integers("mask_start", max(size - width, 1)))
    return slice(start, start + width)


def _box_blur(image: Tensor, size: int) -> Tensor:
    """Mean over a size x size box with zeros outside; a running sum, so that the cost does not grow with the box."""
    for dim in (1, 2):
        image = _running_mean(image, size, dim)
    return image  # (3, H, W)


def _running_mean(image: Tensor, size: int, dim: int) -> Tensor:
    if image.device.type == "cpu":  # the same numbers in a third of the time
        return torch.from_numpy(np.asarray(uniform_filter1d(image.numpy(), size, axis=dim, mode="constant")))
    return summed_mean(image, size, dim)


def summed_mean(image: Tensor, size: int, dim: int) -> Tensor:
    """The running mean along one side as differences of cumulative sums, on any device."""
    before, after = size // 2, (size - 1) // 2
    sides = (0,) * (2 * (image.dim() - 1 - dim)) + (before + 1, after)
    sums = functional.pad(image.double(), sides).cumsum(dim)
    length = image.shape[dim]
    return (sums.narrow(dim, size, length) - sums.narrow(dim, 0, length)).div_(size).to(image.dtype)


def _pixelate(image: Tensor, kept: float) -> Tensor:
    """Bilinear down without anti-aliasing at stride 1 / kept (the last pixels are ignored), nearest up."""
    height, width = image.shape[1:]
    kept = max(kept, 1 / height, 1 / width)  # at least one pixel
    small = functional.interpolate(image[None], scale_factor=kept, mode="bilinear", align_corners=False)
    return functional.interpolate(small, size=(height, width), mode="nearest")[0]  # (3, H, W)
