"""ImageNet-C noise: Gaussian, shot, impulse and speckle, drawn for each colour value."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from mmbench.imaging import one_at_a_time, to_bytes
from mmbench.registry import corruption
from mmbench.rng import Draws, PoissonTable

SHARED = {
    "family": "imagenet_c",
    "modality": "vision",
    "stage": "image",
    "reference": "Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and "
    "Perturbations, ICLR 2019",
}
GAUSSIAN_STD = {1: 0.08, 2: 0.12, 3: 0.18, 4: 0.26, 5: 0.38}  # of the range 0..1
SHOT_PHOTONS = {1: 60, 2: 25, 3: 12, 4: 5, 5: 3}  # at full brightness
IMPULSE_SHARE = {1: 0.03, 2: 0.06, 3: 0.09, 4: 0.17, 5: 0.27}
SPECKLE_STD = {1: 0.15, 2: 0.2, 3: 0.35, 4: 0.45, 5: 0.6}  # of the value itself


@corruption("imagenet_c/gaussian_noise", **SHARED, variant="main")
@one_at_a_time
def gaussian_noise(x: Tensor, draws: Draws, severity: int) -> Tensor:
    """Gaussian noise of one strength."""
    noise = draws.normal("noise", x.shape[1:]).to(x.device)
    return to_bytes(noise.mul_(255 * GAUSSIAN_STD[severity]).add_(x))


@corruption("imagenet_c/shot_noise", **SHARED, variant="main")
@one_at_a_time
def shot_noise(x: Tensor, draws: Draws, severity: int) -> Tensor:
    """A Poisson number of photons whose mean is the brightness."""
    photons = SHOT_PHOTONS[severity]
    counts = photon_table(photons).counts(x, draws.uniform("photons", x.shape[1:]).to(x.device))
    full = torch.arange(int(counts.max()) + 1, device=x.device) * 255
    return (full // photons).clamp_(max=255).to(torch.uint8)[counts]


@corruption(
    "imagenet_c/impulse_noise",
    **SHARED,
    variant="main",
    note="one draw a value decides both whether it is hit and whether it turns black or white",
)
@one_at_a_time
def impulse_noise(x: Tensor, draws: Draws, severity: int) -> Tensor:
    """Salt and pepper in each colour on its own."""
    share = IMPULSE_SHARE[severity]
    drawn = draws.uniform("impulse", x.shape[1:]).to(x.device)
    return x.masked_fill(drawn < share, 255).masked_fill_(drawn < share / 2, 0)


@corruption("imagenet_c/speckle_noise", **SHARED, variant="extra")
@one_at_a_time
def speckle_noise(x: Tensor, draws: Draws, severity: int) -> Tensor:
    """Gaussian noise as strong as the value it falls on."""
    noise = draws.normal("noise", x.shape[1:]).to(x.device)
    return to_bytes(noise.mul_(SPECKLE_STD[severity]).mul_(x).add_(x))


@lru_cache(maxsize=5)
def photon_table(photons: int) -> PoissonTable:
    """One row for each of the 256 levels."""
    return PoissonTable.of([photons * level / 255 for level in range(256)])
