"""Generated scenes have the octaves, peaks and dynamics of the recordings they stand for, and come from draws alone."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from mmbench.audio_scenes import SCENES, generate
from mmbench.audio_source import Floats, Source, shaped
from mmbench.errors import UnknownNameError
from mmbench.rng import Draws, StreamKey

LENGTH = 160_000  # samples, 10 s
SEEDS = 6
OCTAVES_HZ = 31.25 * 2.0 ** np.arange(9)
# Of the published recordings: power per octave from 31 Hz (dB of the total), kurtosis, 95 to 5 % of 20 ms levels (dB).
RECORDED = {
    "rain": ((-13.2, -11.9, -9.0, -9.9, -8.9, -9.6, -8.7, -6.9), 3.8, 4.9),
    "wind": ((-10.4, -10.6, -13.1, -6.4, -11.4, -15.5, -22.1, -32.1), 3.3, 9.6),
    "crowd": ((-35.2, -25.1, -11.4, -9.9, -3.5, -8.9, -15.8, -26.9), 5.0, 14),
    "underwater": ((-37.3, -12.4, -5.3, -5.4, -5.3, -12.4, -22.1, -25.7), 5.1, 8.6),
    "drops": ((-24.2, -18.2, -21.4, -17.9, -11.6, -8.1, -13.9, -18.5), 120, 27),
    "fire": ((-8.6, -8.6, -8.7, -15.5, -24.2, -24.4, -21.1, -17.1), 8, 11),
    "siren": ((-32.3, -33.6, -25.4, -19.3, -2.2, -13.9, -20.1, -30.9), 3.4, 16),
    "snow": ((-19.0, -13.2, -14.3, -15.6, -14.4, -10.3, -7.2, -2.5), 14, 7.8),
    "frost": ((-23.4, -14.2, -16.3, -12.9, -2.5, -7.0, -12.1, -15.3), 4.3, 20),
    "concert": ((-4.2, -5.2, -10.7, -12.5, -11.5, -12.9, -14.6, -14.6), 5.1, 29),
}


def draws(seed: int = 0, name: str = "a") -> Draws:
    return Draws(StreamKey("synthetic-av", "test", seed), "family/name", 3, (name,), torch.tensor([LENGTH]))


def octaves_db(wave: Floats) -> Floats:
    power, hertz = np.abs(np.fft.rfft(wave)) ** 2, np.fft.rfftfreq(len(wave), 1 / 16_000)
    pairs = pairwise(OCTAVES_HZ)
    inside = [power[(hertz >= low) & (hertz < high)].sum() for low, high in pairs]
    return np.asarray(10 * np.log10(np.array(inside) / power.sum()))


def kurtosis(wave: Floats) -> float:
    return float(np.mean(wave**4) / np.mean(wave**2) ** 2)


def dynamics_db(wave: Floats) -> float:
    level = np.sqrt((wave[: len(wave) // 320 * 320].reshape(-1, 320) ** 2).mean(1))
    return float(20 * np.log10(np.percentile(level, 95) / np.percentile(level, 5)))


@pytest.mark.parametrize("kind", RECORDED)
def test_scene_resembles_its_recordings(kind: str) -> None:
    octaves, peaked, dynamic = RECORDED[kind]
    waves = [generate(kind, draws(100 + seed), LENGTH)[:LENGTH] for seed in range(SEEDS)]
    target = np.array(octaves)
    off = np.median([octaves_db(wave) for wave in waves], axis=0) - target
    heard = target > -25
    assert np.abs(off - off[heard].mean())[heard].max() < 3
    assert 1 / 3 < np.median([kurtosis(wave) for wave in waves]) / peaked < 3
    allowed = 20 if kind == "concert" else 6
    assert abs(np.median([dynamics_db(wave) for wave in waves]) - dynamic) < allowed


def test_traffic_is_low_and_passes_by() -> None:
    wave = generate("traffic", draws(), LENGTH)
    octaves = octaves_db(wave)
    assert octaves[5:].max() < octaves[:5].min() - 3, "louder above 1 kHz than below"
    assert dynamics_db(wave) > 6


def test_thunder_is_low_and_dies_away() -> None:
    wave = generate("thunder", draws(), LENGTH)
    octaves = octaves_db(wave)
    assert (np.diff(octaves) < 0).all()
    level = np.sqrt((wave.reshape(10, -1) ** 2).mean(1))
    assert level.argmax() < 5 and level[-1] < 0.3 * level.max()


@pytest.mark.parametrize("kind", SCENES)
def test_a_scene_has_unit_power_and_only_its_draws(kind: str) -> None:
    wave = generate(kind, draws(), 16_000)
    assert len(wave) >= 16_000 and np.isfinite(wave).all()
    assert np.mean(wave**2) == pytest.approx(1.0)
    assert np.array_equal(wave, generate(kind, draws(), 16_000))
    for other in (generate(kind, draws(seed=1), 16_000), generate(kind, draws(name="b"), 16_000)):
        assert abs(np.corrcoef(wave, other)[0, 1]) < 0.5


def test_a_clip_longer_than_a_scene_hears_it_again() -> None:
    assert len(generate("wind", draws(), 400_000)) == 163_840
    assert len(generate("wind", draws(), 50_000)) < 70_000, "a short clip must not pay for a long scene"


def test_unknown_scene() -> None:
    with pytest.raises(UnknownNameError, match="no scene 'rian'; did you mean: rain"):
        generate("rian", draws(), 16_000)


def test_shaping_reaches_the_octaves_of_an_uneven_noise() -> None:
    white = np.cumsum(np.random.default_rng(0).standard_normal(65_536))  # brown: 6 dB per octave too low at the top
    target = np.array([-30.0, -20, -10, -3, -10, -20, -10, -6])
    reached = octaves_db(shaped(white, target))
    off = reached - target
    assert np.abs(off - off.mean()).max() < 0.1


def test_clicks_come_at_their_rate() -> None:
    source = Source(draws(), 163_840)
    counts = [len(Source(draws(seed), 163_840)._clicks("x", 100, 0.7)[0]) for seed in range(20)]
    assert np.mean(counts) == pytest.approx(100 * source.seconds, abs=4 * np.sqrt(100 * source.seconds / 20))
    assert np.var(counts) > 300, "a Poisson train does not come at a fixed count"
