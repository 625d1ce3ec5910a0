"""The contract of a corruption, `(batch, draws, severity) -> new batch`, and the stages at which it may act."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
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
    watched: bool = False
    """Whether what it does to every batch is looked at: where it comes from outside the package, untested."""

    @property
    def stage(self) -> Stage:
        return Stage(self.card.stage)

    def draws(self, key: StreamKey, ids: tuple[str, ...], lengths: Tensor) -> Draws:
        return Draws(key, self.card.name, self.severity, ids, lengths)

    def apply(self, batch: Tensor, draws: Draws) -> Tensor:
        """The corrupted batch, of the same shape and type and finite; raises ConfigError if the function is not so.

        One that is watched must leave its input alone, too.
        """
        before = batch.clone() if self.watched else batch
        out = self.function(batch, draws, self.severity)
        if not isinstance(out, Tensor):
            raise ConfigError(f"corruption '{self.card.name}' returned {type(out).__name__}; it must return a tensor")
        if out.shape != batch.shape or out.dtype != batch.dtype or out.device != batch.device:
            raise ConfigError(
                f"corruption '{self.card.name}' turned {_described(batch)} into {_described(out)}; it must keep shape, "
                "type and device"
            )
        if self.watched and not torch.equal(before, batch):
            raise ConfigError(f"corruption '{self.card.name}' edits its input; let it work on a copy: x.clone()")
        looked_at = self.watched or out.device.type == "cpu"  # a training step on a GPU would wait for the answer
        if looked_at and out.is_floating_point() and not math.isfinite(float(out.sum())):  # 16 bits would hide it
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


def _described(x: Tensor) -> str:
    device = "" if x.device.type == "cpu" else f" on {x.device}"
    return f"{tuple(x.shape)} {x.dtype}{device}"


def load_corruption(text: str) -> Corruption:
    """Import the corruption of `family/name[@severity]`; raises ConfigError for an unknown name or severity."""
    reference = parse_reference(text)
    known = corruptions()
    watched = known.entry(reference.name).origin.label != "mmbench"
    return Corruption(reference.card, reference.severity, known.load(reference.name), watched)
