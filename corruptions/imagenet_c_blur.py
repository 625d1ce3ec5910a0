"""ImageNet-C blur: Gaussian, defocus, frosted glass, motion and zoom."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from mmbench.imaging import (
    centre,
    correlate,
    crop_sides,
    enlarge,
    gaussian_blur,
    gaussian_weights,
    motion_blur,
    one_at_a_time,
    to_bytes,
)
from mmbench.registry import corruption
from mmbench.rng import Draws

SHARED = {
    "family": "imagenet_c",
    "modality": "vision",
    "stage": "image",
    "reference": "Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and "
    "Perturbations, ICLR 2019",
}
GAUSSIAN_SIGMA = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6}  # pixels
DEFOCUS = {1: (3, 0.1), 2: (4, 0.5), 3: (6, 0.5), 4: (8, 0.5), 5: (10, 0.5)}  # radius, softening sigma; pixels
GLASS = {1: (0.7, 1, 2), 2: (0.9, 2, 1), 3: (1.0, 2, 3), 4: (1.1, 3, 2), 5: (1.5, 4, 2)}  # sigma, reach; passes
MOTION = {1: (10, 3), 2: (15, 5), 3: (15, 8), 4: (15, 12), 5: (20, 15)}  # radius, sigma; pixels
ZOOM = {1: (0.01, 12), 2: (0.01, 16), 3: (0.02, 11), 4: (0.02, 13), 5: (0.03, 11)}  # step from 1, number of factors
MOTION_ANGLE_DEG = 45.0  # to either side


@corruption("imagenet_c/gaussian_blur", **SHARED, variant="extra", deterministic=True)
@one_at_a_time
def gaussian(x: Tensor, draws: Draws, severity: int) -> Tensor:
    """A Gaussian blur."""
    return to_bytes(gaussian_blur(x, GAUSSIAN_SIGMA[severity]))


@corruption(
    "imagenet_c/defocus_blur",
    **SHARED,
    variant="main",
    deterministic=True,
    note="the kernels of severities 4 and 5 sum to 1.013 and 1.011, as published, and so brighten",
)
@one_at_a_time
def defocus(x: Tensor, draws: Draws, severity: int) -> Tensor:
    """Every point becomes a soft disc."""
    return to_bytes(correlate(x.double(), disc(*DEFOCUS[severity])))


@corruption(
    "imagenet_c/glass_blur",
    **SHARED,
    variant="main",
    note="pixels are copied from their neighbour, not swapped with it: what the published code does",
)
@one_at_a_time
def glass(x: Tensor, draws: Draws, severity: int) -> Tensor:
    """Pixels take the place of neighbours, between two blurs."""
    sigma, reach, passes = GLASS[severity]
    height, width = x.shape[2:]
    cells = (max(height - 2 * reach, 0), max(width - 2 * reach, 0))
    smooth = to_bytes(gaussian_blur(x, sigma))
    offsets = draws.integers("offset", (2 * reach) ** 2, (passes, *cells)).to(x.device)
    return to_bytes(gaussian_blur(shuffle(smooth, offsets, reach), sigma))


@corruption("imagenet_c/motion_blur", **SHARED, variant="main")
@one_at_a_time
def motion(x: Tensor, draws: Draws, severity: int) -> Tensor:
    """A smear to one side, along an angle within 45 degrees of the horizontal."""
    angles_deg = MOTION_ANGLE_DEG * (2 * draws.uniform("angle") - 1)
    return to_bytes(motion_blur(x, angles_deg, *MOTION[severity]))


@corruption("imagenet_c/zoom_blur", **SHARED, variant="main", deterministic=True)
@one_at_a_time
def zoom(x: Tensor, draws: Draws, severity: int) -> Tensor:
    """The mean of the image and its enlargements."""
    height, width = x.shape[2:]
    step, number = ZOOM[severity]
    step = (1 + step) - 1  # as arange steps: its rounding decides how many pixels are cut
    total = x.double() * 2  # the image itself and the enlargement by 1
    for index in range(1, number):
        factor = 1 + index * step
        crop = centre(x, *crop_sides(height, width, factor)).double()
        total += enlarge(crop, factor, height, width)
    return to_bytes(total.div_(number + 1))


@lru_cache(maxsize=5)
def disc(radius: int, sigma: float) -> Tensor:
    """(17, 17) float64, or (21, 21) beyond radius 8; a disc that touches the border gains weight, as published."""
    half, soft = (8, 1) if radius <= 8 else (radius, 2)
    steps = torch.arange(-half, half + 1)
    flat = ((steps[:, None] ** 2 + steps**2) <= radius**2).double()
    weights = gaussian_weights(sigma, soft)
    line = torch.tensor([weights[abs(k)] for k in range(-soft, soft + 1)], dtype=torch.float64)
    return correlate((flat / flat.sum())[None, None], line[:, None] * line)[0, 0]


def shuffle(x: Tensor, offsets: Tensor, reach: int) -> Tensor:
    """x (B, C, H, W) with pixels copied from neighbours; offsets (B, passes, H - 2 reach, W - 2 reach).

    The definition runs from the last cell to the first, each taking the pixel at its offset as it is by then; cell
    (i, j) stands at pixel (i + reach + 1, j + reach + 1), an offset is (dy + reach) * 2 reach + (dx + reach).
    """
    batch, _, height, width = x.shape
    codes = torch.arange((2 * reach) ** 2, dtype=torch.int32, device=x.device)
    moves = (codes // (2 * reach) - reach) * width + codes % (2 * reach) - reach
    moves = moves.index_select(0, offsets.flatten()).view(offsets.shape)  # a quarter of the time of moves[offsets]
    still = torch.arange(batch * height * width, dtype=torch.int32, device=x.device)  # the pixels of all images
    rows, columns = slice(reach + 1, height - reach + 1), slice(reach + 1, width - reach + 1)
    sources = still
    for number in range(offsets.shape[1]):
        taken = still.clone()
        taken.view(batch, height, width)[:, rows, columns] += moves[:, number]
        sources = sources.index_select(0, _resolved(taken, still))
    inside = (sources.view(batch, -1) - still.view(batch, -1)[:, :1]).long()  # (B, H * W)
    return x.flatten(2).gather(2, inside[:, None].expand(-1, x.shape[1], -1)).reshape(x.shape)


def _resolved(taken: Tensor, still: Tensor) -> Tensor:
    """taken (N,), where each pixel finds its value during a pass -> where that value stood before the pass.

    What a pixel finds later in reading order was written by then, so the last of such finds is looked up; their chains
    halve in length with each round.
    """
    last = torch.maximum(taken, still)
    while not torch.equal(last, further := last.index_select(0, last)):
        last = further.index_select(0, further)  # comparing takes as long as looking up
    return taken.index_select(0, last)
