"""Adding noise to clips at an exact ratio: float64, sample by sample, over valid samples, so that padding and batch
play no part. Sums are not clipped here: the pipeline clips once, where it rounds to 16 bits."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmbench.audio_source import SAMPLE_RATE, Floats
from mmbench.data.features import load_audio, resample
from mmbench.data.source import BrokenFileError
from mmbench.errors import DataError
from mmbench.rng import Draws

SILENCE_POWER = 1e-12  # -120 dB: far below the step of a 16-bit file
QUIET_RMS = 8 / 32768  # a recording below it holds little but the hiss of its own 16 bits
PAUSE = 0.1  # of a recording's RMS: what is quieter would be hiss when scaled up
LONGEST_RECORDING = 120 * SAMPLE_RATE  # samples; what comes later is not used, so that memory stays small


def each_clip(wave: Tensor, draws: Draws, change: Callable[[Floats, Draws], Floats]) -> Tensor:
    """(B, S) -> (B, S): each clip's valid samples changed with its own draws; padding is left as it is.

    The changes are NumPy's: a wave on another device comes to the CPU for them and goes back.
    """
    out = wave.to("cpu", copy=True)
    for row, length in enumerate(draws.lengths.tolist()):
        if length > 0:
            clip = out[row, :length].numpy().astype(np.float64)
            out[row, :length] = torch.from_numpy(change(clip, draws.select([row])))
    return out.to(wave.device)


def add_at_snr(clip: Floats, noise: Floats, snr_db: float) -> Floats:
    """The clip with noise at a ratio of powers, both without their means; a silent clip or noise changes nothing."""
    noise = noise - noise.mean()
    power, noise_power = np.var(clip), np.var(noise)
    if power < SILENCE_POWER or noise_power == 0:
        return clip
    return np.asarray(clip + noise * np.sqrt(power / (noise_power * 10 ** (snr_db / 10))))


def add_at_rms(clip: Floats, noise: Floats, rms: float) -> Floats:
    """The clip with noise of this RMS, whatever the clip's own level."""
    noise = noise - noise.mean()
    own = np.sqrt(np.mean(noise**2))
    return np.asarray(clip + noise * (rms / own)) if own > 0 else clip


def measured_snr_db(clean: Tensor, noisy: Tensor, lengths: Tensor) -> Tensor:
    """(B,) ratio of powers in dB over valid samples without their means; inf where nothing was added.

    On clipped waves it tells what is left of the nominal ratio.
    """
    ratios = []
    for before, after, length in zip(clean, noisy, lengths.tolist(), strict=True):
        signal, noise = before[:length].double(), (after - before)[:length].double()
        ratios.append(10 * (signal.var(correction=0).log10() - noise.var(correction=0).log10()))
    return torch.stack(ratios) if ratios else torch.empty(0, dtype=torch.float64)


def recorded(files: tuple[Path, ...], draws: Draws, length: int) -> Floats:
    """(length,) of one of a user's recordings, from a random place on; a short recording is repeated."""
    path = files[int(draws.integers("recording", len(files))[0])]
    wave = recording(path).astype(np.float64)
    heard = min(length, len(wave))
    energy = np.concatenate([[0.0], np.cumsum(np.concatenate([wave, wave[:heard]]) ** 2)])
    powers = (energy[heard:] - energy[:-heard])[: len(wave)] / heard  # of the excerpt from each place on
    # Never empty: the powers of all excerpts have the power of the recording as their mean.
    places = np.flatnonzero(powers >= PAUSE**2 * np.mean(wave**2))
    start = int(places[int(draws.integers("start", len(places))[0])])
    return np.resize(np.roll(wave, -start), length)


def recording(path: Path) -> NDArray[np.float32]:
    """As `read_recording`, kept for the next sample."""
    try:
        return _recording(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise DataError(f"cannot read recording {path}: {error.strerror}; mend or remove it") from None


@lru_cache(maxsize=32)
def _recording(path: Path, modified_ns: int) -> NDArray[np.float32]:
    return read_recording(path)


def read_recording(path: Path) -> NDArray[np.float32]:
    """A wav file mixed down to mono at 16 kHz, without its mean; raises DataError for a broken or a silent one."""
    try:
        load_audio(path)  # for its checks: a data set takes the first channel, a recording all of them
    except BrokenFileError as error:
        raise DataError(f"cannot use recording {path}: {error.reason}; mend or remove it") from None
    channels, rate = soundfile.read(path, dtype="float32", always_2d=True)  # (S, channels)
    wave = resample(np.ascontiguousarray(channels.mean(1)), rate)[:LONGEST_RECORDING]
    wave = np.asarray(wave - wave.mean(), dtype=np.float32)
    rms = float(np.std(wave))
    if rms < QUIET_RMS:
        level = f"{20 * np.log10(rms):.0f} dBFS" if rms > 0 else "silent"
        raise DataError(
            f"cannot use recording {path}: it is {level} as mono, below {20 * np.log10(QUIET_RMS):.0f} dBFS; "
            "replace it by a louder one or remove it"
        )
    return wave
