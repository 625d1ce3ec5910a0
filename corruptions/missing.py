"""What stands in the place of an absent modality, in the normalised domain."""

from __future__ import annotations

import torch
from torch import Tensor

from mmbench.data.features import AUDIO_MEAN, AUDIO_STD, IMAGE_MEAN, IMAGE_STD
from mmbench.registry import corruption
from mmbench.rng import Draws

LOG_FLOOR = -15.942385  # log of the float32 epsilon: every cell of the spectrogram of a zero waveform


@corruption(
    "missing/audio-silence",
    family="missing",
    modality="audio",
    stage="missing",
    severities=(0,),
    deterministic=True,
    reference="spectrogram of a zero waveform, over all frames so that the clip's length does not show",
)
def audio_silence(x: Tensor, draws: Draws, severity: int) -> Tensor:
    return torch.full_like(x, (LOG_FLOOR - AUDIO_MEAN) / AUDIO_STD)  # (B, T, 128), about -2.42


@corruption(
    "missing/audio-mean",
    family="missing",
    modality="audio",
    stage="missing",
    severities=(0,),
    deterministic=True,
    reference="the mean spectrogram: 0 after normalisation",
)
def audio_mean(x: Tensor, draws: Draws, severity: int) -> Tensor:
    return torch.zeros_like(x)


@corruption(
    "missing/audio-raw-zero",
    family="missing",
    modality="audio",
    stage="missing",
    severities=(0,),
    deterministic=True,
    reference="0 before normalisation, CAV-MAE's pad value: louder than the average frame",
)
def audio_raw_zero(x: Tensor, draws: Draws, severity: int) -> Tensor:
    return torch.full_like(x, (0 - AUDIO_MEAN) / AUDIO_STD)  # about +1.13


@corruption(
    "missing/vision-black",
    family="missing",
    modality="vision",
    stage="missing",
    severities=(0,),
    deterministic=True,
    reference="true black: RGB 0 before normalisation",
)
def vision_black(x: Tensor, draws: Draws, severity: int) -> Tensor:
    return _uniform_colour(x, 0.0)


@corruption(
    "missing/vision-mean",
    family="missing",
    modality="vision",
    stage="missing",
    severities=(0,),
    deterministic=True,
    reference="the mean colour, RGB (124, 116, 104): 0 after normalisation",
)
def vision_mean(x: Tensor, draws: Draws, severity: int) -> Tensor:
    return torch.zeros_like(x)


@corruption(
    "missing/vision-white",
    family="missing",
    modality="vision",
    stage="missing",
    severities=(0,),
    deterministic=True,
    reference="true white: RGB 255 before normalisation, as missing-aware prompts (CVPR 2023)",
)
def vision_white(x: Tensor, draws: Draws, severity: int) -> Tensor:
    return _uniform_colour(x, 1.0)


def _uniform_colour(x: Tensor, grey: float) -> Tensor:
    channels = [(grey - mean) / std for mean, std in zip(IMAGE_MEAN, IMAGE_STD, strict=True)]
    return (
        torch.tensor(channels, dtype=x.dtype, device=x.device).view(1, 3, 1, 1).expand(x.shape).clone()
    )  # (B, 3, H, W)
