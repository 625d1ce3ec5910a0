"""What scenes are made of: noise, slow curves, clicks, tones and a filter that gives the octaves stated powers.

Everything is float64. Slow curves and the filter are periodic in the scene's length, so that a scene may be repeated;
tones and bursts begin anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft, rfft
from scipy.signal import lfilter

from mmbench.rng import Draws

Floats = NDArray[np.float64]

SAMPLE_RATE = 16_000  # Hz
CONTROL = 128  # samples between two points of a slow curve: 125 points per second
OCTAVE_EDGES = 31.25 * 2.0 ** np.arange(9)  # Hz: 31 to 62, ..., 4000 to 8000
OCTAVES = len(OCTAVE_EDGES) - 1
PARTS = 12  # of an octave, in which powers are counted
ROUNDS = 12  # of fitting the gains
GAIN_LIMIT_DB = 80.0
SUBSONIC_DB = 24.0  # per octave below the first: there, noise would take power and not be heard
WAVETABLE = 4096  # points per period
GRAINS = 32  # pitches of chirps in their band
GRAIN_DECAYS = 6  # length of a chirp in decay times


@dataclass(frozen=True)
class Source:
    """The random material of one scene; every name is a stream of its own."""

    draws: Draws  # of one sample
    samples: int  # a multiple of CONTROL

    @property
    def seconds(self) -> float:
        return self.samples / SAMPLE_RATE

    def between(self, name: str, low: float, high: float, count: int = 1) -> Floats:
        """(count,) uniforms of (low, high)."""
        return low + (high - low) * self.draws.uniform(name, (count,))[0].numpy().astype(np.float64)

    def white(self, name: str, count: int | None = None) -> Floats:
        """(count,) standard normals; as many as samples unless told."""
        return self.draws.normal(name, (count or self.samples,))[0].numpy().astype(np.float64)

    def slow(self, name: str, cutoff_hz: float) -> Floats:
        """(samples / CONTROL,) noise of unit variance below a cut-off, as a slow curve."""
        points = self.samples // CONTROL
        bins = max(2, min(round(cutoff_hz * self.seconds), points // 2 - 1))
        parts = self.white(name, 2 * bins)
        spectrum = np.zeros(points // 2 + 1, dtype=np.complex128)
        spectrum[1 : bins + 1] = parts[:bins] + 1j * parts[bins:]
        return unit(np.asarray(irfft(spectrum, points), dtype=np.float64))

    def smooth(self, curve: Floats) -> Floats:
        """A slow curve at every sample, (samples / CONTROL,) -> (samples,)."""
        out = (np.roll(curve, -1) - curve)[:, None] * (np.arange(CONTROL) / CONTROL)
        out += curve[:, None]
        return np.asarray(out).reshape(-1)

    def tone(self, table: Floats, hertz: Floats, start: float = 0.0) -> Floats:
        """A wavetable played at a slow curve of frequencies, (samples / CONTROL,) -> (samples,)."""
        step = hertz / SAMPLE_RATE  # periods per sample
        begin = (start + CONTROL * (np.cumsum(step) - step)) % 1.0
        place = (step * WAVETABLE)[:, None] * np.arange(CONTROL)
        place += (begin * WAVETABLE)[:, None]
        index = place.astype(np.int32)
        index &= WAVETABLE - 1  # a power of two: the remainder is a mask, several times faster than a division
        return np.asarray(table.take(index)).reshape(-1)

    def bursts(self, name: str, rate_hz: float, spread: float, decay_s: float) -> Floats:
        """Poisson clicks with log-normal amplitudes, each a decaying burst of noise; unit RMS, or silence."""
        at, amplitude = self._clicks(name, rate_hz, spread)
        power = np.bincount(at, weights=amplitude**2, minlength=self.samples)
        # Independent bursts add up in power, so one noise under the root of their summed power has their law.
        envelope = np.sqrt(lfilter([1.0], [1.0, -np.exp(-2.0 / (decay_s * SAMPLE_RATE))], power))
        return unit(self.white(f"{name}-noise") * envelope)

    def chirps(self, name: str, rate_hz: float, spread: float, decay_s: float, band: tuple[float, float]) -> Floats:
        """Poisson clicks with log-normal amplitudes, each a decaying rising tone; unit RMS, or silence."""
        at, amplitude = self._clicks(name, rate_hz, spread)
        grains = _grains(decay_s, *band)
        kind = self.draws.integers(f"{name}-pitch", GRAINS, (len(at),))[0].tolist()
        length = grains.shape[1]
        out = np.zeros(self.samples + length)
        for start, grain, loud in zip(at.tolist(), kind, amplitude.tolist(), strict=True):
            out[start : start + length] += loud * grains[grain]
        for start in range(self.samples, len(out), self.samples):  # what rings beyond the end rings at the start
            tail = out[start : start + self.samples]
            out[: len(tail)] += tail
        return unit(out[: self.samples])

    def _clicks(self, name: str, rate_hz: float, spread: float) -> tuple[NDArray[np.int64], Floats]:
        """Positions and amplitudes of a Poisson train."""
        expected = rate_hz * self.seconds
        most = int(expected + 6 * np.sqrt(expected) + 8)
        gaps = -np.log(self.between(f"{name}-gaps", 0.0, 1.0, most)) / rate_hz
        at = (np.cumsum(gaps) * SAMPLE_RATE).astype(np.int64)
        at = at[at < self.samples]
        return at, np.exp(spread * self.white(f"{name}-amplitudes", most)[: len(at)])


def unit(wave: Floats) -> Floats:
    """Scaled to an RMS of 1; silence stays silence."""
    rms = np.sqrt(np.mean(wave**2))
    return wave / rms if rms > 0 else wave


def wavetable(amplitudes: Sequence[float]) -> Floats:
    """One period of a sum of harmonics, the first being the fundamental."""
    turn = 2 * np.pi * np.arange(WAVETABLE) / WAVETABLE
    return np.asarray(sum(loud * np.sin((h + 1) * turn) for h, loud in enumerate(amplitudes)), dtype=np.float64)


def shaped(wave: Floats, octaves_db: Sequence[float]) -> Floats:
    """The wave with the stated powers in its octaves, by a zero-phase gain linear in log-frequency; unit RMS."""
    spectrum = rfft(wave)
    part, position = _bins(len(wave))
    power = np.bincount(part, weights=spectrum.real**2 + spectrum.imag**2, minlength=OCTAVES * PARTS)
    target = np.asarray(octaves_db) - np.logaddexp.reduce(np.asarray(octaves_db) * _NEPER) / _NEPER
    middles = (np.arange(OCTAVES * PARTS) + 0.5) / PARTS
    gain_db = np.zeros(OCTAVES)
    for _ in range(ROUNDS):
        weighted = power[: OCTAVES * PARTS] * np.exp(_curve(middles, gain_db) * _NEPER)
        octaves = weighted.reshape(OCTAVES, PARTS).sum(1)
        reached = np.log(np.maximum(octaves / max(octaves.sum(), 1e-300), 1e-30)) / _NEPER
        gain_db = np.clip(gain_db + target - reached, -GAIN_LIMIT_DB, GAIN_LIMIT_DB)
    spectrum *= np.exp(_curve(position, gain_db) * (_NEPER / 2))
    spectrum[0] = 0
    return unit(np.asarray(irfft(spectrum, len(wave)), dtype=np.float64))


_NEPER = np.log(10) / 10  # decibels of power to the natural logarithm


def _curve(position: Floats, gain_db: Floats) -> Floats:
    """Gains (dB) at positions in octaves above the lowest edge."""
    below = gain_db[0] - SUBSONIC_DB * np.arange(4, 0, -1)
    return np.asarray(np.interp(position, np.arange(-4, OCTAVES) + 0.5, np.concatenate([below, gain_db])))


@lru_cache(maxsize=16)
def _bins(samples: int) -> tuple[NDArray[np.int64], Floats]:
    """Per frequency: its part of an octave (the last one counts what lies outside) and its position in octaves."""
    hertz = np.arange(samples // 2 + 1) * (SAMPLE_RATE / samples)
    hertz[0] = hertz[1]
    position = np.log2(hertz / OCTAVE_EDGES[0])
    part = np.floor(position * PARTS).astype(np.int64)
    return np.where((part >= 0) & (part < OCTAVES * PARTS), part, OCTAVES * PARTS), position


@lru_cache(maxsize=8)
def _grains(decay_s: float, low_hz: float, high_hz: float) -> Floats:
    """(GRAINS, length): tones across the band that rise by half within one decay time."""
    time = np.arange(int(GRAIN_DECAYS * decay_s * SAMPLE_RATE)) / SAMPLE_RATE
    pitch = low_hz * (high_hz / low_hz) ** ((np.arange(GRAINS) + 0.5) / GRAINS)
    # The rise stops after a decay time, or a slow chirp would leave its band before it has faded.
    turns = np.where(time < decay_s, time + time**2 / (4 * decay_s), 1.5 * time - decay_s / 4)
    return np.asarray(np.sin(2 * np.pi * pitch[:, None] * turns) * np.exp(-time / decay_s))
