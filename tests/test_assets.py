"""A folder of the user's own recordings takes the place of generated scenes, and bad files are named."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mmbench.assets import VARIABLE, asset_files, asset_folder, assets, assets_digest, use_assets
from mmbench.audio_mix import recorded, recording
from mmbench.audio_scenes import scene_noise
from mmbench.corruption import load_corruption
from mmbench.errors import DataError
from mmbench.rng import Draws, StreamKey

RATE = 16_000
NOISE = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def no_assets(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(VARIABLE, raising=False)
    yield
    use_assets(None)


@pytest.fixture
def rain(tmp_path: Path) -> Path:
    """An assets folder with nothing in it but a folder for rain, in use."""
    (tmp_path / "rain").mkdir()
    use_assets(tmp_path)
    return tmp_path / "rain"


def tone(hertz: float, seconds: float = 2.0, rate: int = RATE) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def draws(ids: tuple[str, ...] = ("a",), length: int = RATE) -> Draws:
    lengths = torch.full((len(ids),), length)
    return Draws(StreamKey("synthetic-av", "test", 0), "read/rain", 3, ids, lengths)


def loudest_hertz(wave: np.ndarray) -> float:
    return float(np.fft.rfftfreq(len(wave), 1 / RATE)[np.abs(np.fft.rfft(wave)).argmax()])


def test_without_a_folder_there_are_no_assets() -> None:
    assert asset_folder("rain") is None and asset_files("rain", (".wav",)) == ()
    assert assets() == () and assets_digest() == ""


def test_the_environment_names_the_folder_and_the_suite_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "rain").mkdir(parents=True)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "one"))
    assert asset_folder("rain") == tmp_path / "one" / "rain"
    use_assets(tmp_path / "two")
    assert asset_folder("rain") == tmp_path / "two" / "rain"
    assert asset_folder("wind") is None


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    use_assets(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"nowhere does not exist; .*MMBENCH_ASSETS"):
        asset_folder("rain")


def test_an_empty_folder_is_named(rain: Path) -> None:
    with pytest.raises(DataError, match=r"rain holds no file that is read; put files \(\.wav\) there or remove it"):
        scene_noise("rain", draws(), RATE)


@pytest.mark.parametrize("name", ["a.flac", "licence.txt"])
def test_a_folder_of_files_that_nothing_reads_is_named(rain: Path, name: str) -> None:
    (rain / name).write_bytes(b"x")
    with pytest.raises(DataError, match=r"rain holds no file that is read; put files \(\.wav\) there"):
        scene_noise("rain", draws(), RATE)


@pytest.mark.parametrize("name", ["Rain", "rains", "RAIN"])
def test_a_folder_whose_name_is_nearly_a_kind_is_not_passed_over(rain: Path, name: str) -> None:
    rain.rename(rain.parent / name)
    with pytest.raises(DataError, match=f"holds {name}/, but the kind is called rain; rename"):
        scene_noise("rain", draws(), RATE)
    assert scene_noise("wind", draws(), RATE).std() > 0


def test_photographs_of_a_kind_leave_its_sound_generated(rain: Path) -> None:
    generated = scene_noise("frost", draws(), RATE)
    (rain.parent / "frost").mkdir()
    (rain.parent / "frost" / "a.JPG").write_bytes(b"x")
    assert np.array_equal(scene_noise("frost", draws(), RATE), generated)


def test_a_folder_of_recordings_in_place_of_a_folder_of_kinds_is_named(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1000), RATE)
    use_assets(tmp_path)
    with pytest.raises(DataError, match=r"holds no folder of a kind, such as rain/ or frost/"):
        scene_noise("rain", draws(), RATE)


def test_files_come_by_name_and_by_kind(rain: Path) -> None:
    for name in ("b.wav", "a.WAV", "c.png", ".hidden.wav"):
        (rain / name).write_bytes(b"x")
    assert [path.name for path in asset_files("rain", (".wav",))] == ["a.WAV", "b.wav"]


def test_a_recording_replaces_the_scene_and_only_that_one(rain: Path) -> None:
    generated = scene_noise("wind", draws(), RATE)
    soundfile.write(rain / "a.wav", tone(1000), RATE)
    assert loudest_hertz(scene_noise("rain", draws(), RATE)) == pytest.approx(1000, abs=2)
    assert np.array_equal(scene_noise("wind", draws(), RATE), generated)


def test_choice_and_start_differ_between_samples(rain: Path) -> None:
    for place, hertz in enumerate((500, 1000, 2000)):
        soundfile.write(rain / f"{place}.wav", tone(hertz) * np.linspace(0.5, 1, 2 * RATE), RATE)
    heard = [scene_noise("rain", draws((f"s{i}",)), RATE) for i in range(60)]
    counts = np.unique([round(loudest_hertz(wave), -1) for wave in heard], return_counts=True)[1]
    assert len(counts) == 3 and counts.min() >= 8
    assert len({wave[:50].tobytes() for wave in heard}) > 50, "always from the same place"


def test_a_pause_of_a_recording_is_passed_over(rain: Path) -> None:
    wave = np.zeros(10 * RATE)
    wave[:RATE] = 0.3 * NOISE.standard_normal(RATE)
    soundfile.write(rain / "a.wav", wave, RATE)
    excerpts = [recorded((rain / "a.wav",), draws((f"s{i}",)), RATE // 4) for i in range(40)]
    assert min(np.std(excerpt) for excerpt in excerpts) > 0.005, "nine tenths of the recording are silent"
    assert len({excerpt[:50].tobytes() for excerpt in excerpts}) > 15, "always from the same place"


def test_stereo_is_mixed_down(rain: Path) -> None:
    left, right = tone(500), tone(2000)
    soundfile.write(rain / "a.wav", np.stack([left, right], axis=1), RATE, subtype="FLOAT")
    assert np.allclose(recording(rain / "a.wav"), (left + right) / 2, atol=1e-6)


def test_other_rates_are_resampled(rain: Path) -> None:
    soundfile.write(rain / "a.wav", tone(1000, rate=44_100), 44_100)
    wave = recording(rain / "a.wav")
    assert len(wave) == pytest.approx(2 * RATE, abs=2) and loudest_hertz(wave) == pytest.approx(1000, abs=1)


def test_a_short_recording_is_repeated(rain: Path) -> None:
    soundfile.write(rain / "a.wav", tone(1000, seconds=0.1), RATE)
    assert np.std(scene_noise("rain", draws(), 5 * RATE)[-RATE:]) > 0.1


@pytest.mark.parametrize("content", [b"", b"no sound at all", b"RIFF\x24\x00\x00\x00WAVEfmt "])
def test_a_broken_recording_is_named(rain: Path, content: bytes) -> None:
    (rain / "bad.wav").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot use recording .*bad\.wav.*mend or remove it"):
        scene_noise("rain", draws(), RATE)


def test_a_truncated_recording_is_named(rain: Path) -> None:
    soundfile.write(rain / "cut.wav", tone(1000), RATE)
    (rain / "cut.wav").write_bytes((rain / "cut.wav").read_bytes()[:20_000])
    with pytest.raises(DataError, match=r"cut\.wav.*truncated"):
        scene_noise("rain", draws(), RATE)


@pytest.mark.parametrize("wave", [np.zeros(RATE), np.stack([tone(500), -tone(500)], axis=1), 2e-4 * tone(500)])
def test_a_silent_recording_is_named(rain: Path, wave: np.ndarray) -> None:
    soundfile.write(rain / "still.wav", wave, RATE)
    with pytest.raises(DataError, match=r"still\.wav.*as mono, below -72 dBFS; replace it"):
        scene_noise("rain", draws(), RATE)


def test_the_digest_covers_names_and_contents_but_not_the_place(tmp_path: Path) -> None:
    for copy in ("here", "there"):
        (tmp_path / copy / "rain").mkdir(parents=True)
        soundfile.write(tmp_path / copy / "rain" / "a.wav", tone(1000), RATE)
    use_assets(tmp_path / "here")
    first = assets_digest()
    assert [(asset.kind, asset.name) for asset in assets()] == [("rain", "a.wav")] and len(first) == 64
    use_assets(tmp_path / "there")
    assert assets_digest() == first
    soundfile.write(tmp_path / "there" / "rain" / "a.wav", tone(1001), RATE)
    os.utime(tmp_path / "there" / "rain" / "a.wav", (1, 1))  # a clock too coarse to see the change
    changed = assets_digest()
    (tmp_path / "there" / "rain" / "a.wav").rename(tmp_path / "there" / "rain" / "b.wav")
    assert len({first, changed, assets_digest()}) == 3


@pytest.mark.parametrize("reference", ["read/rain@3", "read/rain_snr@3", "avc/rain-sound@3"])
def test_corruptions_use_recordings_whatever_the_batch(rain: Path, reference: str) -> None:
    corruption = load_corruption(reference)
    wave = torch.from_numpy(0.1 * NOISE.standard_normal((4, RATE)).astype(np.float32))
    ids, lengths = ("a", "b", "c", "d"), torch.tensor([RATE, 9000, 300, 12_000])
    key = StreamKey("synthetic-av", "test", 0)
    soundfile.write(rain / "z.wav", np.stack([tone(3000, rate=44_100)] * 2, axis=1), 44_100)
    whole = corruption.apply(wave, corruption.draws(key, ids, lengths))
    added = (whole - wave)[0].numpy()
    assert loudest_hertz(added) == pytest.approx(3000, abs=2)
    for row in range(4):
        alone = corruption.apply(wave[[row]], corruption.draws(key, (ids[row],), lengths[[row]]))
        assert torch.equal(alone[0], whole[row])
