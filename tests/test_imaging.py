"""Arithmetic that corruptions of images share, against SciPy and exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from imagenet_c_reference import smooth
from scipy import ndimage

from corruptions.imagenet_c_digital import _box_down
from mmbench.imaging import correlate, gaussian_blur, gaussian_weights, summed_blur, to_bytes


@pytest.mark.parametrize("sigma", [0.7, 3.0])
def test_the_blur_of_any_device_is_that_of_the_cpu(sigma: float) -> None:
    x = torch.randint(0, 256, (2, 3, 30, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    expected = np.stack([smooth(image.permute(1, 2, 0).numpy().astype(float), sigma) for image in x])
    for own in (gaussian_blur(x, sigma), summed_blur(x, gaussian_weights(sigma, int(4 * sigma + 0.5)))):
        assert own.permute(0, 2, 3, 1).numpy() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(("size", "kept"), [(224, 89), (224, 134), (7, 7), (5, 1), (10, 3), (1, 1)])
def test_a_coarser_grid_holds_the_means_of_the_centres_inside(size: int, kept: int) -> None:
    rows = np.random.default_rng(0).integers(0, 256, size)
    expected = []
    for part in range(kept):
        low, high = Fraction(part * size, kept), Fraction((part + 1) * size, kept)
        inside = [int(v) for i, v in enumerate(rows) if low < i + Fraction(1, 2) <= high]
        expected.append(math.floor(Fraction(sum(inside), len(inside)) + Fraction(1, 2)))
    x = torch.from_numpy(rows.astype(np.uint8))[None, None, :, None].expand(2, 3, -1, 4)
    assert _box_down(x, kept)[1, 2, :, 3].tolist() == expected


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (7, 30), (24, 17)])
def test_edges_are_mirrored_about_their_pixels_however_small_the_image(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image, kernel = rng.uniform(0, 255, (3, *shape)), rng.uniform(0, 1, (17, 17))
    expected = np.stack([ndimage.correlate(channel, kernel, mode="mirror") for channel in image])
    assert correlate(torch.from_numpy(image)[None], torch.from_numpy(kernel))[0].numpy() == pytest.approx(expected)


def test_levels_become_bytes_by_truncation_between_0_and_255() -> None:
    levels = torch.tensor([-300.0, -0.4, 0.9, 1 - 1e-9, 254.99, 255.0, 70000.0], dtype=torch.float64)
    assert to_bytes(levels).tolist() == [0, 0, 0, 1, 254, 255, 255]
