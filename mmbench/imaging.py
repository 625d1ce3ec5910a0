"""Arithmetic shared by corruptions of images: levels of 0..255 in float64, and one rule for becoming bytes again."""

from __future__ import annotations

import math
from functools import lru_cache, wraps

import numpy as np
import torch
from scipy import ndimage
from scipy.fft import next_fast_len
from torch import Tensor
from torch.nn import functional

from mmbench.corruption import CorruptionFunction
from mmbench.parallel import side_by_side
from mmbench.rng import Draws

GUARD = 1e-6  # of a level: far above the error of float64 sums, far below anything visible


def to_bytes(levels: Tensor) -> Tensor:
    """Levels as uint8, clipped and truncated towards zero as every published numpy version does.

    The guard keeps a level that is whole by definition whole (a flat region stays flat under a blur), so that no other
    order of summation, in another batch or on another machine, gives another byte.
    """
    # By way of 16 bits, which takes half the time of one step.
    return levels.add(GUARD).clamp_(0, 255).to(torch.int16).to(torch.uint8)


def one_at_a_time(function: CorruptionFunction) -> CorruptionFunction:
    """On a CPU, apply a function of batches to single images, each on one core and in its cache."""

    @wraps(function)
    def apply(x: Tensor, draws: Draws, severity: int) -> Tensor:
        if x.device.type != "cpu":
            return function(x, draws, severity)
        out = torch.empty_like(x)

        def one(row: int) -> None:
            out[row] = function(x[row : row + 1], draws.select([row]), severity)[0]

        side_by_side(one, range(len(x)))
        return out

    return apply


def gaussian_weights(sigma: float, radius: int) -> tuple[float, ...]:
    """Weights at distance 0..radius; the two-sided kernel sums to 1."""
    weights = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(radius + 1)]
    total = weights[0] + 2 * sum(weights[1:])
    return tuple(weight / total for weight in weights)


def gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    """x (B, C, H, W), bytes or float64, to float64; cut off at four sigma, edges repeated; rows, then columns."""
    weights = gaussian_weights(sigma, int(4 * sigma + 0.5))
    if x.device.type != "cpu":
        return summed_blur(x, weights)
    # SciPy works line by line: no temporaries of an image's size, whose fresh pages cost as much as the sums.
    kernel = np.array((*weights[:0:-1], *weights))
    out = np.empty(x.shape)
    ndimage.correlate1d(x.numpy(), kernel, 3, out, mode="nearest")
    ndimage.correlate1d(out, kernel, 2, out, mode="nearest")
    return torch.from_numpy(out)


def summed_blur(x: Tensor, weights: tuple[float, ...]) -> Tensor:
    """The blur of x (B, C, H, W) as a sum of shifted images, on any device; weights at distance 0 and on."""
    radius = len(weights) - 1
    for dim, sides in ((3, (radius, radius, 0, 0)), (2, (0, 0, radius, radius))):
        size = x.shape[dim]
        padded = functional.pad(x, sides, mode="replicate").double()
        x = padded.narrow(dim, radius, size) * weights[0]
        for k in range(1, radius + 1):
            both = padded.narrow(dim, radius - k, size) + padded.narrow(dim, radius + k, size)
            x.add_(both, alpha=weights[k])
    return x


@lru_cache(maxsize=32)
def smoothing_matrix(size: int, sigma: float, truncate: float) -> Tensor:
    """(size, size) float64: a Gaussian whose signal continues mirrored about its outer edges, however wide it is."""
    radius = int(truncate * sigma + 0.5)
    weights = gaussian_weights(sigma, radius)
    out = torch.zeros(size, size, dtype=torch.float64)
    rows = torch.arange(size)
    for k in range(-radius, radius + 1):
        folded = (rows + k) % (2 * size)  # the mirrored signal has period 2 * size
        folded = torch.where(folded < size, folded, 2 * size - 1 - folded)
        out[rows, folded] += weights[abs(k)]
    return out


def correlate(x: Tensor, kernel: Tensor) -> Tensor:
    """x (B, C, H, W) float64 with an odd-sided square kernel; edges mirrored about the edge pixels."""
    side = kernel.shape[0]
    height, width = x.shape[2:]
    rows, columns = (_mirrored(length, side // 2).to(x.device) for length in (height, width))
    padded = x.index_select(3, columns).index_select(2, rows)
    size = [next_fast_len(length + side - 1, real=True) for length in (height, width)]
    product = torch.fft.rfft2(padded, s=size) * torch.fft.rfft2(kernel.to(x.device), s=size).conj()
    found: Tensor = torch.fft.irfft2(product, s=size)
    return found[:, :, :height, :width]


def _mirrored(size: int, reach: int) -> Tensor:
    """(size + 2 reach,) int64: the pixel shown at each place of a line mirrored about its end pixels, however short."""
    period = max(2 * (size - 1), 1)
    places = torch.arange(-reach, size + reach) % period
    return torch.minimum(places, period - places)


def motion_blur(x: Tensor, angles_deg: Tensor, radius: int, sigma: float) -> Tensor:
    """Levels of x (B, C, H, W) smeared to one side along angles_deg (B,) over 2 * radius + 1 whole-pixel steps."""
    height, width = x.shape[2:]
    reach = 2 * radius
    padded = functional.pad(x.double(), (reach,) * 4, mode="replicate")
    steps = range(2 * radius + 1)
    weights = [math.exp(-0.5 * (step / sigma) ** 2) for step in steps]
    out = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    for row, angle_deg in enumerate(angles_deg.tolist()):
        down, right = math.sin(math.radians(angle_deg)), math.cos(math.radians(angle_deg))
        for step in steps:
            top = reach + math.ceil(step * down - 0.5)
            left = reach + math.ceil(step * right - 0.5)
            source = padded[row, :, top : top + height, left : left + width]
            out[row].add_(source, alpha=weights[step] / sum(weights))
    return out


def crop_sides(height: int, width: int, factor: float) -> tuple[int, int]:
    """The central part that fills the image when enlarged by the factor."""
    return math.ceil(height / factor), math.ceil(width / factor)


def enlarge(crop: Tensor, factor: float, height: int, width: int) -> Tensor:
    """crop (B, C, h, w) float64 enlarged bilinearly, corner to corner, and trimmed to its centre (height, width)."""
    size = [round(side * factor) for side in crop.shape[2:]]
    large = functional.interpolate(crop, size=size, mode="bilinear", align_corners=True)
    return centre(large, height, width)


def centre(x: Tensor, height: int, width: int) -> Tensor:
    top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
    return x[:, :, top : top + height, left : left + width]


def sample(x: Tensor, columns: Tensor, rows: Tensor, mirror_edge_pixels: bool) -> Tensor:
    """x (B, C, H, W) float64 read bilinearly at columns, rows (B, H, W) in pixels.

    Beyond the image the signal is mirrored about the centres of its edge pixels, or about their outer edges.
    """
    height, width = x.shape[2:]
    if mirror_edge_pixels:
        grid = torch.stack((2 * columns / (width - 1) - 1, 2 * rows / (height - 1) - 1), -1)
    else:
        grid = torch.stack(((2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1), -1)
    return functional.grid_sample(x, grid, "bilinear", "reflection", mirror_edge_pixels)
