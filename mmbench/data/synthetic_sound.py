"""The sounds of synthetic-av: seven families, each with its own place in time and frequency."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmbench.data.dice import Dice, Floats
from mmbench.data.features import SAMPLE_RATE, samples_for

SAMPLES = samples_for(128)  # 1.295 s: fills 128 frames
TIME = np.arange(SAMPLES) / SAMPLE_RATE  # (S,) seconds
FREQUENCY = np.fft.rfftfreq(SAMPLES, 1 / SAMPLE_RATE)  # (F,) Hz
LOG_FREQUENCY = np.log(np.maximum(FREQUENCY, 50.0) / 1000.0)


@dataclass(frozen=True)
class Room:
    """What all sounds of one session share."""

    tilt: float  # exponent of the background noise's spectrum: 0 white, -1 pink
    snr_db: float
    loudness: float  # RMS
    colour: float  # exponent of the microphone's frequency response

    @staticmethod
    def of(dice: Dice) -> Room:
        return Room(dice.between(-1.2, 0.0), dice.between(2.0, 14.0), dice.between(0.03, 0.12), dice.between(-0.3, 0.3))


def siren(dice: Dice) -> Floats:
    centre, depth, rate = dice.between(550, 1000), dice.between(0.2, 0.4), dice.between(1.5, 4.0)
    phase = dice.between(0, 2 * np.pi)
    angle = 2 * np.pi * centre * (TIME - depth / (2 * np.pi * rate) * np.cos(2 * np.pi * rate * TIME + phase))
    return np.sin(angle) + dice.between(0.2, 0.5) * np.sin(2 * angle)


def hiss(dice: Dice) -> Floats:
    return _band(dice.noise(SAMPLES), dice.between(1800, 3200), dice.between(5500, 7800))


def knock(dice: Dice) -> Floats:
    rate, decay = dice.between(5.0, 10.0), dice.between(0.012, 0.03)  # Hz, seconds
    since = ((TIME * rate + dice.between(0, 1)) % 1.0) / rate
    return _band(dice.noise(SAMPLES), dice.between(250, 600), dice.between(2500, 5000)) * np.exp(-since / decay)


def bell(dice: Dice) -> Floats:
    base, decay, onset = dice.between(420, 900), dice.between(0.25, 0.7), dice.between(0.0, 0.3)
    struck = np.maximum(TIME - onset, 0.0)
    partials = [
        weight * np.sin(2 * np.pi * base * ratio * struck) * np.exp(-struck * ratio / decay)
        for ratio, weight in ((1.0, 1.0), (2.01, 0.7), (2.76, 0.6), (5.4, 0.4))
    ]
    return np.asarray(np.sum(partials, axis=0))


def hum(dice: Dice) -> Floats:
    base, beat = dice.between(75, 170), dice.between(2.0, 7.0)
    tones = [np.sin(2 * np.pi * base * k * TIME + dice.between(0, 6.28)) / k**0.7 for k in range(1, 11)]
    return np.asarray(np.sum(tones, axis=0) * (1 + 0.4 * np.sin(2 * np.pi * beat * TIME)))


def chirp(dice: Dice) -> Floats:
    period, low, sweep = dice.between(0.16, 0.34), dice.between(2200, 3400), dice.between(800, 2400)
    since = (TIME + dice.between(0, 1)) % period
    length = 0.6 * period
    window = np.sin(np.pi * np.minimum(since / length, 1.0))
    return window * np.sin(2 * np.pi * (low + sweep * since / (2 * length)) * since)


def rumble(dice: Dice) -> Floats:
    swell = 1 + 0.8 * np.sin(2 * np.pi * dice.between(0.8, 2.5) * TIME + dice.between(0, 6.28))
    return _band(dice.noise(SAMPLES), 30, dice.between(180, 420)) * swell


FAMILIES: Mapping[str, Callable[[Dice], Floats]] = {
    family.__name__: family for family in (siren, hiss, knock, bell, hum, chirp, rumble)
}


def sound(family: str, room: Room, dice: Dice) -> NDArray[np.float32]:
    """(S,) float32: the family's sound, often with a fainter other one, in its session's room."""
    clean = _unit(FAMILIES[family](dice))
    if dice.chance(0.5):
        other = tuple(FAMILIES.values())[dice.below(len(FAMILIES))]
        clean = clean + 10 ** (dice.between(-14.0, -3.0) / 20) * _unit(other(dice))
    snr_db = room.snr_db + dice.between(-6.0, 6.0)
    noise = np.fft.rfft(dice.noise(SAMPLES)) * _slope(room.tilt)
    noise *= 10 ** (-snr_db / 20) / _rms(noise)
    heard = _unit(np.fft.irfft((np.fft.rfft(_unit(clean)) + noise) * _slope(room.colour), SAMPLES))
    heard *= room.loudness * dice.between(0.6, 1.6)
    return np.asarray(heard * min(1.0, 0.99 / np.abs(heard).max()), dtype=np.float32)


def _band(noise: Floats, low: float, high: float) -> Floats:
    spectrum = np.fft.rfft(noise)
    spectrum[(low > FREQUENCY) | (high < FREQUENCY)] = 0
    return _unit(np.fft.irfft(spectrum, SAMPLES))


def _slope(exponent: float) -> Floats:
    """(F,) gain that follows a power of the frequency, 1 at 1 kHz."""
    return np.asarray(np.exp(exponent * LOG_FREQUENCY))


def _rms(spectrum: NDArray[np.complex128]) -> float:
    """RMS of the wave with this spectrum, by Parseval; the two outermost bins count as any other."""
    return float(np.sqrt(2 * np.vdot(spectrum, spectrum).real) / SAMPLES)


def _unit(wave: Floats) -> Floats:
    """RMS of one."""
    return np.asarray(wave / np.sqrt(np.mean(wave**2)))
