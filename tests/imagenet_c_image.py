"""The synthetic image of the golden statistics, rebuilt from integers and sines, and the statistics themselves."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SIDE = 224
Image = npt.NDArray[np.uint8]
WAVES = (  # amplitude, cycles across and down, phase from colour to colour
    (40, 1, 2, 0.7),
    (24, 5, -3, 1.3),
    (14, 11, 13, 2.1),
    (8, 29, -23, 0.4),
    (5, 53, 47, 1.9),
    (3, 97, -89, 0.2),
)
DISCS = (  # centre column and row, radius, colour
    (60, 70, 38, (230, 40, 40)),
    (160, 60, 28, (30, 200, 70)),
    (150, 150, 45, (40, 60, 220)),
    (60, 165, 30, (250, 240, 60)),
    (112, 112, 14, (255, 255, 255)),
    (190, 200, 18, (0, 0, 0)),
)


def golden_image() -> Image:
    """(224, 224, 3) uint8."""
    columns = np.arange(SIDE)
    rows, colours = columns[:, None, None], np.arange(3)
    levels = np.full((SIDE, SIDE, 3), 128.0)
    for amplitude, across, down, phase in WAVES:
        turns = ((across * columns[:, None] + down * rows) % SIDE) / SIDE
        levels += amplitude * np.sin(2 * np.pi * turns + phase * colours)
    for column, row, radius, rgb in DISCS:
        levels[(columns - column) ** 2 + (columns[:, None] - row) ** 2 <= radius**2] = rgb
    return np.floor(np.clip(levels, 0, 255) + 0.5).astype(np.uint8)


def statistics(out: Image, image: Image) -> dict[str, npt.NDArray[np.float64]]:
    """Moments of the output and of the change, and radial power ratios (16 bins) of the mean of the colours."""
    change = out.astype(np.float64) - image
    rest = change - change.mean((0, 1))
    correlation = np.corrcoef(rest.reshape(-1, 3).T)
    found = {
        "mad": np.abs(change).mean(),
        "rmse": np.sqrt((change**2).mean()),
        "mean": out.mean(),
        "std": out.std(),
        "frac0": (out == 0).mean(),
        "frac255": (out == 255).mean(),
        "ac_h": (rest[:, 1:] * rest[:, :-1]).sum() / (rest**2).sum(),
        "cc": (correlation.sum() - 3) / 6,
        "psr16": radial_power(out) / radial_power(image),
    }
    return {name: np.asarray(value) for name, value in found.items()}


def radial_power(image: Image) -> npt.NDArray[np.float64]:
    grey = image.mean(2)
    waves = np.fft.fftfreq(SIDE, 1 / SIDE)
    radius = np.hypot(waves[:, None], waves)
    inside = (radius > 0) & (radius <= SIDE // 2)
    bins = np.minimum(radius // 7, 15).astype(int)
    power = np.abs(np.fft.fft2(grey - grey.mean())) ** 2
    return np.bincount(bins[inside], power[inside], 16)
