"""ImageNet-C weather: snow, frost and fog."""

from __future__ import annotations

import torch
from torch import Tensor

from mmbench.frost import photographs
from mmbench.imaging import crop_sides, enlarge, motion_blur, one_at_a_time, to_bytes
from mmbench.registry import corruption
from mmbench.rng import Draws

SHARED = {
    "family": "imagenet_c",
    "modality": "vision",
    "stage": "image",
    "reference": "Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and "
    "Perturbations, ICLR 2019",
}
FOG = {1: (1.5, 2.0), 2: (2.0, 2.0), 3: (2.5, 1.7), 4: (2.5, 1.5), 5: (3.0, 1.4)}  # strength, decay of the octaves
FROST = {1: (1.0, 0.4), 2: (0.8, 0.6), 3: (0.7, 0.7), 4: (0.65, 0.7), 5: (0.6, 0.75)}  # weight of image, of frost
# Mean and std of the flakes, their enlargement, the threshold they pass; radius and sigma of their smear; image kept.
SNOW = {
    1: (0.1, 0.3, 3.0, 0.5, 10, 4.0, 0.8),
    2: (0.2, 0.3, 2.0, 0.5, 12, 4.0, 0.7),
    3: (0.55, 0.3, 4.0, 0.9, 12, 8.0, 0.7),
    4: (0.55, 0.3, 4.5, 0.85, 12, 8.0, 0.65),
    5: (0.55, 0.3, 2.5, 0.85, 12, 12.0, 0.55),
}
SNOW_ANGLES_DEG = (-135.0, -45.0)
LUMA = (0.299, 0.587, 0.114)
ROUGHNESS = 100.0  # of the first octave of the fog; its amplitude is the square


@corruption(
    "imagenet_c/fog",
    **SHARED,
    variant="main",
    note="the fog's torus has the next power of two at or above the image side: 256 at 224, as published",
)
@one_at_a_time
def fog(x: Tensor, draws: Draws, severity: int) -> Tensor:
    """A cloudy layer added, and the range brought back."""
    strength, decay = FOG[severity]
    height, width = x.shape[2:]
    side = 1 << (max(height, width, 2) - 1).bit_length()
    clouds = plasma(draws.uniform("plasma", (side * side - 1,)).to(x.device).double(), side, decay)
    levels = x.double()
    brightest = levels.amax((1, 2, 3), keepdim=True)
    layer = 255 * strength * clouds[:, None, :height, :width]
    return to_bytes((levels + layer) * (brightest / (brightest + 255 * strength)))


@corruption(
    "imagenet_c/frost",
    **SHARED,
    variant="main",
    note="the published photographs may not be passed on: without a folder of photographs of one's own, generated ones "
    "with their palette and spectrum and their shares of 1/5, 2/5, 1/5 and 1/5; frost6, which is never drawn, is left "
    "out of a folder too; crops are taken at the photographs' own scale, whatever the image side",
)
@one_at_a_time
def frost(x: Tensor, draws: Draws, severity: int) -> Tensor:
    """A crop of a photograph of frost, blended in."""
    height, width = x.shape[2:]
    image_share, frost_share = FROST[severity]
    photos = photographs(height, width)
    chosen = draws.integers("photograph", len(photos)).tolist()
    rooms = torch.tensor([[photos[i].shape[1] - height, photos[i].shape[2] - width] for i in chosen]).reshape(-1, 2)
    tops, lefts = draws.integers("top", rooms[:, 0]).tolist(), draws.integers("left", rooms[:, 1]).tolist()
    places = zip(chosen, tops, lefts, strict=True)
    crops = [photos[i][:, top : top + height, left : left + width] for i, top, left in places]
    layer = torch.stack(crops).to(x.device)
    return to_bytes(image_share * x.double() + frost_share * layer.double())


@corruption(
    "imagenet_c/snow",
    **SHARED,
    variant="main",
    note="only the flakes of the central part that is enlarged are drawn; the rest of the published layer is unseen",
)
@one_at_a_time
def snow(x: Tensor, draws: Draws, severity: int) -> Tensor:
    """Smeared flakes over a whitened image."""
    mean, std, factor, threshold, radius, sigma, kept = SNOW[severity]
    height, width = x.shape[2:]
    flakes = draws.normal("flakes", (1, *crop_sides(height, width, factor))).to(x.device).double()
    layer = enlarge(flakes * std + mean, factor, height, width)
    layer = to_bytes(255 * layer.masked_fill(layer < threshold, 0))
    low, high = SNOW_ANGLES_DEG
    layer = to_bytes(motion_blur(layer, low + (high - low) * draws.uniform("angle"), radius, sigma)).double()
    levels = x.double()
    grey = (levels * torch.tensor(LUMA, dtype=torch.float64, device=x.device)[:, None, None]).sum(1, keepdim=True)
    white = torch.maximum(levels, 1.5 * grey + 127.5)
    return to_bytes(kept * levels + (1 - kept) * white + layer + layer.flip(2, 3))


def plasma(uniforms: Tensor, side: int, decay: float) -> Tensor:
    """(B, side, side) of 0..1: the diamond-square fractal on a torus, from uniforms (B, side ** 2 - 1).

    Each octave sets the centres of its squares, then the middles of their upper edges, then of their left edges, to
    the mean of four neighbours plus a uniform of up to the square of its roughness.
    """
    out = uniforms.new_zeros(len(uniforms), side, side)
    roughness, step, used = ROUGHNESS, side, 0
    while step >= 2:
        cells, half = side // step, step // 2
        drawn = uniforms[:, used : used + 3 * cells * cells].reshape(-1, 3, cells, cells)
        noise = roughness**2 * (2 * drawn - 1)
        corner = out[:, ::step, ::step]
        beside, below = corner.roll(-1, 2), corner.roll(-1, 1)
        centre = (corner + beside + below + beside.roll(-1, 1)) / 4 + noise[:, 0]
        out[:, half::step, half::step] = centre
        out[:, ::step, half::step] = (corner + beside + centre + centre.roll(1, 1)) / 4 + noise[:, 1]
        out[:, half::step, ::step] = (corner + below + centre + centre.roll(1, 2)) / 4 + noise[:, 2]
        used, step, roughness = used + 3 * cells * cells, half, roughness / decay
    out -= out.amin((1, 2), keepdim=True)
    return out / out.amax((1, 2), keepdim=True)
