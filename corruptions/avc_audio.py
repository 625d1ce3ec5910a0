"""The sounds of AVROBUSTBENCH's fifteen audio-visual pairs, in their intended form.

What its code does otherwise by mistake is mended, and every repair is named in the note of the row it touches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import butter, sosfilt
from scipy.stats import poisson
from torch import Tensor

from mmbench.audio_mix import add_at_snr, each_clip
from mmbench.audio_scenes import scene_noise
from mmbench.audio_source import SAMPLE_RATE, Floats
from mmbench.registry import corruption
from mmbench.rng import Draws

NOISE_SNR_DB = {1: 40, 2: 30, 3: 20, 4: 10, 5: 0}
SCENE_SNR_DB = {1: 20, 2: 15, 3: 10, 4: 5, 5: 0}
CUT_OFF_HZ = {1: 7000, 2: 6000, 3: 4000, 4: 2000, 5: 1000}
MUTED_SHARE = {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4, 5: 0.5}

ORDER = 6  # of the low-pass
IMPULSE_RATE = 0.025  # of samples, for each sign
PHOTONS = 50  # expected at the clip's highest sample
PHOTON_STEPS = 1024  # rates told apart, so that one table serves all
SHORTEST_GAP = SAMPLE_RATE // 10  # samples
SMOKE = ("fire", "siren")

GENERATED = {
    "family": "avc",
    "modality": "audio",
    "stage": "waveform",
    "variant": "avc-fixed-1",
    "reference": "AVROBUSTBENCH: generated noise at 40 30 20 10 0 dB",
    "note": "repairs: ratio over the valid clip, means removed; a silent clip stays silent; clipped once, when rounded "
    "to 16 bits, so that the ratio before clipping is exact",
}
SCENE = {
    "family": "avc",
    "modality": "audio",
    "stage": "waveform",
    "variant": "avc-fixed-1",
    "reference": "AVROBUSTBENCH: recordings of a scene at 20 15 10 5 0 dB",
    "note": "a generated scene stands for the recordings unless a folder of assets is given; repairs: ratio over the "
    "valid clip, means removed; a silent clip stays silent; recordings mixed down to mono, heard from a random place "
    "on instead of always from the start, and refused when too quiet to be scaled up; clipped once, when rounded to "
    "16 bits, as the generated noises are",
}


@corruption(
    "avc/gaussian-sound",
    family="avc",
    modality="audio",
    stage="waveform",
    variant="avc-fixed-1",
    reference="AVROBUSTBENCH: white noise at 40 30 20 10 0 dB",
    note="repairs: the table of ratios that stands unused in the code, which takes the severity 1..5 as the ratio in "
    "dB, so that its first is its worst; ratio over the valid clip, means removed; a silent clip stays silent; "
    "clipped once, when rounded to 16 bits",
)
def gaussian(wave: Tensor, draws: Draws, severity: int) -> Tensor:
    return _generated(wave, draws, severity, lambda clip, own: _array(own.normal("noise", clip.shape)))


@corruption("avc/impulse-sound", **GENERATED)
def impulse(wave: Tensor, draws: Draws, severity: int) -> Tensor:
    return _generated(wave, draws, severity, _impulses)


@corruption("avc/shot-sound", **GENERATED)
def shot(wave: Tensor, draws: Draws, severity: int) -> Tensor:
    return _generated(wave, draws, severity, _photon_noise)


@corruption("avc/speckle-sound", **GENERATED)
def speckle(wave: Tensor, draws: Draws, severity: int) -> Tensor:
    return _generated(wave, draws, severity, lambda clip, own: clip * _array(own.normal("noise", clip.shape)))


@corruption(
    "avc/compression-sound",
    family="avc",
    modality="audio",
    stage="waveform",
    variant="avc-fixed-1",
    deterministic=True,
    reference="AVROBUSTBENCH: causal 6th-order Butterworth low-pass at 7000 6000 4000 2000 1000 Hz",
    note="a low-pass, not a codec; repair: 7000 Hz at severity 1, where 8000 Hz, the Nyquist frequency, is an error",
)
def compression(wave: Tensor, draws: Draws, severity: int) -> Tensor:
    sections = butter(ORDER, CUT_OFF_HZ[severity], fs=SAMPLE_RATE, output="sos")
    return each_clip(wave, draws, lambda clip, own: np.asarray(sosfilt(sections, clip), dtype=np.float64))


@corruption("avc/snow-sound", **SCENE, scenes=("snow", "snowfall"))
def snow(wave: Tensor, draws: Draws, severity: int) -> Tensor:
    return _scene(wave, draws, severity, "snow")


@corruption("avc/frost-sound", **SCENE, scenes=("frost", "ice cracking"))
def frost(wave: Tensor, draws: Draws, severity: int) -> Tensor:
    return _scene(wave, draws, severity, "frost")


@corruption("avc/spatter-sound", **SCENE, scenes=("water drops", "drip", "dripping"))
def spatter(wave: Tensor, draws: Draws, severity: int) -> Tensor:
    return _scene(wave, draws, severity, "drops")


@corruption("avc/wind-sound", **SCENE, scenes=("wind", "wind noise", "wind rustling leaves"))
def wind(wave: Tensor, draws: Draws, severity: int) -> Tensor:
    return _scene(wave, draws, severity, "wind")


@corruption("avc/rain-sound", **SCENE, scenes=("rain", "raining", "rainfall", "raindrop", "rain on surface"))
def rain(wave: Tensor, draws: Draws, severity: int) -> Tensor:
    return _scene(wave, draws, severity, "rain")


@corruption("avc/underwater-sound", **SCENE, scenes=("underwater", "underwater bubbling"))
def underwater(wave: Tensor, draws: Draws, severity: int) -> Tensor:
    return _scene(wave, draws, severity, "underwater")


@corruption("avc/concert-sound", **SCENE, scenes=("music", "concert", "orchestra"))
def concert(wave: Tensor, draws: Draws, severity: int) -> Tensor:
    return _scene(wave, draws, severity, "concert")


@corruption("avc/smoke-sound", **SCENE, scenes=("fire", "fire crackling", "siren"))
def smoke(wave: Tensor, draws: Draws, severity: int) -> Tensor:
    return _scene(wave, draws, severity, *SMOKE)


@corruption(
    "avc/crowd-sound", **SCENE, scenes=("crowd", "children playing", "cheering", "babbling", "hubbub", "chatter")
)
def crowd(wave: Tensor, draws: Draws, severity: int) -> Tensor:
    return _scene(wave, draws, severity, "crowd")


@corruption(
    "avc/interference-sound",
    family="avc",
    modality="audio",
    stage="waveform",
    variant="avc-fixed-1",
    reference="AVROBUSTBENCH: 2, 4, 6, 8, 10 silent segments of together .1 .2 .3 .4 .5 of the clip",
    note="segments last .1 s or more and may overlap, as in the code, so that less is silent (40 % at severity 5); "
    "repairs: the input is not edited; segments lie within the valid clip",
)
def interference(wave: Tensor, draws: Draws, severity: int) -> Tensor:
    return each_clip(wave, draws, lambda clip, own: _muted(clip, own, severity))


def _generated(wave: Tensor, draws: Draws, severity: int, noise: Callable[[Floats, Draws], Floats]) -> Tensor:
    snr_db = NOISE_SNR_DB[severity]
    return each_clip(wave, draws, lambda clip, own: add_at_snr(clip, noise(clip, own), snr_db))


def _scene(wave: Tensor, draws: Draws, severity: int, *kinds: str) -> Tensor:
    def add(clip: Floats, own: Draws) -> Floats:
        kind = kinds[int(own.integers("kind", len(kinds))[0])]
        return add_at_snr(clip, scene_noise(kind, own, len(clip)), SCENE_SNR_DB[severity])

    return each_clip(wave, draws, add)


def _array(drawn: Tensor) -> Floats:
    """The draws of a single sample, (1, S) -> (S,)."""
    return drawn[0].to(torch.float64).numpy()


def _impulses(clip: Floats, own: Draws) -> Floats:
    chance = _array(own.uniform("impulse", clip.shape))
    return np.asarray((chance < IMPULSE_RATE).astype(np.float64) - (chance > 1 - IMPULSE_RATE))


def _photon_noise(clip: Floats, own: Draws) -> Floats:
    """Poisson(50 y) / 50 - y, with y the clip between its lowest sample and its highest."""
    low, high = clip.min(), clip.max()
    if high == low:
        return np.zeros_like(clip)
    light = (clip - low) / (high - low)  # (S,) of [0, 1]
    table = _photon_table()
    step = np.rint(light * PHOTON_STEPS).astype(np.int64)
    found = np.searchsorted(table, step + _array(own.uniform("photons", clip.shape)))
    counts = found - step * (len(table) // (PHOTON_STEPS + 1))
    return np.asarray(counts / PHOTONS - light)


@lru_cache(maxsize=1)
def _photon_table() -> NDArray[np.float64]:
    """The Poisson distribution of every rate, one after another, each raised by its step: one search finds all."""
    rates = np.arange(PHOTON_STEPS + 1) * (PHOTONS / PHOTON_STEPS)
    most = int(poisson.isf(1e-9, PHOTONS))
    below = poisson.cdf(np.arange(most), rates[:, None])  # (rates, counts)
    return np.asarray(np.minimum(below, 1.0) + np.arange(PHOTON_STEPS + 1)[:, None]).reshape(-1)


def _muted(clip: Floats, own: Draws, severity: int) -> Floats:
    segments = 2 * severity
    length = min(max(int(len(clip) * MUTED_SHARE[severity] / segments), SHORTEST_GAP), len(clip))
    places = len(clip) - length + 1
    out: Floats = clip.copy()
    for start in _distinct(own.uniform("starts", (segments,))[0].tolist(), places):
        out[start : start + length] = 0
    return out


def _distinct(chances: list[float], high: int) -> set[int]:
    """Different integers of [0, high), one for each uniform (Floyd's sampling); all of them if there are no more."""
    chosen: set[int] = set()
    for last, chance in zip(range(max(high - len(chances), 0), high), chances, strict=False):
        place = int(chance * (last + 1))
        chosen.add(last if place in chosen else place)
    return chosen
