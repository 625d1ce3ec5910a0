"""The pictures of AVROBUSTBENCH's fifteen audio-visual pairs, in their intended form.

What its code does otherwise by mistake is mended, and every repair is named in the note of the row it touches. Every
draw has a stream of its own per sample, where the code draws from three global generators without a seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from corruptions.imagenet_c_weather import FOG, LUMA, SNOW, SNOW_ANGLES_DEG
from mmbench.assets import asset_files
from mmbench.errors import DataError
from mmbench.imaging import centre, correlate, gaussian_blur, gaussian_weights, motion_blur, one_at_a_time, to_bytes
from mmbench.picture_file import read_picture
from mmbench.registry import corruption, corruptions
from mmbench.rng import Draws

# Columns as those of imagenet_c's snow.
RAIN = {
    1: (0.05, 0.2, 3.0, 0.3, 10, 4.0, 0.8),
    2: (0.05, 0.2, 3.5, 0.3, 10, 5.0, 0.7),
    3: (0.1, 0.2, 4.0, 0.25, 12, 6.0, 0.7),
    4: (0.1, 0.2, 4.5, 0.25, 15, 8.0, 0.65),
    5: (0.1, 0.25, 5.0, 0.2, 18, 10.0, 0.6),
}
RAIN_ANGLES_DEG = (-120.0, -60.0)
RAIN_RGB = (0.5, 0.9, 1.2)
SNOW_WHITE, RAIN_WHITE = (1.5, 0.5), (1.3, 0.3)  # factor and offset (of 0..1) of the grey to which a picture pales
SMOKE_SIGMA = {1: 2.0, 2: 2.0, 3: 1.7, 4: 1.5, 5: 1.4}  # pixels
RED_KEPT = {1: 0.9, 2: 0.7, 3: 0.5, 4: 0.3, 5: 0.1}
WATER_KERNEL = {1: 3, 2: 5, 3: 7, 4: 11, 5: 15}  # pixels
WATER_CONTRAST = {1: 0.9, 2: 0.8, 3: 0.7, 4: 0.6, 5: 0.5}
HAZE = {1: 20, 2: 40, 3: 60, 4: 80, 5: 100}  # levels
HAZE_SHARE = 0.15
PERSON_SIDE = {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4, 5: 0.5}  # of the picture; of a square of the person's area
PERSON_ASPECT = 2.7  # height by width, that of the published cut-outs
HEAD, SHOULDER, HIP = 0.2, 0.3, 0.55  # radii by width, height by height
EDGE = 2.0  # pixels in which a silhouette fades out
SKIN = ((90.0, 60.0, 45.0), (240.0, 205.0, 180.0))  # between which a head's colour lies
CUT_OUTS = (".png", ".webp")
IMAGENET_C = {
    "gaussian": "gaussian_noise",
    "impulse": "impulse_noise",
    "shot": "shot_noise",
    "speckle": "speckle_noise",
    "compression": "jpeg_compression",
    "frost": "frost",
    "spatter": "spatter",
    "wind": "motion_blur",
    "concert": "brightness",
}

SHARED = {
    "family": "avc",
    "modality": "vision",
    "stage": "image",
    "variant": "avc-fixed-1",
}
SAME = {
    "family": "avc",
    "modality": "vision",
    "stage": "image",
    "variant": "avc-fixed-1",
    "reference": "AVROBUSTBENCH: the function and severities of ImageNet-C",
    "note": "the imagenet_c row with its draws: the pictures are identical; repair: seeded per sample",
}


@dataclass(frozen=True)
class Layer:
    """What falls through a picture, (B, 1, H, W) float64 of 0..255, and how the picture pales."""

    levels: Tensor
    kept: float
    white: tuple[float, float]

    def over(self, x: Tensor, colour: tuple[float, float, float]) -> Tensor:
        """The picture x (B, 3, H, W) uint8, paler, with the layer and the layer turned by half a turn."""
        levels = x.double()
        factor, offset = self.white
        grey = (levels * _channels(LUMA, x.device)).sum(1, keepdim=True)
        pale = torch.maximum(levels, factor * grey + 255 * offset)
        falling = (self.levels * _channels(colour, x.device)).clamp(max=255)
        return to_bytes(self.kept * levels + (1 - self.kept) * pale + falling + falling.flip(2, 3))


@corruption("avc/gaussian-sight", **SAME)
@corruption("avc/impulse-sight", **SAME)
@corruption("avc/shot-sight", **SAME)
@corruption("avc/speckle-sight", **SAME)
@corruption("avc/compression-sight", **SAME, deterministic=True)
@corruption("avc/frost-sight", **SAME)
@corruption("avc/spatter-sight", **SAME)
@corruption("avc/concert-sight", **SAME, deterministic=True)
@corruption(
    "avc/wind-sight",
    **SHARED,
    reference="AVROBUSTBENCH: the motion blur of ImageNet-C",
    note="imagenet_c/motion_blur with its draws; repairs: the published code raises for every colour picture (an array "
    "of floats), this is the blur it means; seeded per sample",
)
def picture(x: Tensor, draws: Draws, severity: int) -> Tensor:
    """The function of imagenet_c that the pair uses."""
    name = "imagenet_c/" + IMAGENET_C[draws.corruption.removeprefix("avc/").removesuffix("-sight")]
    out: Tensor = corruptions().load(name)(x, replace(draws, corruption=name), severity)
    return out


@corruption(
    "avc/snow-sight",
    **SHARED,
    reference="AVROBUSTBENCH: the snow of ImageNet-C, its flakes enlarged in another way",
    note="flakes enlarged from a field as large as the picture, pixel centre to pixel centre, as the code does; "
    "repair: seeded per sample",
)
@one_at_a_time
def snow(x: Tensor, draws: Draws, severity: int) -> Tensor:
    """Smeared flakes over a whitened picture."""
    return _falling(x, draws, SNOW[severity], SNOW_ANGLES_DEG, SNOW_WHITE).over(x, (1.0, 1.0, 1.0))


@corruption(
    "avc/rain-sight",
    **SHARED,
    reference="AVROBUSTBENCH: snow's function with steeper, bluish, longer drops",
    note="repair: seeded per sample",
)
@one_at_a_time
def rain(x: Tensor, draws: Draws, severity: int) -> Tensor:
    """Bluish streaks over a paler picture."""
    return _falling(x, draws, RAIN[severity], RAIN_ANGLES_DEG, RAIN_WHITE).over(x, RAIN_RGB)


@corruption(
    "avc/smoke-sight",
    **SHARED,
    reference="AVROBUSTBENCH: the fog of ImageNet-C with smoothed white noise for its clouds",
    note="nearly flat, as published: the noise has a std of .04 to .06 about .5; repair: seeded per sample",
)
@one_at_a_time
def smoke(x: Tensor, draws: Draws, severity: int) -> Tensor:
    """A haze with a fine grain."""
    strength = FOG[severity][0]
    field = draws.uniform("smoke", (1, *x.shape[2:])).to(x.device).double()
    levels = x.double()
    brightest = levels.amax((1, 2, 3), keepdim=True)
    clouded = levels + 255 * strength * gaussian_blur(field, SMOKE_SIGMA[severity])
    return to_bytes(clouded * (brightest / (brightest + 255 * strength)))


@corruption(
    "avc/underwater-sight",
    **SHARED,
    deterministic=True,
    reference="AVROBUSTBENCH: less red, Gaussian blur, less contrast, a share .15 of grey haze",
    note="repairs: red fades, where the code swaps red and blue, fades blue and never swaps back; blur kernel 11 at "
    "severity 4, where 10 is an error; rounded once, at the end",
)
@one_at_a_time
def underwater(x: Tensor, draws: Draws, severity: int) -> Tensor:
    """Red is lost, everything is soft and hazy."""
    size = WATER_KERNEL[severity]
    weights = gaussian_weights(0.3 * ((size - 1) / 2 - 1) + 0.8, size // 2)
    line = torch.tensor([weights[abs(k)] for k in range(-(size // 2), size // 2 + 1)], dtype=torch.float64)
    levels = correlate(x.double() * _channels((RED_KEPT[severity], 1.0, 1.0), x.device), line[:, None] * line)
    return to_bytes((1 - HAZE_SHARE) * WATER_CONTRAST[severity] * levels + HAZE_SHARE * HAZE[severity])


@corruption(
    "avc/crowd-sight",
    **SHARED,
    reference="AVROBUSTBENCH: a person's cut-out pasted at a random place, .1 .2 .3 .4 .5 of the side",
    note="a generated silhouette stands for the cut-outs unless a folder of assets holds pictures with transparency "
    "under crowd/; it has the area of the published square, with its own proportions; repairs: red and blue of the "
    "cut-outs in their places; proportions kept; seeded per sample",
)
def crowd(x: Tensor, draws: Draws, severity: int) -> Tensor:
    """Somebody stands before the lens."""
    height, width = x.shape[2:]
    files = asset_files("crowd", CUT_OUTS)
    chosen = draws.integers("person", max(len(files), 1)).tolist()
    colours = draws.uniform("colours", (3, 3)).double()
    people = []
    for index, colour in zip(chosen, colours, strict=True):
        aspect = _aspect(files[index]) if files else PERSON_ASPECT
        size = _size(aspect, PERSON_SIDE[severity], height, width)
        people.append(_cut_out(files[index], *size) if files else _silhouette(*size, colour))
    rooms = torch.tensor([[height - person.shape[1], width - person.shape[2]] for person in people]).reshape(-1, 2) + 1
    tops, lefts = draws.integers("top", rooms[:, 0]).tolist(), draws.integers("left", rooms[:, 1]).tolist()
    out = x.clone()
    for row, (person, top, left) in enumerate(zip(people, tops, lefts, strict=True)):
        behind = out[row, :, top : top + person.shape[1], left : left + person.shape[2]]
        rgb, alpha = person[:3].to(x.device), person[3:].to(x.device)
        behind.copy_(to_bytes(behind * (1 - alpha) + rgb * alpha))
    return out


@corruption(
    "avc/interference-sight",
    **SHARED,
    reference="AVROBUSTBENCH: turned by a whole number of degrees within 6 s + 5 to either side at severity s",
    note="nearest pixel, black corners; may turn by 0; repair: seeded per sample",
)
def interference(x: Tensor, draws: Draws, severity: int) -> Tensor:
    """A picture out of level."""
    height, width = x.shape[2:]
    most = 6 * severity + 5
    angles = torch.deg2rad((draws.integers("angle", 2 * most + 1) - most).double())[:, None, None]  # (B, 1, 1)
    down = torch.arange(height).double()[:, None] + 0.5 - height / 2
    across = torch.arange(width).double() + 0.5 - width / 2
    columns = (across * angles.cos() - down * angles.sin() + width / 2).floor().long()  # (B, H, W)
    rows = (across * angles.sin() + down * angles.cos() + height / 2).floor().long()
    outside = (rows < 0) | (rows >= height) | (columns < 0) | (columns >= width)
    places = (rows * width + columns).masked_fill(outside, 0).flatten(1)[:, None].expand(-1, 3, -1).to(x.device)
    turned = x.flatten(2).gather(2, places).reshape(x.shape)
    return turned.masked_fill_(outside[:, None].to(x.device), 0)


def _channels(rgb: tuple[float, float, float], device: torch.device) -> Tensor:
    return torch.tensor(rgb, dtype=torch.float64, device=device)[:, None, None]


def _falling(
    x: Tensor,
    draws: Draws,
    table: tuple[float, float, float, float, int, float, float],
    angles_deg: tuple[float, float],
    white: tuple[float, float],
) -> Layer:
    mean, std, factor, threshold, radius, sigma, kept = table
    height, width = x.shape[2:]
    field = draws.normal("flakes", (1, height, width)).to(x.device).double() * std + mean
    size = (int(height * factor), int(width * factor))
    field = centre(functional.interpolate(field, size=size, mode="bilinear", align_corners=False), height, width)
    layer = to_bytes(255 * field.masked_fill(field < threshold, 0))
    low, high = angles_deg
    smeared = to_bytes(motion_blur(layer, low + (high - low) * draws.uniform("angle"), radius, sigma))
    return Layer(smeared.double(), kept, white)


def _size(aspect: float, side: float, height: int, width: int) -> tuple[int, int]:
    """Height and width of a person in pixels: the area of a square of this side, smaller only if it does not fit."""
    tall, wide = side * height * math.sqrt(aspect), side * width / math.sqrt(aspect)
    fit = min(1.0, height / tall, width / wide)
    return max(round(tall * fit), 1), max(round(wide * fit), 1)


def _silhouette(height: int, width: int, colours: Tensor) -> Tensor:
    """(4, height, width) float64: RGB levels and alpha of a head above a rounded trunk in two colours of clothing."""
    down = torch.arange(height).double()[:, None] + 0.5
    across = torch.arange(width).double() + 0.5 - width / 2
    radius, corner = HEAD * width, SHOULDER * width
    neck = 2 * radius  # the trunk begins where the head ends
    head = torch.hypot(down - radius - EDGE / 2, across) - radius + EDGE / 2  # signed distances to the outlines
    past_x = (across.abs() - (width - EDGE) / 2 + corner).clamp(min=0)
    past_y = ((down - (neck + height) / 2).abs() - (height - neck - EDGE) / 2 + corner).clamp(min=0)
    trunk = torch.hypot(past_x, past_y) - corner
    alpha = (0.5 - torch.minimum(head, trunk) / EDGE).clamp(0, 1)
    low, high = torch.tensor(SKIN, dtype=torch.float64)
    clothes = torch.where(down < HIP * height, 255 * colours[1, :, None, None], 255 * colours[2, :, None, None])
    skin = (low + (high - low) * colours[0, 0])[:, None, None]
    return torch.cat((torch.where(head < trunk, skin, clothes), alpha[None]))


def _aspect(path: Path) -> float:
    height, width = _read(path, path.stat().st_mtime_ns).shape[:2]
    return float(height / width)


@lru_cache(maxsize=64)
def _cut_out(path: Path, height: int, width: int) -> Tensor:
    """(4, height, width) float64 of a user's file: RGB levels and alpha of 0..1."""
    image = Image.fromarray(_read(path, path.stat().st_mtime_ns)).resize((width, height), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).double()
    return torch.cat((pixels[:3], pixels[3:] / 255))


@lru_cache(maxsize=16)
def _read(path: Path, modified_ns: int) -> NDArray[np.uint8]:
    """(h, w, 4) uint8; raises DataError for a broken file or one that is all opaque or all transparent."""
    try:
        pixels = read_picture(path, lambda image: np.array(image.convert("RGBA")))
    except ValueError as error:
        raise DataError(f"cannot read cut-out {path}: {error}; mend or remove it") from None
    if (alpha := pixels[..., 3]).min() == 255 or alpha.max() == 0:
        which = "transparent" if alpha.max() else "visible"
        raise DataError(f"cut-out {path} has no {which} pixel; show a person on a transparent background or remove it")
    return pixels
