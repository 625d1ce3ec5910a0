"""The pictures of synthetic-av: seven families, told by their pattern more than by their colour."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mmbench.data.dice import Dice, Floats

Canvas = NDArray[np.float64]  # (H, W, 3) in [0, 1]


@dataclass(frozen=True)
class Light:
    """What all pictures of one session share."""

    hue_shift: float
    saturation: float
    brightness: float
    background: float  # hue

    @staticmethod
    def of(dice: Dice) -> Light:
        return Light(dice.between(-0.06, 0.06), dice.between(0.4, 1.0), dice.between(0.7, 1.1), dice.between(0, 1))


@dataclass(frozen=True)
class Scene:
    """Where a family draws: coordinates from 0 (left, top) to 1, the session's light and the sample's own dice."""

    x: Floats  # (H, W)
    y: Floats  # (H, W)
    light: Light
    dice: Dice

    def colour(self, hue: float, saturation: float, value: float) -> Floats:
        """(3,) near the given colour: jittered by the sample, shifted by the session."""
        hue += self.light.hue_shift + self.dice.between(-0.05, 0.05)
        return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value * self.dice.between(0.8, 1.0)))

    def plain(self) -> Canvas:
        """A background that tells nothing."""
        shade = self.dice.between(0.3, 0.7) + self.dice.between(-0.2, 0.2) * self.y
        return np.asarray(shade[..., None] * np.array(colorsys.hsv_to_rgb(self.light.background, 0.3, 1.0)))


def cross(scene: Scene) -> Canvas:
    dice, canvas = scene.dice, scene.plain()
    cx, cy, half = dice.between(0.3, 0.7), dice.between(0.3, 0.7), dice.between(0.2, 0.36)
    across, down = np.abs(scene.x - cx), np.abs(scene.y - cy)
    canvas = paint(canvas, np.maximum(across, down) < half, scene.colour(0.1, 0.05, 1.0))
    bars = (np.minimum(across, down) < 0.28 * half) & (np.maximum(across, down) < 0.85 * half)
    return paint(canvas, bars, scene.colour(0.0, 0.9, 0.85))


def flames(scene: Scene) -> Canvas:
    dice, canvas = scene.dice, scene.plain()
    for _ in range(4 + dice.below(3)):
        cx, width, top = dice.between(0.1, 0.9), dice.between(0.1, 0.2), dice.between(0.15, 0.55)
        tongue = np.abs(scene.x - cx) < width * np.clip((scene.y - top) / (1 - top), 0, 1)
        canvas = paint(canvas, tongue, scene.colour(dice.between(0.02, 0.11), 0.95, 1.0))
    return canvas


def streaks(scene: Scene) -> Canvas:
    dice = scene.dice
    canvas = scene.plain() * 0.5 + 0.4 * scene.colour(0.6, 0.5, 0.8)
    slope, pitch = dice.between(0.3, 0.7), dice.between(0.09, 0.16)
    lines = ((scene.x + slope * scene.y) / pitch + dice.between(0, 1)) % 1.0 < 0.3
    drops = ((scene.y + 0.37 * np.floor((scene.x + slope * scene.y) / pitch)) * dice.between(2, 4)) % 1.0 < 0.7
    return paint(canvas, lines & drops, scene.colour(0.56, 0.25, 1.0))


def trunks(scene: Scene) -> Canvas:
    dice = scene.dice
    canvas = scene.plain() * 0.5 + 0.4 * scene.colour(0.3, 0.5, 0.6)
    pitch, lean = dice.between(0.18, 0.32), dice.between(-0.12, 0.12)
    stems = ((scene.x + lean * scene.y) / pitch + dice.between(0, 1)) % 1.0 < dice.between(0.35, 0.55)
    return paint(canvas, stems, scene.colour(0.08, 0.6, 0.45))


def bricks(scene: Scene) -> Canvas:
    dice = scene.dice
    height, joint = dice.between(0.12, 0.2), 0.16
    row = scene.y / height + dice.between(0, 1)
    column = scene.x / (2 * height) + 0.5 * (np.floor(row) % 2) + dice.between(0, 1)
    mortar = (row % 1.0 < joint) | (column % 1.0 < joint / 2)
    wall = np.broadcast_to(scene.colour(0.04, 0.55, 0.65), (*scene.x.shape, 3))
    return paint(wall, mortar, scene.colour(0.1, 0.1, 0.85))


def disc(scene: Scene) -> Canvas:
    dice, canvas = scene.dice, scene.plain()
    cx, cy, radius = dice.between(0.35, 0.65), dice.between(0.35, 0.65), dice.between(0.24, 0.38)
    away = np.hypot(scene.x - cx, scene.y - cy) / radius
    canvas = paint(canvas, away < 1.0, scene.colour(0.13, 0.5, 0.8))
    return paint(canvas, (away > 0.3) & (away < 0.65), scene.colour(0.12, 0.4, 0.45))


def horizon(scene: Scene) -> Canvas:
    dice = scene.dice
    edge = dice.between(0.4, 0.7) + 0.06 * np.sin(2 * np.pi * (dice.between(0.8, 2.0) * scene.x + dice.between(0, 1)))
    sky = np.broadcast_to(scene.colour(0.57, 0.4, 0.95), (*scene.x.shape, 3))
    return paint(sky * (0.7 + 0.3 * scene.y[..., None]), scene.y > edge, scene.colour(0.28, 0.6, 0.45))


FAMILIES: Mapping[str, Callable[[Scene], Canvas]] = {
    family.__name__: family for family in (cross, flames, streaks, trunks, bricks, disc, horizon)
}


def picture(family: str, light: Light, dice: Dice, size: int) -> NDArray[np.uint8]:
    """(size, size, 3) uint8: the family's scene behind clutter, in its session's light, with sensor noise."""
    x, y = _grid(size)
    scene = Scene(x, y, light, dice)
    canvas = _clutter(FAMILIES[family](scene), scene)
    grey = canvas.mean(axis=2, keepdims=True)
    canvas = grey + (canvas - grey) * light.saturation * dice.between(0.3, 1.0)
    canvas = 0.5 + (canvas - 0.5) * dice.between(0.5, 1.0)
    canvas = canvas * light.brightness * dice.between(0.75, 1.15) + dice.between(0.02, 0.11) * dice.noise(*canvas.shape)
    return np.asarray(np.rint(np.clip(canvas, 0.0, 1.0) * 255), dtype=np.uint8)


def paint(canvas: Canvas, where: NDArray[np.bool_], colour: Floats) -> Canvas:
    """(H, W, 3) with one colour laid over a region."""
    return np.where(where[..., None], colour, canvas)


def _clutter(canvas: Canvas, scene: Scene) -> Canvas:
    """Boxes and blobs of any colour in front of everything."""
    dice = scene.dice
    for _ in range(1 + dice.below(4)):
        across = (scene.x - dice.between(0, 1)) / dice.between(0.06, 0.2)
        down = (scene.y - dice.between(0, 1)) / dice.between(0.06, 0.2)
        inside = np.hypot(across, down) < 1 if dice.chance(0.5) else np.maximum(abs(across), abs(down)) < 1
        hue, saturation, value = dice.between(0, 1), dice.between(0.1, 0.9), dice.between(0.2, 1.0)
        canvas = paint(canvas, inside, np.array(colorsys.hsv_to_rgb(hue, saturation, value)))
    return canvas


@lru_cache(maxsize=4)
def _grid(size: int) -> tuple[Floats, Floats]:
    centres = (np.arange(size) + 0.5) / size
    y, x = np.meshgrid(centres, centres, indexing="ij")
    return x, y
