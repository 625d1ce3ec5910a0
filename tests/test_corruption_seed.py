"""The paper's noise, as described and as shipped, by its statistics."""

from __future__ import annotations

import pytest
import torch
from scipy.ndimage import uniform_filter1d
from torch import Tensor
from torch.nn import functional

from corruptions.seed import summed_mean
from mmbench.corruption import load_corruption
from mmbench.rng import StreamKey

KEY = StreamKey("synthetic-av", "test", 0)
FRAMES, VALID = 256, 200


def corrupt(name: str, x: Tensor, lengths: int, ids: range | None = None) -> Tensor:
    corruption = load_corruption(name)
    names = tuple(f"s{i}" for i in (ids or range(len(x))))
    return corruption.apply(x, corruption.draws(KEY, names, torch.full((len(x),), lengths)))


def types(name: str, count: int, number: int) -> Tensor:
    corruption = load_corruption(name)
    draws = corruption.draws(KEY, tuple(f"s{i}" for i in range(count)), torch.full((count,), VALID))
    return draws.integers("type", number)


def ramp(count: int) -> Tensor:
    """Every cell different and none zero, so that a roll or a mask can be read off."""
    return (torch.arange(FRAMES * 128, dtype=torch.float32) + 1).reshape(1, FRAMES, 128).repeat(count, 1, 1)


@pytest.mark.parametrize("suffix", ["", "-as-shipped"])
@pytest.mark.parametrize(("form", "std"), [("alone", 10.0), ("both", 1.0)])
def test_audio_types_and_noise(form: str, std: float, suffix: str) -> None:
    name, count = f"seed/audio-{form}{suffix}", 900
    x = torch.zeros(count, 64, 128)
    added = corrupt(name, x, 64)
    kinds = types(name, count, 3)
    assert (kinds.bincount(minlength=3) / count - 1 / 3).abs().max() < 0.05
    noisy = added[kinds == 0]
    expected = std if suffix else std / 4.4849
    assert abs(noisy.std() / expected - 1) < 0.01
    assert abs(noisy.mean()) < 0.01 * expected
    assert not added[kinds != 0].any()


def test_described_shift_and_mask_act_on_valid_time() -> None:
    count = 60
    x = ramp(count)
    out, kinds = corrupt("seed/audio-alone", x, VALID), types("seed/audio-alone", count, 3)
    changed = out != x
    assert not changed[kinds != 0, VALID:].any(), "padding moved"
    shifts = ((out[kinds == 1, :VALID, 0] - 1) / 128)[:, 0]  # the frame that came to position 0
    shifts = torch.where(shifts > VALID / 2, VALID - shifts, -shifts)
    assert shifts.min() >= -64 and shifts.max() < 64 and len(set(shifts.tolist())) > 10
    for row, shift in zip(out[kinds == 1], shifts.long().tolist(), strict=True):
        assert torch.equal(row[:VALID], x[0, :VALID].roll(shift, 0))
    zero = out[kinds == 2] == 0
    assert torch.equal(zero.all(2), zero.any(2)), "whole frames are masked"
    assert zero.all(2).sum(1).max() < 32


def test_shipped_shift_and_mask_act_on_mel_bins() -> None:
    count = 60
    x = ramp(count)
    name = "seed/audio-alone-as-shipped"
    out, kinds = corrupt(name, x, VALID), types(name, count, 3)
    rolled = out[kinds == 1]
    assert torch.equal(rolled.sort(2).values, x[: len(rolled)]), "each frame keeps its values"
    starts = rolled[:, 0, 0]  # the bin that came to position 0, plus one
    assert len(set(starts.tolist())) > 10
    zero = out[kinds == 2] == 0
    assert torch.equal(zero.all(1), zero.any(1)), "whole bins are masked, padding included"
    assert zero.all(1).sum(1).max() < 32


def test_mask_share() -> None:
    name, count = "seed/audio-both", 1500
    out = corrupt(name, torch.ones(count, 100, 128), 100)
    masked = (out[types(name, count, 3) == 2] == 0).float().mean() * 100
    assert abs(masked - 15.5) < 1.5  # the mean of 0..31 frames, of 100


def test_short_clips_are_masked_within_their_length() -> None:
    out = corrupt("seed/audio-alone", torch.ones(90, 64, 128), 5)
    assert (out[types("seed/audio-alone", 90, 3) == 2, 5:] == 1).all()


@pytest.mark.parametrize(("form", "std", "box"), [("alone", 5.0, 51), ("both", 0.5, 7)])
def test_described_vision(form: str, std: float, box: int) -> None:
    name, count = f"seed/vision-{form}", 400
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, 48, 48, generator=generator).clamp_(-2, 2)
    x = image.repeat(count, 1, 1, 1)
    out, kinds = corrupt(name, x, 48), types(name, count, 4)
    assert (kinds.bincount(minlength=4) / count - 1 / 4).abs().max() < 0.06
    noisy = out[kinds == 0]
    assert noisy.abs().max() <= 3
    expected = (std * torch.randn(300, 3, 48, 48, generator=generator) + image).clamp(-3, 3)
    assert abs(noisy.std() / expected.std() - 1) < 0.01
    blurred = functional.avg_pool2d(functional.pad(image, [box // 2] * 4), box, stride=1)
    torch.testing.assert_close(out[kinds == 1], blurred.expand(int((kinds == 1).sum()), -1, -1, -1), atol=1e-5, rtol=0)
    assert not out[kinds == 3].any()


@pytest.mark.parametrize(("form", "kept", "cells"), [("alone", 0.05, 11), ("both", 0.3, 67)])
def test_pixelate(form: str, kept: float, cells: int) -> None:
    name = f"seed/vision-{form}"
    row = int((types(name, 40, 4) == 2).nonzero()[0])
    ramp = torch.arange(224.0).expand(1, 3, 224, 224)
    out = corrupt(name, ramp, 224, range(row, row + 1))[0, 0, 0]
    seen = torch.tensor(sorted(set(out.tolist())))
    assert len(seen) == cells
    torch.testing.assert_close(seen, (torch.arange(cells) + 0.5) / kept - 0.5, atol=1e-3, rtol=0)


@pytest.mark.parametrize("form", ["alone", "both"])
def test_shipped_vision_is_zero(form: str) -> None:
    assert not corrupt(f"seed/vision-{form}-as-shipped", torch.randn(5, 3, 32, 32), 32).any()


def test_samples_draw_apart() -> None:
    x = torch.zeros(30, 32, 128)
    out = corrupt("seed/audio-alone", x, 32)
    noisy = out[types("seed/audio-alone", 30, 3) == 0]
    assert len(torch.unique(noisy[:, 0, 0])) == len(noisy)


@pytest.mark.parametrize("box", [7, 51])
def test_the_box_mean_of_any_device_is_that_of_the_cpu(box: int) -> None:
    image = torch.randn(3, 40, 60, generator=torch.Generator().manual_seed(0))
    for dim in (1, 2):
        expected = uniform_filter1d(image.numpy(), box, axis=dim, mode="constant")
        assert torch.equal(summed_mean(image, box, dim), torch.from_numpy(expected))
