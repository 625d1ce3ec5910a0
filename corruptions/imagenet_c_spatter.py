"""ImageNet-C spatter: drops of water or splashes of mud on the lens."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from mmbench.imaging import gaussian_blur, one_at_a_time, to_bytes
from mmbench.registry import corruption
from mmbench.rng import Draws

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

# Mean, std and smoothing sigma of the liquid, the threshold it passes, its strength.
WATER = {1: (0.65, 0.3, 4.0, 0.69, 0.6), 2: (0.65, 0.3, 3.0, 0.68, 0.6), 3: (0.65, 0.3, 2.0, 0.68, 0.5)}
MUD = {4: (0.65, 0.3, 1.0, 0.65), 5: (0.67, 0.4, 1.0, 0.65)}
WATER_RGB, MUD_RGB = (175.0, 238.0, 238.0), (63.0, 42.0, 20.0)
MUD_SIGMA, MUD_THRESHOLD = 1.5, 0.8
EDGE_LOW, EDGE_HIGH = 50, 150
MAX_DISTANCE = 20.0  # pixels
EMBOSS = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], dtype=np.float64)
TANGENT = np.tan(np.pi / 8)


@corruption(
    "imagenet_c/spatter",
    family="imagenet_c",
    modality="vision",
    stage="image",
    variant="extra",
    reference="Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and "
    "Perturbations, ICLR 2019",
    note="water at severities 1 to 3, mud at 4 and 5; distances to the edge of a drop are the published chamfer ones, "
    "measured to the nearest edge pixel by Euclid; sizes are in pixels whatever the image side",
)
@one_at_a_time
def spatter(x: Tensor, draws: Draws, severity: int) -> Tensor:
    """Liquid where smooth noise passes a threshold: water adds light, mud covers."""
    mean, std, sigma, threshold = (WATER[severity][:4]) if severity in WATER else MUD[severity]
    noise = draws.normal("liquid", (1, *x.shape[2:])).to(x.device).double()
    liquid = gaussian_blur(noise * std + mean, sigma)  # (B, 1, H, W)
    liquid = liquid.masked_fill(liquid < threshold, 0)
    levels = x.double()
    if severity in WATER:
        layers = [_water(layer) for layer in to_bytes(255 * liquid[:, 0]).cpu().numpy()]
        water = torch.from_numpy(np.stack(layers)).to(x.device)[:, None]
        return to_bytes(levels + WATER[severity][4] * water * _colour(WATER_RGB, x.device))
    mud = gaussian_blur((liquid > threshold).double(), MUD_SIGMA)
    mud = mud.masked_fill(mud < MUD_THRESHOLD, 0)
    return to_bytes(levels * (1 - mud) + mud * _colour(MUD_RGB, x.device))


def _colour(rgb: tuple[float, float, float], device: torch.device) -> Tensor:
    return torch.tensor(rgb, dtype=torch.float64, device=device)[:, None, None]


def _water(liquid: npt.NDArray[np.uint8]) -> Floats:
    """(H, W) of 0..1: how much light the drops add; they shine near their edges, on one side."""
    distance = np.minimum(chamfer_distance(canny(liquid)), MAX_DISTANCE)
    distance = ndimage.uniform_filter(distance, 3, mode="mirror")
    shine = equalised((distance + 1e-9).astype(np.uint8))
    shine = np.clip(ndimage.correlate(shine, EMBOSS, mode="mirror"), 0, 255)
    shine = np.round(ndimage.uniform_filter(shine, 3, mode="mirror"))
    light = liquid * shine
    return np.asarray(light / max(light.max(), 1.0), dtype=np.float64)


def canny(grey: npt.NDArray[np.uint8]) -> Flags:
    """(H, W): edges by Canny 1986, with 3x3 Sobel gradients, their L1 norm and thresholds 50 and 150."""
    levels = grey.astype(np.float64)
    gx, gy = (ndimage.sobel(levels, axis, mode="nearest") for axis in (1, 0))
    ax, ay = np.abs(gx), np.abs(gy)
    norm = ax + ay
    wide = np.pad(norm, 1)
    height, width = norm.shape

    def neighbour(dy: int, dx: int) -> Floats:
        return wide[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]

    flat, steep = ay < ax * TANGENT, ay > ax / TANGENT
    falling = gx * gy >= 0
    peak = np.where(falling, (norm > neighbour(-1, -1)) & (norm > neighbour(1, 1)), False)
    peak |= ~falling & (norm > neighbour(-1, 1)) & (norm > neighbour(1, -1))
    # Of two equal neighbours along a row or a column, the first is the edge.
    peak = np.where(steep, (norm > neighbour(-1, 0)) & (norm >= neighbour(1, 0)), peak)
    peak = np.where(flat, (norm > neighbour(0, -1)) & (norm >= neighbour(0, 1)), peak)
    weak = peak & (norm > EDGE_LOW)
    parts, number = ndimage.label(weak, np.ones((3, 3)))
    strong = np.zeros(number + 1, dtype=bool)
    strong[parts[weak & (norm > EDGE_HIGH)]] = True
    return np.asarray(strong[parts] & weak, dtype=np.bool_)


def chamfer_distance(edges: Flags) -> Floats:
    """(H, W): length of the shortest walk from the nearest edge pixel, in steps of 1, 1.4 (diagonal), 2.1969 (knight).

    Infinite where there is no edge.
    """
    if not edges.any():
        return np.full(edges.shape, np.inf)
    nearest = ndimage.distance_transform_edt(~edges, return_distances=False, return_indices=True)
    offset = np.abs(nearest - np.indices(edges.shape, dtype=np.int32))  # (2, H, W)
    short, long = offset.min(0), offset.max(0)
    mostly_straight = (long - 2 * short) + 2.1969 * short
    mostly_diagonal = 1.4 * (2 * short - long) + 2.1969 * (long - short)
    return np.asarray(np.where(2 * short <= long, mostly_straight, mostly_diagonal), dtype=np.float64)


def equalised(levels: npt.NDArray[np.uint8]) -> Floats:
    """(H, W) of 0..255, whole: the share of pixels at most as bright, the darkest left out; flat stays as it is."""
    counts = np.bincount(levels.ravel(), minlength=256)
    darkest = int(np.flatnonzero(counts)[0])
    others = counts.sum() - counts[darkest]
    if others == 0:
        return levels.astype(np.float64)
    rank = np.cumsum(counts) - counts[darkest]
    return np.asarray(np.round(rank * (255 / others))[levels], dtype=np.float64)
