"""ImageNet-C digital changes: brightness, contrast, saturation, JPEG, pixelation and elastic distortion."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg

from mmbench.imaging import one_at_a_time, sample, smoothing_matrix, to_bytes
from mmbench.registry import corruption
from mmbench.rng import Draws

SHARED = {
    "family": "imagenet_c",
    "modality": "vision",
    "stage": "image",
    "reference": "Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and "
    "Perturbations, ICLR 2019",
}
BRIGHTNESS = {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4, 5: 0.5}  # added to the value of 0..1
CONTRAST = {1: 0.4, 2: 0.3, 3: 0.2, 4: 0.1, 5: 0.05}
SATURATION = {1: (0.3, 0.0), 2: (0.1, 0.0), 3: (2.0, 0.0), 4: (5.0, 0.1), 5: (20.0, 0.2)}  # factor, added
QUALITY = {1: 25, 2: 18, 3: 15, 4: 10, 5: 7}
KEPT = {1: 0.6, 2: 0.5, 3: 0.4, 4: 0.3, 5: 0.25}  # of the side
# Amplitude and sigma of the field, reach of the corners; pixels of an image of 224.
ELASTIC = {
    1: (488.0, 170.8, 24.4),
    2: (488.0, 19.52, 48.8),
    3: (12.2, 2.44, 4.88),
    4: (17.08, 2.44, 4.88),
    5: (29.28, 2.44, 4.88),
}
ELASTIC_SIDE = 224
ELASTIC_TRUNCATE = 3.0


@corruption("imagenet_c/brightness", **SHARED, variant="main", deterministic=True)
@one_at_a_time
def brightness(x: Tensor, draws: Draws, severity: int) -> Tensor:
    """Adds to the value of HSV."""
    levels = x.double()
    value = levels.amax(1, keepdim=True)  # (B, 1, H, W)
    raised = (value + 255 * BRIGHTNESS[severity]).clamp_(max=255)
    return to_bytes(torch.where(value > 0, levels * (raised / value.clamp(min=1)), raised))


@corruption("imagenet_c/contrast", **SHARED, variant="main", deterministic=True)
@one_at_a_time
def contrast(x: Tensor, draws: Draws, severity: int) -> Tensor:
    """Moves every value towards the mean of its colour."""
    levels = x.double()
    mean = levels.mean((2, 3), keepdim=True)
    return to_bytes((levels - mean).mul_(CONTRAST[severity]).add_(mean))


@corruption(
    "imagenet_c/saturate",
    **SHARED,
    variant="extra",
    deterministic=True,
    note="severities 1 and 2 take colour away, 3 to 5 add it; greys turn pink at 4 and 5, as published",
)
@one_at_a_time
def saturate(x: Tensor, draws: Draws, severity: int) -> Tensor:
    """Scales the saturation of HSV."""
    factor, added = SATURATION[severity]
    levels = x.double()
    value = levels.amax(1, keepdim=True)  # (B, 1, H, W)
    chroma = value - levels.amin(1, keepdim=True)
    saturation = chroma / value.clamp(min=1)
    wanted = (factor * saturation + added).clamp_(0, 1)
    coloured = value - (value - levels) * (wanted * value / chroma.clamp(min=1))
    # A grey has hue 0, red: what saturation it gains leaves its red alone.
    pink = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64, device=x.device)[:, None, None]
    return to_bytes(torch.where(chroma > 0, coloured, value - value * wanted * pink))


@corruption("imagenet_c/jpeg_compression", **SHARED, variant="main", deterministic=True)
@one_at_a_time
def jpeg_compression(x: Tensor, draws: Draws, severity: int) -> Tensor:
    """JPEG with colours at half resolution."""
    images = x.cpu().unbind()
    coded = [decode_jpeg(encode_jpeg(image, QUALITY[severity]), ImageReadMode.RGB) for image in images]
    return torch.stack(coded).to(x.device)


@corruption("imagenet_c/pixelate", **SHARED, variant="main", deterministic=True)
@one_at_a_time
def pixelate(x: Tensor, draws: Draws, severity: int) -> Tensor:
    """Box means on a coarser grid, shown as blocks."""
    height, width = x.shape[2:]
    kept = KEPT[severity]
    small = _box_down(_turned(_box_down(_turned(x), int(width * kept))), int(height * kept))
    return _nearest_up(_turned(_nearest_up(_turned(small), width)), height)


@corruption(
    "imagenet_c/elastic_transform",
    **SHARED,
    variant="main",
    note="amplitude, sigma and reach scale with the image side; severities 1 and 2 mostly move the whole image and "
    "change more than 3 to 5, as published, so do not average over a severity axis; bilinear at exact positions, "
    "where image libraries round them to 1/32 pixel",
)
@one_at_a_time
def elastic_transform(x: Tensor, draws: Draws, severity: int) -> Tensor:
    """A random affine map, then a smooth random displacement of every pixel."""
    height, width = x.shape[2:]
    amplitude, sigma, reach = (value * min(height, width) / ELASTIC_SIDE for value in ELASTIC[severity])
    rows, columns = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    affine = _affine(reach * (2 * draws.uniform("corners", (3, 2)).double() - 1), height, width)  # (B, 2, 3)
    places = torch.stack((columns, rows, torch.ones_like(rows)))  # (3, H, W)
    moved = torch.einsum("bij,jhw->bihw", affine, places).to(x.device)
    levels = sample(x.double(), moved[:, 0], moved[:, 1], mirror_edge_pixels=True)
    field = 2 * draws.uniform("field", (2, height, width)).to(x.device).double() - 1
    down = smoothing_matrix(height, sigma, ELASTIC_TRUNCATE).to(x.device)
    across = smoothing_matrix(width, sigma, ELASTIC_TRUNCATE).to(x.device)
    field = amplitude * (down @ field @ across.T)  # (B, 2, H, W): dx, dy
    rows, columns = rows.to(x.device), columns.to(x.device)
    return to_bytes(sample(levels, columns + field[:, 0], rows + field[:, 1], mirror_edge_pixels=False))


def _affine(jitter: Tensor, height: int, width: int) -> Tensor:
    """(B, 2, 3): where an output pixel comes from, when three corners of a central square move by jitter (B, 3, 2)."""
    third = min(height, width) // 3
    right, bottom = width // 2 + third, height // 2 + third
    left, top = width // 2 - third, height // 2 - third
    corners = torch.tensor([[right, bottom], [right, top], [left, top]], dtype=torch.float64)  # x, y
    moved = torch.cat((corners + jitter, torch.ones(len(jitter), 3, 1, dtype=torch.float64)), 2)  # (B, 3, 3)
    mapping: Tensor = torch.linalg.solve(moved, corners.expand(len(jitter), -1, -1))
    return mapping.transpose(1, 2)


def _turned(x: Tensor) -> Tensor:
    """Rows as columns: whole rows are picked and added several times faster than columns."""
    return x.transpose(2, 3).contiguous()


def _box_down(x: Tensor, kept: int) -> Tensor:
    """x (B, C, H, W) -> (B, C, kept, W): means of the rows of each interval, rounded half up; at least one row."""
    rows, inside, counts = (part.to(x.device) for part in _intervals(x.shape[2], max(kept, 1)))
    sums = x.index_select(2, rows[0]).to(torch.int16)  # of fewer than eight rows
    for row, counted in zip(rows[1:], inside[1:], strict=True):
        sums.add_(x.index_select(2, row).mul_(counted))
    return sums.to(torch.float32).div_(counts).add_(0.5).to(torch.int16).to(torch.uint8)


@lru_cache(maxsize=16)
def _intervals(size: int, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pixels whose centres lie in each of `kept` equal parts of `size`.

    Their numbers (K, kept) int64, the first again where there are fewer than K; whether they count (K, kept, 1) uint8;
    how many do (kept, 1) float32.
    """
    # Pixel s belongs to part ceil((s + 1/2) kept / size) - 1, in whole numbers.
    owner = -((2 * torch.arange(size) + 1) * kept // (-2 * size)) - 1
    counts = owner.bincount(minlength=kept)
    steps = torch.arange(int(counts.max()))[:, None]
    inside = steps < counts
    pixels = counts.cumsum(0) - counts + steps * inside
    return pixels, inside.to(torch.uint8)[:, :, None], counts.to(torch.float32)[:, None]


def _nearest_up(x: Tensor, size: int) -> Tensor:
    return x.index_select(2, _nearest(size, x.shape[2]).to(x.device))


@lru_cache(maxsize=16)
def _nearest(size: int, kept: int) -> Tensor:
    """(size,) int64: which of `kept` equal parts holds the centre of each pixel."""
    return (2 * torch.arange(size) + 1) * kept // (2 * size)
