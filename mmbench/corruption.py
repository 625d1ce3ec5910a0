"""The contract of a corruption, `(batch, draws, severity) -> new batch`, and the stages at which it may act."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from torch import Tensor

from mmbench.cards import CorruptionCard
from mmbench.cases import parse_reference
from mmbench.errors import ConfigError
from mmbench.registry import corruptions
from mmbench.rng import Draws, StreamKey

CorruptionFunction = Callable[[Tensor, Draws, int], Tensor]


class Stage(str, Enum):
    """Where in the pipeline a corruption acts, in the order in which they are applied.

    Up to `image` on the CPU, whose bytes a digest compares; from `fbank` on wherever the model is, with draws and
    lengths that stay on the CPU.
    """

    SAMPLE = "sample"  # before everything: (B, S) float32 waveform, or (B,) int64, which picture of a film is shown
    WAVEFORM = "waveform"  # (B, S) float32 in [-1, 1], 16 kHz; rounded to 16 bits afterwards
    IMAGE = "image"  # (B, 3, H, W) uint8 RGB
    FBANK = "fbank"  # (B, T, 128) float32 raw log-mel
    NORMALISED = "normalised"  # (B, T, 128) or (B, 3, H, W) float32 as the backbone sees it
    MISSING = "missing"  # as NORMALISED, last: what stands where a modality is absent


@dataclass(frozen=True)
class Corruption:
    """A registered corruption at one severity, ready to apply."""

    card: CorruptionCard
    severity: int
    function: CorruptionFunction

    @property
    def stage(self) -> Stage:
        return Stage(self.card.stage)

    def draws(self, key: StreamKey, ids: tuple[str, ...], lengths: Tensor) -> Draws:
        return Draws(key, self.card.name, self.severity, ids, lengths)

    def apply(self, batch: Tensor, draws: Draws) -> Tensor:
        """The corrupted batch, of the same shape and type and finite; raises ConfigError if the function is not so."""
        out = self.function(batch, draws, self.severity)
        if out.shape != batch.shape or out.dtype != batch.dtype:
            raise ConfigError(
                f"corruption '{self.card.name}' turned {tuple(batch.shape)} {batch.dtype} into "
                f"{tuple(out.shape)} {out.dtype}; it must keep shape and type"
            )
        if out.is_floating_point() and not math.isfinite(float(out.sum())):  # rounding to 16 bits would hide it
            self._refuse(out, draws)
        return out

    def _refuse(self, out: Tensor, draws: Draws) -> None:
        """Unless all is finite and only the sum is not."""
        rows = (~out.flatten(1).isfinite().all(1)).nonzero()[:, 0].tolist()
        if rows:
            raise ConfigError(
                f"corruption '{self.card.name}' gave {len(rows)} of {len(out)} samples values that are not finite, "
                f"such as '{draws.ids[rows[0]]}'; a clip may be silent and a picture black: guard what divides by them"
            )


def load_corruption(text: str) -> Corruption:
    """Import the corruption of `family/name[@severity]`; raises ConfigError for an unknown name or severity."""
    reference = parse_reference(text)
    return Corruption(reference.card, reference.severity, corruptions().load(reference.name))
