"""Random streams keyed by content: the same sample gets the same draws whatever the batch, order, worker or machine.

Bits come from Philox4x64, whose stream NumPy guarantees; NumPy's own `normal` and `integers` may change between
releases and are not used.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import ndtri, pdtr
from torch import Tensor

EVALUATION = "mmbench-corrupt-v1"
TRAINING = "mmbench-train-v1"
FIELD_SEPARATOR = b"\x1f"
UNIT = 2.0**-53
SQRT_2 = math.sqrt(2)
CHUNK = 32768  # uniforms at a time: the cache of a core holds them through every step that they go through
BUCKETS = 1024  # of the uniforms, in the search of a Poisson table

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class StreamKey:
    """What all draws of one pass over a split share. Training names its epoch; evaluation has none."""

    dataset: str
    split: str
    seed: int
    version: str = EVALUATION
    epoch: int | None = None


def stream_digest(key: StreamKey, sample_id: str, case: str, severity: int, name: str) -> bytes:
    """The 16 bytes that key one stream; an epoch is a ninth field, so training never meets an evaluation key."""
    fields = [key.version, key.dataset, key.split, sample_id, case, str(severity), str(key.seed), name]
    if key.epoch is not None:
        fields.append(str(key.epoch))
    return hashlib.blake2b(FIELD_SEPARATOR.join(field.encode() for field in fields), digest_size=16).digest()


def stream(key: StreamKey, sample_id: str, case: str, severity: int, name: str) -> np.random.Philox:
    """The generator of one named draw; `case` is the corruption's name, so that cases share its draws."""
    words = np.frombuffer(stream_digest(key, sample_id, case, severity, name), dtype="<u8").astype(np.uint64)
    return np.random.Philox(key=words)


def uniforms(bits: np.random.Philox, n: int) -> Floats:
    """n uniforms of (0, 1), 53 bits each."""
    # A signed view: 53-bit integers convert to float64 several times faster than unsigned ones.
    return np.asarray((_raw53(bits, n).view(np.int64) + 0.5) * UNIT, dtype=np.float64)


def normals(bits: np.random.Philox, n: int) -> Floats:
    """n standard normals, one uniform each (inverse of the distribution function)."""
    return np.asarray(ndtri(uniforms(bits, n)), dtype=np.float64)


def integers(bits: np.random.Philox, n: int, high: int) -> Integers:
    """n integers of [0, high)."""
    return np.minimum(uniforms(bits, n) * high, high - 1).astype(np.int64)


def permutation(bits: np.random.Philox, n: int) -> Integers:
    """A permutation of 0..n-1: the order of n uniforms."""
    return np.argsort(uniforms(bits, n), kind="stable").astype(np.int64)


def _raw53(bits: np.random.Philox, n: int) -> npt.NDArray[np.uint64]:
    raw = np.asarray(bits.random_raw(n), dtype=np.uint64)
    raw >>= np.uint64(11)
    return raw


@dataclass(frozen=True)
class Draws:
    """The draws of one corruption for the samples of a batch; a stream is generated only when it is asked for.

    Every name is its own stream per sample, so asking for one more never shifts another. Shapes exclude the batch.
    """

    key: StreamKey
    corruption: str
    severity: int
    ids: tuple[str, ...]
    lengths: Tensor  # (B,) int64: samples of a waveform, frames of a spectrogram, rows of an image, pictures of a film

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: Sequence[int]) -> Draws:
        """The draws of some samples only: what is not selected is not generated."""
        return replace(self, ids=tuple(self.ids[row] for row in rows), lengths=self.lengths[list(rows)])

    def uniform(self, name: str, shape: Sequence[int] = ()) -> Tensor:
        """(B, *shape) float32 of (0, 1)."""
        out = np.empty((len(self), math.prod(shape)), dtype=np.float32)
        for _, places, drawn in self._drawn(name, out):
            places[:] = drawn
        # Rounding to float32 must not reach 1.
        return torch.from_numpy(out).clamp_(max=1 - 2.0**-24).view(len(self), *shape)

    def normal(self, name: str, shape: Sequence[int] = ()) -> Tensor:
        """(B, *shape) float32, standard normal; the values of `normals`."""
        out = np.empty((len(self), math.prod(shape)), dtype=np.float32)
        for _, places, drawn in self._drawn(name, out):
            # ndtri(u) is -sqrt(2) erfinv(1 - 2u), which agrees to 1e-15 and takes half the time. 1 - 2u is exact.
            drawn *= -2
            drawn += 1
            inverse = torch.from_numpy(drawn)
            torch.erfinv(inverse, out=inverse)
            np.multiply(drawn, -SQRT_2, out=places, casting="same_kind")
        return torch.from_numpy(out).view(len(self), *shape)

    def integers(self, name: str, high: int | Tensor, shape: Sequence[int] = ()) -> Tensor:
        """(B, *shape) int64 of [0, high); `high` may differ per sample, as a (B,) tensor."""
        out = np.empty((len(self), math.prod(shape)), dtype=np.int64)
        highs = high.tolist() if isinstance(high, Tensor) else [high] * len(self)
        for row, places, drawn in self._drawn(name, out):
            drawn *= highs[row]
            places[:] = np.minimum(drawn, highs[row] - 1, out=drawn)
        return torch.from_numpy(out).view(len(self), *shape)

    def permutation(self, name: str, n: int) -> Tensor:
        """(B, n) int64: a permutation of 0..n-1 per sample."""
        rows = [torch.from_numpy(permutation(self._bits(sample_id, name), n)) for sample_id in self.ids]
        return torch.stack(rows) if rows else torch.empty(0, n, dtype=torch.int64)

    def digests(self) -> tuple[bytes, ...]:
        """Per sample, the bytes that decide all its draws; they stand for the draws in a set's digest."""
        return tuple(stream_digest(self.key, sample_id, self.corruption, self.severity, "") for sample_id in self.ids)

    def _bits(self, sample_id: str, name: str) -> np.random.Philox:
        return stream(self.key, sample_id, self.corruption, self.severity, name)

    def _drawn(self, name: str, out: npt.NDArray[Any]) -> Iterator[tuple[int, npt.NDArray[Any], Floats]]:
        """Rows of out (B, N), parts of them and uniforms for each; the next part overwrites these."""
        buffer = np.empty(min(out.shape[1], CHUNK))
        for row, sample_id in enumerate(self.ids):
            bits = self._bits(sample_id, name)
            for start in range(0, out.shape[1], CHUNK):
                places = out[row, start : start + CHUNK]
                drawn = buffer[: len(places)]
                drawn[:] = _raw53(bits, len(places)).view(np.int64)
                drawn += 0.5
                drawn *= UNIT
                yield row, places, drawn


@dataclass(frozen=True)
class PoissonTable:
    """Turns uniforms into Poisson counts for a few fixed rates: the inverse of the distribution function, tabulated."""

    cumulative: Tensor  # (R, K) float64: probability of at most k
    guide: Tensor  # (R, BUCKETS) int64: the count with which the search of a bucket of uniforms begins

    @staticmethod
    def of(rates: Sequence[float]) -> PoissonTable:
        most = int(max(rates) + 12 * max(rates) ** 0.5 + 24)  # beyond what a uniform of 53 bits can reach
        counts = np.arange(most + 1)
        cumulative = torch.from_numpy(np.asarray(pdtr(counts, np.asarray(rates, dtype=np.float64)[:, None])))
        cumulative[:, -1] = 1  # ends every search
        starts = torch.arange(BUCKETS, dtype=torch.float64) / BUCKETS
        guide = torch.searchsorted(cumulative, starts.repeat(len(rates), 1))
        return PoissonTable(cumulative, guide)

    def counts(self, rows: Tensor, uniform: Tensor) -> Tensor:
        """int64 of the shape of both: how many entries of the row's table lie below the uniform."""
        cumulative, guide = self.cumulative.to(rows.device).flatten(), self.guide.to(rows.device).flatten()
        shape, rows, uniform = rows.shape, rows.flatten().long(), uniform.flatten()
        found = guide[rows * BUCKETS + (uniform * BUCKETS).long()]
        rows = rows * self.cumulative.shape[1]
        behind = (cumulative[rows + found] < uniform).nonzero()[:, 0]
        while len(behind):  # few: most buckets hold no step of the distribution
            found[behind] += 1
            behind = behind[cumulative[rows[behind] + found[behind]] < uniform[behind]]
        return found.reshape(shape)
