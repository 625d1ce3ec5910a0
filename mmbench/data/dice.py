"""Draws for generated data: one keyed stream, thrown in order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmbench.rng import StreamKey, stream, uniforms

Floats = NDArray[np.float64]
VERSION = "mmbench-synthetic-v1"


@dataclass(frozen=True)
class Dice:
    """Every throw advances the stream, so the order of throws is part of what is generated."""

    bits: np.random.Philox

    @staticmethod
    def of(dataset: str, seed: int, name: str, purpose: str) -> Dice:
        return Dice(stream(StreamKey(dataset, "", seed, VERSION), name, purpose, 0, "draws"))

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(uniforms(self.bits, 1)[0])

    def below(self, count: int) -> int:
        """An integer of 0..count-1."""
        return min(int(count * self.between(0.0, 1.0)), count - 1)

    def chance(self, probability: float) -> bool:
        return self.between(0.0, 1.0) < probability

    def noise(self, *shape: int) -> Floats:
        """White, of unit variance, uniform: as good as normal where only its spectrum is heard or seen."""
        flat = uniforms(self.bits, int(np.prod(shape)))
        return np.asarray((flat - 0.5).reshape(shape) * np.sqrt(12.0))
