"""The two forms a batch takes: as stored, before any corruption, and as a method sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmbench.data.shards import Shards


@dataclass(frozen=True)
class Film:
    """The pictures of samples that have several each; none is read before it is asked for."""

    pictures: Shards  # (N, F, 3, H, W) uint8, the mapped pictures of the whole store
    rows: Tensor  # (B,) int64: where in it the samples of the batch are

    @property
    def length(self) -> int:
        """Pictures a sample."""
        return int(self.pictures.shape[1])

    @property
    def middle(self) -> Tensor:
        """(B,) int64: the number of the picture that stands for the film where nothing else is asked for."""
        return torch.full_like(self.rows, self.length // 2)

    def at(self, number: Tensor) -> Tensor:
        """(B, 3, H, W) uint8: of each sample the picture with this number, (B,) int64."""
        return torch.from_numpy(self.pictures.take(self.rows.numpy(), number.numpy()))


@dataclass(frozen=True)
class RawBatch:
    """Samples as stored, before any corruption; owns its tensors, so a caller may not fear aliasing."""

    wave: Tensor  # (B, S) float32 in [-1, 1], 16 kHz mono, zero-padded to the longest of the batch
    wave_lengths: Tensor  # (B,) int64 valid samples
    image: Tensor  # (B, 3, H, W) uint8 RGB, resized and centre-cropped; of a film the middle picture
    fbank: Tensor  # (B, T, 128) float32 log-mel before normalisation, zero-padded or cut to T
    frames: Tensor  # (B,) int64 valid frames
    label: Tensor  # (B,) int64, or (B, C) float32 multi-hot
    ids: tuple[str, ...]
    film: Film | None = None  # None where a sample has one picture

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, index: Tensor | Sequence[int]) -> RawBatch:
        """The samples at these positions, copied."""
        rows = torch.as_tensor(index, dtype=torch.int64)
        return RawBatch(
            wave=self.wave[rows],
            wave_lengths=self.wave_lengths[rows],
            image=self.image[rows],
            fbank=self.fbank[rows],
            frames=self.frames[rows],
            label=self.label[rows],
            ids=tuple(self.ids[row] for row in rows.tolist()),
            film=None if self.film is None else replace(self.film, rows=self.film.rows[rows]),
        )


@dataclass(frozen=True)
class Batch:
    """What a method sees: normalised tensors, and only the knowledge its track allows."""

    audio: Tensor  # (B, T, 128)
    image: Tensor  # (B, 3, H, W)
    label: Tensor | None  # (B,) int64 or (B, C) float32
    ids: tuple[str, ...]
    case: tuple[str, ...] | None = None  # None when the track forbids it
    available: Tensor | None = None  # (B, 2) bool [audio, vision]; None when the track forbids it
    affected: Tensor | None = None  # (B, 2) bool [audio, vision] corrupted or absent; told together with the case
    encoded: tuple[Tensor, Tensor] | None = None  # (B, Na, D), (B, Nv, D) kept from frozen encoders, see mmbench.prefix

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: str | torch.device) -> Batch:
        """The same batch with its tensors on another device."""
        return replace(
            self,
            audio=self.audio.to(device),
            image=self.image.to(device),
            label=None if self.label is None else self.label.to(device),
            available=None if self.available is None else self.available.to(device),
            affected=None if self.affected is None else self.affected.to(device),
            encoded=None if self.encoded is None else (self.encoded[0].to(device), self.encoded[1].to(device)),
        )

    def select(self, index: Tensor | Sequence[int]) -> Batch:
        """The samples at these positions, in this order."""
        rows = torch.as_tensor(index, dtype=torch.int64)
        at = rows.to(self.audio.device, non_blocking=True)  # else Python would wait for all that a GPU has queued
        picked = rows.tolist()
        return Batch(
            audio=self.audio[at],
            image=self.image[at],
            label=None if self.label is None else self.label[at],
            ids=tuple(self.ids[row] for row in picked),
            case=None if self.case is None else tuple(self.case[row] for row in picked),
            available=None if self.available is None else self.available[at],
            affected=None if self.affected is None else self.affected[at],
            encoded=None if self.encoded is None else (self.encoded[0][at], self.encoded[1][at]),
        )
