"""ImageNet-C as one would write it first: per image, NumPy, SciPy and Pillow, (H, W, 3) uint8.

What the batched versions are compared with, in speed and, given the same random numbers or none, in content. Severity
tables are the library's; no formula is. The lines of a drop's light (spatter) are per image in the library itself.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from corruptions import imagenet_c_blur as blur
from corruptions import imagenet_c_digital as digital
from corruptions import imagenet_c_noise as noise
from corruptions import imagenet_c_spatter as spatter_parts
from corruptions import imagenet_c_weather as weather
from mmbench.frost import photographs

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Rng = np.random.Generator
EPSILON = 1e-9


def floor255(x: Floats) -> Pixels:
    return (255 * np.clip(x, 0, 1) + EPSILON * 255).astype(np.uint8)


def gaussian_noise(image: Pixels, severity: int, rng: Rng) -> Pixels:
    return floor255(image / 255 + rng.normal(size=image.shape, scale=noise.GAUSSIAN_STD[severity]))


def shot_noise(image: Pixels, severity: int, rng: Rng) -> Pixels:
    photons = noise.SHOT_PHOTONS[severity]
    return floor255(rng.poisson(image / 255 * photons) / photons)


def impulse_noise(image: Pixels, severity: int, rng: Rng) -> Pixels:
    hit = rng.random(image.shape) < noise.IMPULSE_SHARE[severity]
    return np.where(hit, np.where(rng.random(image.shape) < 0.5, 255, 0), image).astype(np.uint8)


def speckle_noise(image: Pixels, severity: int, rng: Rng) -> Pixels:
    x = image / 255
    return floor255(x + x * rng.normal(size=x.shape, scale=noise.SPECKLE_STD[severity]))


def gaussian_blur(image: Pixels, severity: int, rng: Rng) -> Pixels:
    return floor255(smooth(image / 255, blur.GAUSSIAN_SIGMA[severity]))


def smooth(x: Floats, sigma: float) -> Floats:
    return np.asarray(ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest", truncate=4))


def defocus_blur(image: Pixels, severity: int, rng: Rng) -> Pixels:
    radius, sigma = blur.DEFOCUS[severity]
    half, soft = (8, 1) if radius <= 8 else (radius, 2)
    steps = np.arange(-half, half + 1)
    disc = (steps**2 + steps[:, None] ** 2 <= radius**2).astype(float)
    kernel = ndimage.gaussian_filter(disc / disc.sum(), sigma, mode="mirror", radius=soft)
    return floor255(np.stack([ndimage.correlate(c / 255, kernel, mode="mirror") for c in np.moveaxis(image, 2, 0)], 2))


def glass_blur(image: Pixels, severity: int, rng: Rng) -> Pixels:
    sigma, reach, passes = blur.GLASS[severity]
    height, width = image.shape[:2]
    offsets = rng.integers(-reach, reach, (passes, height - 2 * reach, width - 2 * reach, 2))
    return floor255(smooth(shuffled(floor255(smooth(image / 255, sigma)), offsets, reach) / 255, sigma))


def shuffled(image: Pixels, offsets: npt.NDArray[np.int64], reach: int) -> Pixels:
    """Cells from the last to the first; offsets (passes, rows, columns, 2) hold dy and dx."""
    image = image.copy()
    height, width = image.shape[:2]
    for moves in offsets:
        for row in range(height - reach, reach, -1):
            for column in range(width - reach, reach, -1):
                down, right = moves[row - reach - 1, column - reach - 1]
                image[row, column] = image[row + down, column + right]
    return image


def motion_blur(image: Pixels, severity: int, rng: Rng) -> Pixels:
    return smeared(image, rng.uniform(-45, 45), *blur.MOTION[severity])


def smeared(image: Pixels, angle_deg: float, radius: int, sigma: float) -> Pixels:
    angle = math.radians(angle_deg)
    rows, columns = np.indices(image.shape[:2])
    weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    total = np.zeros(image.shape)
    for step, weight in enumerate(weights / weights.sum()):
        y = np.clip(rows + math.ceil(step * math.sin(angle) - 0.5), 0, image.shape[0] - 1)
        x = np.clip(columns + math.ceil(step * math.cos(angle) - 0.5), 0, image.shape[1] - 1)
        total += weight * image[y, x]
    return floor255(total / 255)


def zoom_blur(image: Pixels, severity: int, rng: Rng) -> Pixels:
    step, number = blur.ZOOM[severity]
    factors = np.arange(1, 1 + (number - 0.5) * step, step)
    x = image / 255
    return floor255((x + sum(zoomed(x, factor) for factor in factors)) / (len(factors) + 1))


def zoomed(x: Floats, factor: float) -> Floats:
    side = x.shape[0]
    kept = math.ceil(side / factor)
    top = (side - kept) // 2
    large = ndimage.zoom(x[top : top + kept, top : top + kept], (factor, factor, 1), order=1)
    trim = (large.shape[0] - side) // 2
    return np.asarray(large[trim : trim + side, trim : trim + side])


def fog(image: Pixels, severity: int, rng: Rng) -> Pixels:
    strength, decay = weather.FOG[severity]
    x = image / 255
    clouds = plasma(1 << (len(x) - 1).bit_length(), decay, rng)[: len(x), : len(x), None]
    return floor255((x + strength * clouds) * x.max() / (x.max() + strength))


def plasma(side: int, decay: float, rng: Rng) -> Floats:
    out, roughness, step = np.zeros((side, side)), 100.0, side
    while step >= 2:
        cells, half = side // step, step // 2
        noises = roughness**2 * (2 * rng.random((3, cells, cells)) - 1)
        at = np.arange(0, side, step)
        here, there = np.ix_(at, at), np.ix_((at + step) % side, at)
        right, both = np.ix_(at, (at + step) % side), np.ix_((at + step) % side, (at + step) % side)
        middle = np.ix_(at + half, at + half)
        out[middle] = (out[here] + out[there] + out[right] + out[both]) / 4 + noises[0]
        above, left = np.ix_((at - half) % side, at + half), np.ix_(at + half, (at - half) % side)
        out[np.ix_(at, at + half)] = (out[here] + out[right] + out[middle] + out[above]) / 4 + noises[1]
        out[np.ix_(at + half, at)] = (out[here] + out[there] + out[middle] + out[left]) / 4 + noises[2]
        step, roughness = half, roughness / decay
    return (out - out.min()) / (out - out.min()).max()


def frost(image: Pixels, severity: int, rng: Rng) -> Pixels:
    image_share, frost_share = weather.FROST[severity]
    height, width = image.shape[:2]
    photos = photographs(height, width)
    photo = photos[rng.integers(len(photos))].numpy()
    top, left = rng.integers(photo.shape[1] - height), rng.integers(photo.shape[2] - width)
    layer = np.moveaxis(photo[:, top : top + height, left : left + width], 0, 2)
    return floor255((image_share * image + frost_share * layer) / 255)


def snow(image: Pixels, severity: int, rng: Rng) -> Pixels:
    mean, std, factor, threshold, radius, sigma, kept = weather.SNOW[severity]
    flakes = zoomed(rng.normal(mean, std, (*image.shape[:2], 1)), factor)
    flakes[flakes < threshold] = 0
    layer = smeared(floor255(flakes), rng.uniform(-135, -45), radius, sigma) / 255
    x = image / 255
    grey = x @ np.array([0.299, 0.587, 0.114])
    x = kept * x + (1 - kept) * np.maximum(x, 1.5 * grey[:, :, None] + 0.5)
    return floor255(x + layer + layer[::-1, ::-1])


def spatter(image: Pixels, severity: int, rng: Rng) -> Pixels:
    water = severity in spatter_parts.WATER
    mean, std, sigma, threshold = spatter_parts.WATER[severity][:4] if water else spatter_parts.MUD[severity]
    liquid = ndimage.gaussian_filter(rng.normal(mean, std, image.shape[:2]), sigma, mode="nearest")
    liquid[liquid < threshold] = 0
    if water:
        light = spatter_parts._water(floor255(liquid))[:, :, None] * spatter_parts.WATER[severity][4]
        return floor255(image / 255 + light * np.array([175, 238, 238]) / 255)
    mud = ndimage.gaussian_filter((liquid > threshold).astype(float), 1.5, mode="nearest")[:, :, None]
    mud[mud < 0.8] = 0
    return floor255(image / 255 * (1 - mud) + mud * np.array([63, 42, 20]) / 255)


def brightness(image: Pixels, severity: int, rng: Rng) -> Pixels:
    hue, saturation, value = hsv(image / 255)
    return floor255(rgb(hue, saturation, np.clip(value + digital.BRIGHTNESS[severity], 0, 1)))


def contrast(image: Pixels, severity: int, rng: Rng) -> Pixels:
    x = image / 255
    mean = x.mean((0, 1))
    return floor255((x - mean) * digital.CONTRAST[severity] + mean)


def saturate(image: Pixels, severity: int, rng: Rng) -> Pixels:
    factor, added = digital.SATURATION[severity]
    hue, saturation, value = hsv(image / 255)
    return floor255(rgb(hue, np.clip(saturation * factor + added, 0, 1), value))


def hsv(x: Floats) -> tuple[Floats, Floats, Floats]:
    """Hue in sixths of a turn."""
    red, green, blue = np.moveaxis(x, 2, 0)
    value, chroma = x.max(2), np.ptp(x, 2)
    safe = np.where(chroma > 0, chroma, 1)
    hue = np.where(value == red, (green - blue) / safe, np.where(value == green, 2 + (blue - red) / safe, 0))
    hue = np.where((value != red) & (value != green), 4 + (red - green) / safe, hue) % 6
    return np.where(chroma > 0, hue, 0), np.where(value > 0, chroma / np.where(value > 0, value, 1), 0), value


def rgb(hue: Floats, saturation: Floats, value: Floats) -> Floats:
    ramps = [(offset + hue) % 6 for offset in (5, 3, 1)]
    return np.stack([value * (1 - saturation * np.clip(np.minimum(k, 4 - k), 0, 1)) for k in ramps], 2)


def jpeg_compression(image: Pixels, severity: int, rng: Rng) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=digital.QUALITY[severity])
    return np.array(Image.open(file))


def pixelate(image: Pixels, severity: int, rng: Rng) -> Pixels:
    side = len(image)
    small = int(side * digital.KEPT[severity])
    coarse = Image.fromarray(image).resize((small, small), Image.Resampling.BOX)
    return np.array(coarse.resize((side, side), Image.Resampling.NEAREST))


def elastic_transform(image: Pixels, severity: int, rng: Rng) -> Pixels:
    side = len(image)
    amplitude, sigma, reach = (value * side / 224 for value in digital.ELASTIC[severity])
    third, rows, columns = side // 3, *np.indices((side, side))
    low, high = side // 2 - third, side // 2 + third
    corners = np.array([[high, high], [high, low], [low, low]], dtype=float)  # x, y
    moved = np.hstack((corners + rng.uniform(-reach, reach, (3, 2)), np.ones((3, 1))))
    back = np.linalg.solve(moved, corners).T @ np.stack((columns, rows, np.ones((side, side)))).reshape(3, -1)
    places = back[::-1].reshape(2, side, side)
    x = read(image / 255, places, "mirror")
    field = [
        amplitude * ndimage.gaussian_filter(rng.uniform(-1, 1, (side, side)), sigma, mode="reflect", truncate=3)
        for _ in range(2)
    ]
    return floor255(read(x, np.stack((rows + field[1], columns + field[0])), "reflect"))


def read(x: Floats, places: Floats, mode: str) -> Floats:
    return np.stack([ndimage.map_coordinates(c, places, order=1, mode=mode) for c in np.moveaxis(x, 2, 0)], 2)


FUNCTIONS = (
    *(gaussian_noise, shot_noise, impulse_noise, speckle_noise),
    *(gaussian_blur, defocus_blur, glass_blur, motion_blur, zoom_blur),
    *(fog, frost, snow, spatter),
    *(brightness, contrast, saturate, jpeg_compression, pixelate, elastic_transform),
)
REFERENCE: dict[str, Callable[[Pixels, int, Rng], Pixels]] = {f.__name__: f for f in FUNCTIONS}
