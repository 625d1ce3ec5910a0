"""Formulas of the golden vectors: weights and inputs that any implementation can rebuild from integers alone."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).parent / "data" / "golden"
CHUNK = 1 << 16
MASK32 = np.uint64(2**32 - 1)
KEPT = ("pos_embed_a", "pos_embed_v", "decoder_pos_embed_a", "decoder_pos_embed_v")  # stay sine-cosine


def u(name: str, n: int) -> npt.NDArray[np.float64]:
    """n values in [-1, 1), keyed by name."""
    values = np.empty(n)
    for start in range(0, n, CHUNK):  # chunks that fit the cache: base-size weights take seconds otherwise
        stop = min(start + CHUNK, n)
        values[start:stop] = _hashed(zlib.crc32(name.encode()), start, stop)
    return values


def _hashed(key: int, start: int, stop: int) -> npt.NDArray[np.float64]:
    h = np.arange(start, stop, dtype=np.uint64)
    h *= np.uint64(2654435761)
    h += np.uint64(key)
    h &= MASK32
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        h ^= h >> np.uint64(shift)
        h *= np.uint64(factor)
        h &= MASK32
    h ^= h >> np.uint64(16)
    values: npt.NDArray[np.float64] = h.astype(np.float64) / 2**31 - 1
    return values


def filled(name: str, shape: tuple[int, ...]) -> Tensor:
    """u(name) of the given shape as float32."""
    return torch.from_numpy(u(name, math.prod(shape)).reshape(shape)).float()


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """The golden value of a parameter, float32."""
    values = u(name, math.prod(shape)).reshape(shape)
    if len(shape) == 1:
        values = 1 + 0.2 * values if name.endswith(".weight") else 0.1 * values
    elif shape[:2] == (1, 1):
        values = 0.5 * values
    else:
        values = values * math.sqrt(3 / (math.prod(shape) / shape[0]))
    return torch.from_numpy(values).float()


def fill(model: nn.Module, prefix: str = "") -> nn.Module:
    """Give a model the golden weights; position embeddings keep their values."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in KEPT:
                parameter.copy_(weight(prefix + name, tuple(parameter.shape)))
    return model


def audio(batch: int, frames: int) -> Tensor:
    """(B, T, 128) float32."""
    b, t, f = np.ogrid[:batch, :frames, :128]
    noise = u("input.audio", batch * frames * 128).reshape(batch, frames, 128)
    return torch.from_numpy(0.8 * np.sin(0.011 * (b + 1) * t + 0.07 * (b + 2) * f) + 0.6 * noise).float()


def image(batch: int, size: int) -> Tensor:
    """(B, 3, S, S) float32."""
    b, c, y, x = np.ogrid[:batch, :3, :size, :size]
    noise = u("input.image", batch * 3 * size * size).reshape(batch, 3, size, size)
    return torch.from_numpy(0.9 * np.cos(0.05 * (b + 1) * x + 0.03 * (c + 1) * y + b) + 0.5 * noise).float()


def mask_noise(modality: str, batch: int, tokens: int) -> Tensor:
    """(B, N) float64 in [0, 1); modality "audio" or "video"."""
    return torch.from_numpy((u(f"mask.{modality}", batch * tokens) + 1) / 2).reshape(batch, tokens)


def load(name: str) -> dict[str, npt.NDArray[np.float64]]:
    """All arrays of a golden file."""
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


def assert_close(got: Tensor, expected: npt.NDArray[np.float64], tolerance: float, what: str = "") -> None:
    """max |got - expected| / max |expected| stays within tolerance, and shapes agree."""
    reference = torch.from_numpy(np.asarray(expected)).double()
    assert got.shape == reference.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(reference.shape)}"
    scale = float(reference.abs().max()) or 1.0
    error = float((got.detach().double() - reference).abs().max()) / scale
    assert error <= tolerance, f"{what}: error {error:.2e} exceeds {tolerance:.0e}"
