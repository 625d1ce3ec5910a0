"""Sounds of read/* and avc/*: exact ratios, published tables, and the repairs that their notes name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.signal import freqz
from torch import Tensor

from corruptions.avc_audio import _distinct, _photon_noise
from mmbench.audio_mix import measured_snr_db
from mmbench.corruption import load_corruption
from mmbench.registry import corruptions
from mmbench.rng import StreamKey

KEY = StreamKey("vggsound", "test", 0)
RATE = 16_000
SCENES = ("traffic", "crowd", "rain", "thunder", "wind")
PAIRS = {
    "generated": ("gaussian", "impulse", "shot", "speckle"),
    "scene": ("snow", "frost", "spatter", "wind", "rain", "underwater", "concert", "smoke", "crowd"),
}
AT_SNR = (
    {f"avc/{name}-sound": (40, 30, 20, 10, 0) for name in PAIRS["generated"]}
    | {f"avc/{name}-sound": (20, 15, 10, 5, 0) for name in PAIRS["scene"]}
    | {f"read/{name}_snr": (20, 15, 10, 5, 0) for name in SCENES}
)
AUDIO = [name for name in corruptions().names() if name.split("/")[0] in ("read", "avc")]
AUDIO = [name for name in AUDIO if corruptions().card(name).modality == "audio"]


def clips(count: int = 3, seconds: float = 1.2, offset: float = 0.02) -> tuple[Tensor, Tensor]:
    """Noise of uneven loudness with an offset, of different lengths, padded with zeros."""
    generator = torch.Generator().manual_seed(1)
    longest = int(seconds * RATE)
    lengths = torch.tensor([longest - 3001 * row for row in range(count)])
    wave = 0.1 * torch.randn(count, longest, generator=generator) * torch.linspace(0.1, 1, longest) + offset
    return wave * (torch.arange(longest) < lengths[:, None]), lengths


def corrupt(reference: str, wave: Tensor, lengths: Tensor) -> Tensor:
    corruption = load_corruption(reference)
    return corruption.apply(wave, corruption.draws(KEY, tuple(f"s{i}" for i in range(len(wave))), lengths))


def test_the_families_are_complete() -> None:
    named = {*AT_SNR, *(f"read/{name}" for name in SCENES), "read/gaussian_noise"}
    assert set(AUDIO) == named | {"avc/compression-sound", "avc/interference-sound"}


@pytest.mark.parametrize("severity", range(1, 6))
@pytest.mark.parametrize("name", AT_SNR)
def test_the_ratio_is_exact(name: str, severity: int) -> None:
    wave, lengths = clips()
    out = corrupt(f"{name}@{severity}", wave, lengths)
    assert (measured_snr_db(wave, out, lengths) - AT_SNR[name][severity - 1]).abs().max() < 0.01


@pytest.mark.parametrize("name", AUDIO)
def test_padding_stays_zero_and_its_length_plays_no_part(name: str) -> None:
    wave, lengths = clips()
    out = corrupt(f"{name}@5", wave, lengths)
    wider = corrupt(f"{name}@5", torch.nn.functional.pad(wave, (0, 5000)), lengths)
    for row, length in enumerate(lengths.tolist()):
        assert not out[row, length:].any() and not wider[row, length:].any()
        assert torch.equal(out[row, :length], wider[row, :length])


@pytest.mark.parametrize("level", [0.0, 0.25])
@pytest.mark.parametrize("name", AT_SNR)
def test_a_silent_clip_stays_silent(name: str, level: float) -> None:
    wave = torch.full((1, 8000), level)
    assert torch.equal(corrupt(f"{name}@5", wave, torch.tensor([8000])), wave)


@pytest.mark.parametrize("name", AUDIO)
@pytest.mark.parametrize("length", [0, 1, 7])
def test_clips_of_almost_nothing(name: str, length: int) -> None:
    wave = torch.zeros(1, 100)
    wave[0, :length] = 0.5
    out = corrupt(f"{name}@5", wave, torch.tensor([length]))
    assert torch.isfinite(out).all() and not out[0, length:].any()


def test_a_batch_of_one_equals_a_batch_of_64() -> None:
    generator = torch.Generator().manual_seed(2)
    wave, lengths = 0.1 * torch.randn(64, 4000, generator=generator), torch.arange(64) * 10 + 3000
    wave *= torch.arange(4000) < lengths[:, None]
    for name in ("avc/shot-sound@3", "avc/smoke-sound@3", "read/gaussian_noise@3", "avc/interference-sound@3"):
        corruption, ids = load_corruption(name), tuple(f"s{i}" for i in range(64))
        whole = corruption.apply(wave, corruption.draws(KEY, ids, lengths))
        for row in (0, 31, 63):
            alone = corruption.apply(wave[[row]], corruption.draws(KEY, (ids[row],), lengths[[row]]))
            assert torch.equal(alone[0], whole[row])


@pytest.mark.parametrize(("severity", "std"), list(enumerate((0.08, 0.12, 0.18, 0.26, 0.38), start=1)))
def test_read_noise_has_an_absolute_level(severity: int, std: float) -> None:
    wave = torch.zeros(2, 40_000)
    wave[1] = 0.3
    out = corrupt(f"read/gaussian_noise@{severity}", wave, torch.tensor([40_000, 40_000]))
    added = out - wave
    assert added.std().item() == pytest.approx(std, rel=0.02)
    assert abs(torch.corrcoef(added)[0, 1]) < 0.03


@pytest.mark.parametrize(("severity", "gain_db"), list(enumerate((1, 2, 4, 6, 8), start=1)))
@pytest.mark.parametrize("scene", SCENES)
def test_read_scenes_have_an_absolute_level(scene: str, severity: int, gain_db: float) -> None:
    wave, lengths = clips()
    wave[1] = 0  # also over silence
    added = corrupt(f"read/{scene}@{severity}", wave, lengths) - wave
    for row, length in enumerate(lengths.tolist()):
        level = added[row, :length].double().std(correction=0).item()
        assert 20 * np.log10(level / 0.05) == pytest.approx(gain_db, abs=0.01)


def test_impulses_are_rare_and_equally_high() -> None:
    wave, lengths = clips(1, 4.0)
    added = (corrupt("avc/impulse-sound@3", wave, lengths) - wave)[0].double()
    step = added.max() - added.median()
    hit = (added - added.median()).abs() > step / 2
    assert hit.float().mean().item() == pytest.approx(0.05, abs=0.004)
    assert (added[hit] > 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert (added[hit] - added.median()).abs().std() < 1e-4


def test_photon_noise_is_that_of_a_poisson_law() -> None:
    levels = (0.0, 0.1, 0.5, 1.0)
    clip = np.repeat(levels, 40_000)
    own = load_corruption("avc/shot-sound@3").draws(KEY, ("s",), torch.tensor([len(clip)]))
    noise = _photon_noise(clip, own).reshape(4, -1)
    for level, row in zip(levels, noise, strict=True):
        counts = 50 * (row + level)
        assert np.allclose(counts, np.rint(counts)) and counts.min() >= 0
        rate = 50 * level
        assert counts.mean() == pytest.approx(rate, abs=4 * np.sqrt(rate / 40_000) + 0.025)
        assert counts.var() == pytest.approx(rate, rel=0.04, abs=1e-9)


def test_speckle_follows_the_clip() -> None:
    wave = torch.zeros(1, 16_000)
    wave[0, 8000:] = 0.1 * torch.randn(8000, generator=torch.Generator().manual_seed(3))
    added = corrupt("avc/speckle-sound@5", wave, torch.tensor([16_000])) - wave
    assert added[0, :8000].std() < 1e-6 < added[0, 8000:].std()


@pytest.mark.parametrize(("severity", "hertz"), list(enumerate((7000, 6000, 4000, 2000, 1000), start=1)))
def test_compression_is_a_low_pass_of_order_six(severity: int, hertz: float) -> None:
    impulse = torch.zeros(1, 8000)
    impulse[0, 0] = 1.0
    response = corrupt(f"avc/compression-sound@{severity}", impulse, torch.tensor([8000]))[0].double().numpy()
    probes = [hertz / 4, hertz, min(2 * hertz, 7900)]
    low, cut, high = 20 * np.log10(np.abs(freqz(response, worN=probes, fs=RATE)[1]))
    assert abs(low) < 0.01 and cut == pytest.approx(-3.01, abs=0.02) and high < -35


@pytest.mark.parametrize("severity", range(1, 6))
def test_interference_mutes_segments_of_the_valid_clip(severity: int) -> None:
    wave, lengths = torch.ones(200, 20_000), torch.full((200,), 16_000)
    wave[:, 16_000:] = 0
    muted = corrupt(f"avc/interference-sound@{severity}", wave, lengths)[:, :16_000] == 0
    length, segments = max(int(16_000 * 0.1 * severity / (2 * severity)), 1600), 2 * severity
    runs = muted.int().diff(dim=1).eq(1).sum(1) + muted[:, 0]
    assert (runs <= segments).all() and (muted.sum(1) <= segments * length).all() and (muted.sum(1) > length).all()
    expected = 1 - (1 - length / 16_000) ** segments  # segments fall upon each other; edges are reached less often
    assert muted.float().mean().item() == pytest.approx(expected, abs=0.05)


def test_distinct_places() -> None:
    assert _distinct([0.99, 0.99, 0.99], 3) == {0, 1, 2}
    assert _distinct([0.5] * 10, 4) == {0, 1, 2, 3}
    found = [place for i in range(300) for place in _distinct([i / 300, (i * 0.618) % 1], 6)]
    assert len(found) == 600 and np.bincount(found, minlength=6).min() > 80


def test_smoke_is_fire_or_siren() -> None:
    wave, lengths = clips(1)
    wave, lengths = wave.repeat(40, 1), lengths.repeat(40)
    added = corrupt("avc/smoke-sound@3", wave, lengths) - wave
    power = torch.fft.rfft(added.double()).abs() ** 2
    hertz = torch.fft.rfftfreq(wave.shape[1], 1 / RATE)
    low = power[:, hertz < 125].sum(1) / power.sum(1)
    assert 10 <= (low > 0.4).sum() <= 30 and ((low > 0.4) | (low < 0.05)).all()


def test_every_repair_is_named() -> None:
    for name in AUDIO:
        card = corruptions().card(name)
        if card.family == "avc":
            assert card.variant == "avc-fixed-1" and "repair" in card.note, name
        if name in AT_SNR:
            assert "silent clip stays silent" in card.note and "means removed" in card.note, name


def test_read_pictures_are_those_of_imagenet_c() -> None:
    names = [name for name in corruptions().names() if name.startswith("read/") and name not in AUDIO]
    image = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)
    rows = torch.full((2,), 32)
    assert len(names) == 15
    for name in names:
        own = name.replace("read/", "imagenet_c/").removesuffix("_image")
        assert torch.equal(corrupt(f"{name}@3", image, rows), corrupt(f"{own}@3", image, rows)), name
        assert corruptions().card(name).deterministic == corruptions().card(own).deterministic
