"""Twelve everyday scenes as sounds made from draws, matched to published recordings by octaves, peaks and dynamics.

Each is an excitation under a slow random envelope, filtered until its octaves have the powers of the table. A user's
own recordings take their place where there are any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from mmbench.assets import SOUNDS, asset_files
from mmbench.audio_mix import recorded
from mmbench.audio_source import CONTROL, SAMPLE_RATE, Floats, Source, shaped, unit, wavetable
from mmbench.errors import UnknownNameError
from mmbench.rng import Draws

BLOCK = 16_384  # samples: scenes are made in whole blocks, whose transforms are fast
LONGEST = 10 * BLOCK  # 10.24 s; a longer clip hears the scene again
MUTE = -90.0  # dB: an octave left to another part of the scene

VOICES, BREATH = 12, 0.3
VOICE = wavetable([1 / h for h in range(1, 16)])
ENGINE = wavetable([1.0] * 30)
DRONE = wavetable([1, 0.6, 0.4, 0.3, 0.2, 0.15])
SIREN = wavetable([1, 0.2, 0.1])
CHORDS = np.array([[0, 4, 7], [9, 12, 16], [5, 9, 12], [7, 11, 14]])  # semitones above the root


@dataclass(frozen=True)
class Scene:
    """How one scene is made."""

    excite: Callable[[Source], Floats]
    octaves_db: tuple[float, ...]  # power in 31 to 62 Hz, ..., 4 to 8 kHz
    depth: float = 0.0  # of the envelope exp(depth * g), g of unit variance
    cutoff_hz: float = 1.0  # of g


def scene_noise(kind: str, draws: Draws, length: int) -> Floats:
    """(length,) of a scene for one sample: a recording of the user's where there is one, else generated."""
    files = asset_files(kind, SOUNDS)
    return recorded(files, draws, length) if files else np.resize(generate(kind, draws, length), length)


def generate(kind: str, draws: Draws, length: int) -> Floats:
    """At least `length` samples, up to 10.24 s, of unit RMS; it may be repeated without a gap."""
    if kind not in SCENES:
        raise UnknownNameError("scene", kind, SCENES)
    scene = SCENES[kind]
    source = Source(draws, min(LONGEST, max(1, -(-length // BLOCK)) * BLOCK))
    wave = scene.excite(source)
    if scene.depth:
        wave = wave * source.smooth(np.exp(scene.depth * source.slow("envelope", scene.cutoff_hz)))
    return shaped(wave, scene.octaves_db)


def _rain(source: Source) -> Floats:
    return source.white("white") + 0.45 * source.bursts("clicks", 300, 0.7, 0.0015)


def _wind(source: Source) -> Floats:
    return source.white("white")  # the octaves make it low


def _crowd(source: Source) -> Floats:
    """Voices that drift in pitch, pulse with syllables and pause between phrases."""
    total, power = np.zeros(source.samples), np.zeros(source.samples // CONTROL)
    starts, pitches = source.between("phase", 0, 1, VOICES), source.between("pitch", 90, 230, VOICES)
    for voice in range(VOICES):
        drift = np.exp(0.08 * source.slow(f"drift-{voice}", 1.5))
        syllables = np.exp(0.62 * source.slow(f"syllables-{voice}", 3.5))
        phrases = 1 / (1 + np.exp(-6 * source.slow(f"phrases-{voice}", 0.4)))
        loud = syllables * phrases
        total += source.tone(VOICE, pitches[voice] * drift, starts[voice]) * source.smooth(loud)
        power += loud**2
    # The breaths are independent, so one noise under the root of their summed power has their law.
    return total + BREATH * source.white("breath") * source.smooth(np.sqrt(power))


def _underwater(source: Source) -> Floats:
    return source.white("white") + 0.45 * source.chirps("bubbles", 40, 0.5, 0.03, (150, 900))


def _drops(source: Source) -> Floats:
    return source.chirps("drops", 4, 0.6, 0.015, (500, 3000)) + 0.05 * source.white("white")


def _fire(source: Source) -> Floats:
    """Rumble in the lower octaves, crackle in the upper."""
    low, high = FIRE_OCTAVES[:5] + (MUTE,) * 3, (MUTE,) * 5 + FIRE_OCTAVES[5:]
    return shaped(source.white("rumble"), low) + 0.22 * shaped(source.bursts("crackle", 15, 1.0, 0.002), high)


def _siren(source: Source) -> Floats:
    points = np.arange(source.samples // CONTROL) * (CONTROL / SAMPLE_RATE)  # seconds
    period, start = source.between("period", 0.4, 3.0)[0], source.between("phase", 0, 1)[0]
    glide = 0.5 - 0.5 * np.cos(2 * np.pi * (points / period + start))
    return source.tone(SIREN, 520 + 450 * glide) + 0.12 * source.white("white")


def _snow(source: Source) -> Floats:
    return source.white("white") + 0.55 * source.bursts("steps", 40, 0.9, 0.002)


def _frost(source: Source) -> Floats:
    return source.chirps("cracks", 120, 0.5, 0.05, (400, 1500)) + 0.3 * source.white("white")


def _concert(source: Source) -> Floats:
    """A kick on the beat, a snare off it, four chords, a noise floor."""
    beat = 60 / source.between("tempo", 100, 135)[0]  # seconds
    first = source.between("first", 0, beat)[0]
    time = np.arange(source.samples) / SAMPLE_RATE - first  # seconds since the first beat
    since, after = time % beat, (time - beat / 2) % beat
    kick = np.sin(2 * np.pi * (55 * since + 35 * 0.04 * (1 - np.exp(-since / 0.04)))) * np.exp(-since / 0.12)
    snare = source.white("snare") * np.exp(-after / 0.06)
    root = source.between("root", 80, 160)[0]
    point = time[::CONTROL]
    chord = CHORDS[np.floor(point / (4 * beat)).astype(np.int64) % len(CHORDS)]  # (samples / CONTROL, 3)
    drone = np.asarray(sum(source.tone(DRONE, root * 2.0 ** (note / 12)) for note in chord.T))
    return np.asarray(3 * unit(kick) + unit(snare) + unit(drone) + 0.25 * source.white("white"))


def _traffic(source: Source) -> Floats:
    """A road's hum, an engine, and two or three cars that pass by."""
    engine = source.tone(ENGINE, source.between("engine", 25, 40)[0] * np.exp(0.05 * source.slow("throttle", 0.5)))
    point = np.arange(source.samples // CONTROL) * (CONTROL / SAMPLE_RATE)  # seconds
    cars = 2 + int(source.draws.integers("cars", 2)[0])
    middles, lasts = source.between("pass", 0, source.seconds, cars), source.between("length", 2, 4, cars)
    passing = np.zeros(len(point))
    for middle, last in zip(middles, lasts, strict=True):
        away = np.abs(point - middle)
        passing += np.exp(-0.5 * (4 * np.minimum(away, source.seconds - away) / last) ** 2)
    road = shaped(source.white("white"), TRAFFIC_OCTAVES) + 0.4 * unit(engine)
    return road * source.smooth(0.3 + passing)


def _thunder(source: Source) -> Floats:
    """A crack early in the scene, a long decay, two echoes."""
    time = np.arange(source.samples) / SAMPLE_RATE
    onset, decay = source.between("onset", 0, 0.25 * source.seconds)[0], source.between("decay", 1.5, 3.0)[0]
    envelope = np.full(source.samples, 0.02)
    for loud, delay in zip((1.0, 0.6, 0.4), (0.0, *source.between("echo", 0.4, 1.6, 2)), strict=True):
        since = (time - onset - delay) % source.seconds
        envelope += loud * np.exp(-since / decay) * np.minimum(since / 0.02, 1.0)
    crack = source.white("crack") * np.exp(-((time - onset) % source.seconds) / 0.03)
    return np.asarray(shaped(source.white("rumble"), THUNDER_OCTAVES) * envelope + 0.3 * crack)


FIRE_OCTAVES = (-8.6, -8.6, -8.7, -15.5, -24.2, -24.4, -21.1, -17.1)
# Nothing was measured for these two: pink noise up to 1 kHz, and power falling with the square of frequency to 300 Hz.
TRAFFIC_OCTAVES = (-7.5, -7.5, -7.5, -7.5, -7.5, -13.5, -19.5, -25.5)
THUNDER_OCTAVES = (-3.0, -6.0, -9.0, -12.0, -21.0, -30.0, -36.0, -42.0)

SCENES: Mapping[str, Scene] = {
    "rain": Scene(_rain, (-13.2, -11.9, -9.0, -9.9, -8.9, -9.6, -8.7, -6.9), 0.12, 1.0),
    "wind": Scene(_wind, (-10.4, -10.6, -13.1, -6.4, -11.4, -15.5, -22.1, -32.1), 0.30, 1.0),
    "crowd": Scene(_crowd, (-35.2, -25.1, -11.4, -9.9, -3.5, -8.9, -15.8, -26.9)),
    "underwater": Scene(_underwater, (-37.3, -12.4, -5.3, -5.4, -5.3, -12.4, -22.1, -25.7), 0.15, 2.0),
    "drops": Scene(_drops, (-24.2, -18.2, -21.4, -17.9, -11.6, -8.1, -13.9, -18.5)),
    "fire": Scene(_fire, FIRE_OCTAVES, 0.2, 1.0),
    "siren": Scene(_siren, (-32.3, -33.6, -25.4, -19.3, -2.2, -13.9, -20.1, -30.9), 0.45, 0.4),
    "snow": Scene(_snow, (-19.0, -13.2, -14.3, -15.6, -14.4, -10.3, -7.2, -2.5), 0.15, 1.0),
    "frost": Scene(_frost, (-23.4, -14.2, -16.3, -12.9, -2.5, -7.0, -12.1, -15.3), 0.65, 0.25),
    "concert": Scene(_concert, (-4.2, -5.2, -10.7, -12.5, -11.5, -12.9, -14.6, -14.6), 0.45, 0.8),
    "traffic": Scene(_traffic, TRAFFIC_OCTAVES),
    "thunder": Scene(_thunder, THUNDER_OCTAVES),
}
