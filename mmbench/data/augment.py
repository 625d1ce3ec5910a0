"""The training-time changes of the CAV-MAE recipe as pure functions: every draw is an argument."""

from __future__ import annotations

import torch
from torch import Tensor

FREQUENCY_WIDTH = 48  # mel bins, exclusive
TIME_WIDTH = 192  # frames, exclusive
NOISE_SCALE = 0.1


def spec_augment(
    fbank: Tensor, draws: Tensor, frequency_width: int = FREQUENCY_WIDTH, time_width: int = TIME_WIDTH
) -> Tensor:
    """(B, T, F) before normalisation, with one band and one span of each sample set to 0.

    `draws` (B, 4) of [0, 1): width and place of the band, width and place of the span.
    """
    band = _span(draws[:, 0], draws[:, 1], frequency_width, fbank.shape[2])  # (B, F)
    span = _span(draws[:, 2], draws[:, 3], time_width, fbank.shape[1])  # (B, T)
    return fbank.masked_fill(band[:, None, :] | span[:, :, None], 0.0)


def _span(width_draw: Tensor, place_draw: Tensor, widest: int, size: int) -> Tensor:
    """(B, size) bool: widths and starts are truncated to integers."""
    width = width_draw * min(widest, size)
    start = (place_draw * (size - width)).long()
    at = torch.arange(size, device=width_draw.device)
    return (at >= start[:, None]) & (at < (start + width.long())[:, None])


def add_noise_and_roll(audio: Tensor, cells: Tensor, draws: Tensor) -> Tensor:
    """(B, T, F) after normalisation: noise of a random strength up to 0.1, then a roll along time.

    `cells` (B, T, F) of [0, 1) is the noise; `draws` (B, 2) of [0, 1): its strength, the roll within [-T, T).
    """
    frames = audio.shape[1]
    noisy = audio + cells * (draws[:, 0] * NOISE_SCALE)[:, None, None]
    shift = (draws[:, 1] * 2 * frames).long() - frames  # (B,)
    source = (torch.arange(frames, device=audio.device) - shift[:, None]) % frames  # (B, T)
    return noisy.gather(1, source[:, :, None].expand_as(noisy))


def mix_waveforms(first: Tensor, second: Tensor, lengths: tuple[Tensor, Tensor], share: Tensor) -> Tensor:
    """share * first + (1 - share) * second, each freed of its mean; (B, S), with the lengths (B,) of the first.

    The second is cut or zero-padded to the first's length, and the mean of the sum is removed again.
    """
    samples = max(first.shape[1], second.shape[1])
    one, other = (_centred(_widen(wave, samples), held) for wave, held in zip((first, second), lengths, strict=True))
    mixed = share[:, None] * one + (1 - share[:, None]) * other
    return _centred(mixed[:, : first.shape[1]], lengths[0])


def _widen(wave: Tensor, samples: int) -> Tensor:
    return torch.nn.functional.pad(wave, (0, samples - wave.shape[1]))


def _centred(wave: Tensor, lengths: Tensor) -> Tensor:
    """Mean-free over the valid samples, 0 beyond them."""
    inside = torch.arange(wave.shape[1], device=wave.device) < lengths[:, None]  # (B, S)
    held = wave.masked_fill(~inside, 0.0)
    return (held - (held.sum(1) / lengths.clamp(min=1))[:, None]).masked_fill(~inside, 0.0)


def mix_images(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """(B, 3, H, W), both normalised."""
    by = share[:, None, None, None]
    return by * first + (1 - by) * second


def multi_hot(label: Tensor, classes: int) -> Tensor:
    """(B, C) float32 from (B,) int64; a multi-hot label passes unchanged."""
    if label.ndim == 2:
        return label
    return torch.nn.functional.one_hot(label, classes).float()


def label_vector(label: Tensor, classes: int, smoothing: float) -> Tensor:
    """(B, C): positives are set to 1 - smoothing, all others to smoothing / classes."""
    hot = multi_hot(label, classes)
    return torch.where(hot > 0, 1.0 - smoothing, smoothing / classes)


def mix_labels(first: Tensor, second: Tensor, share: Tensor, classes: int, smoothing: float) -> Tensor:
    """(B, C): both samples' positives are added, by their share, to a base of smoothing / classes."""
    by = share[:, None]
    mixed = by * multi_hot(first, classes) + (1 - by) * multi_hot(second, classes)
    return smoothing / classes + (1 - smoothing) * mixed
