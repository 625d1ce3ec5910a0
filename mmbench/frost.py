"""Photographs of frost: the user's own, or generated ones with the statistics of the published set."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmbench.assets import asset_files
from mmbench.errors import DataError
from mmbench.imaging import to_bytes
from mmbench.picture_file import read_picture
from mmbench.rng import StreamKey, normals, stream

SUFFIXES = (".jpg", ".jpeg", ".png")
NEVER_DRAWN = "frost6"  # listed by the published code, which draws from the first five only
SIDE = 512  # of a generated photograph, or twice the image where that is more
CROP = 224  # the window in which the palette was measured
ISOTROPIC, FEATHERS = 0.6, 0.4


@dataclass(frozen=True)
class Look:
    """Statistics of 224-pixel crops of one published photograph."""

    mean_rgb: tuple[int, int, int]
    std: float
    slope: float
    """Of log power over log radial frequency."""
    direction_deg: tuple[float, float]
    """Of the feathers; chosen here."""


LOOKS = (
    Look((80, 149, 165), 16, -1.44, (35, 100)),
    Look((198, 202, 211), 20, -1.69, (20, 140)),
    Look((144, 159, 172), 26, -1.29, (60, 120)),
    Look((101, 113, 125), 35, -1.84, (10, 75)),
)
DRAWN = (0, 1, 1, 2, 3)  # two of the five published files show the same photograph


def photographs(height: int, width: int) -> tuple[Tensor, ...]:
    """(3, h, w) uint8 each, larger than the image; one is drawn with equal chances.

    Raises DataError for a photograph of the user's that is broken or too small.
    """
    paths = tuple(path for path in asset_files("frost", SUFFIXES) if path.stem != NEVER_DRAWN)
    if paths:
        return _from_files(paths, height, width)
    looks = [_generated(index, max(SIDE, 2 * height, 2 * width)) for index in range(len(LOOKS))]
    return tuple(looks[index] for index in DRAWN)


@lru_cache(maxsize=4)
def _from_files(paths: tuple[Path, ...], height: int, width: int) -> tuple[Tensor, ...]:
    return tuple(_read(path, height, width) for path in paths)


def _read(path: Path, height: int, width: int) -> Tensor:
    try:
        pixels = read_picture(path, lambda image: np.array(image.convert("RGB")))
    except ValueError as error:
        raise DataError(f"cannot read photograph {path}: {error}; mend or remove it") from None
    if pixels.shape[0] <= height or pixels.shape[1] <= width:
        raise DataError(
            f"photograph {path} has {pixels.shape[1]}x{pixels.shape[0]} pixels; crops of {width}x{height} need a "
            "larger one: enlarge or remove it"
        )
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


@lru_cache(maxsize=8)
def _generated(index: int, side: int) -> Tensor:
    """(3, side, side) uint8 on a torus; the same on every machine."""
    look = LOOKS[index]
    bits = stream(StreamKey("frost", "photographs", 0), str(index), "photographs", 0, "pixels")
    white = torch.from_numpy(normals(bits, 3 * side * side)).reshape(3, side, side)
    vertical, horizontal = torch.fft.fftfreq(side).double()[:, None], torch.fft.fftfreq(side).double()
    radius = torch.hypot(vertical, horizontal).clamp(min=1 / CROP)  # nothing larger than a crop
    feathers = [_feathers(white[1 + i], angle, radius) for i, angle in enumerate(look.direction_deg)]
    rough = _shaped(white[0], radius ** (look.slope / 2))
    texture = ISOTROPIC * rough + FEATHERS * _standard(feathers[0] + feathers[1])
    texture = _with_slope(texture, radius, look.slope)
    windows = texture.unfold(0, CROP, CROP // 4).unfold(1, CROP, CROP // 4)
    texture = texture / windows.std((2, 3)).mean()
    mean = torch.tensor(look.mean_rgb, dtype=torch.float64)[:, None, None]
    return to_bytes(mean + look.std * texture)


def _feathers(white: Tensor, direction_deg: float, radius: Tensor) -> Tensor:
    """Ridges where an oriented noise passes through zero."""
    side = len(white)
    angle = torch.deg2rad(torch.tensor(direction_deg, dtype=torch.float64))
    vertical, horizontal = torch.fft.fftfreq(side).double()[:, None], torch.fft.fftfreq(side).double()
    along = (horizontal * angle.cos() + vertical * angle.sin()) / radius
    oriented = _shaped(white, (-4 * along**2).exp() / radius)
    return _standard(1 - oriented.abs())


def _with_slope(texture: Tensor, radius: Tensor, slope: float) -> Tensor:
    """The texture with its radial power replaced by a power law; directions and phases stay."""
    spectrum = torch.fft.fft2(texture)
    rings = (radius * len(texture)).round().long().flatten()
    power = spectrum.abs().square().flatten()
    mean = torch.zeros(int(rings.max()) + 1, dtype=torch.float64).index_add_(0, rings, power)
    mean /= torch.bincount(rings).clamp(min=1)
    gain = (radius**slope / mean[rings].reshape(radius.shape)).sqrt()
    gain[0, 0] = 0
    return _standard(torch.fft.ifft2(spectrum * gain).real)


def _shaped(white: Tensor, gain: Tensor) -> Tensor:
    return _standard(torch.fft.ifft2(torch.fft.fft2(white) * gain).real)


def _standard(x: Tensor) -> Tensor:
    return (x - x.mean()) / x.std()
