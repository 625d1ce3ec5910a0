"""Sound and picture features, augmentations and label vectors against reference values."""

from __future__ import annotations

import io
import wave as wave_file
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from PIL import Image

from mmbench.data import augment
from mmbench.data.features import (
    fbank,
    frames_of,
    load_audio,
    load_image,
    normalise_audio,
    normalise_image,
    resize_and_crop,
)
from mmbench.data.source import BrokenFileError

DATA = Path(__file__).parent / "data"
AUDIO = np.load(DATA / "features_audio.npz")
IMAGE = np.load(DATA / "features_image.npz")
LABELS = np.load(DATA / "labels_metrics.npz")
FRAMES = 1024


def hash_noise(name: str, n: int) -> np.ndarray:
    """n values of [-1, 1) that any language can make: the noise of the reference clips."""
    mask = np.uint64(0xFFFFFFFF)
    h = (np.arange(n, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(zlib.crc32(name.encode()))) & mask
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        h ^= h >> np.uint64(shift)
        h = (h * np.uint64(factor)) & mask
    return h / 2.0**31 - 1


def clip(name: str, seconds: int) -> torch.Tensor:
    """(S,) float32, the reference clips A and B."""
    n = seconds * 16000
    t = np.arange(n) / 16000
    noise = hash_noise(f"wave.{name}", n)
    if name == "A":
        x = 0.3 * np.sin(2 * np.pi * 440 * t) + 0.25 * np.sin(2 * np.pi * (200 * t + 150 * t**2)) + 0.05 + 0.02 * noise
    else:
        x = 0.4 * np.sin(2 * np.pi * 1000 * t) * (0.5 + 0.5 * np.sin(2 * np.pi * 3 * t)) - 0.03 + 0.05 * noise
    return torch.from_numpy((np.rint(32767 * x).astype(np.int16) / 32768).astype(np.float32))


def features(wave: torch.Tensor) -> np.ndarray:
    mel, _ = fbank(wave[None], torch.tensor([len(wave)]), FRAMES)
    return normalise_audio(mel)[0].numpy()


def check_against(name: str, found: np.ndarray) -> None:
    assert np.abs(found[AUDIO["rows"]] - AUDIO[f"{name}_rows"]).max() < 1e-3
    assert np.abs([found.mean(), found.std()] - AUDIO[f"{name}_meanstd"]).max() < 1e-4
    if f"{name}_melmean" in AUDIO:
        assert np.abs(found.mean(0) - AUDIO[f"{name}_melmean"]).max() < 1e-3
        assert np.abs(found.mean(1) - AUDIO[f"{name}_timemean"]).max() < 1e-3


@pytest.mark.parametrize(("name", "seconds"), [("A", 10), ("B", 4), ("A", 12), ("B", 10)])
def test_reference_clips(name: str, seconds: int) -> None:
    wave = clip(name, seconds)
    if (first := f"wave_{name}{seconds}_first8") in AUDIO:
        assert (np.rint(wave[:8].numpy() * 32768) == AUDIO[first]).all()
    check_against(f"{name}{seconds}", features(wave))


@pytest.mark.parametrize(("first", "second"), [(("A", 10), ("B", 4)), (("B", 4), ("A", 10))])
def test_mixed_clips(first: tuple[str, int], second: tuple[str, int]) -> None:
    one, other = clip(*first), clip(*second)
    lengths = (torch.tensor([len(one)]), torch.tensor([len(other)]))
    mixed = augment.mix_waveforms(one[None], other[None], lengths, torch.tensor([0.3]))
    check_against(f"mix_{first[0]}{first[1]}_{second[0]}{second[1]}", features(mixed[0]))


def test_silence_lies_below_padding() -> None:
    found = features(torch.zeros(16000))
    assert np.abs(found[0] - AUDIO["silence_row"]).max() < 1e-4
    assert np.abs(found[98:] - 1.13291).max() < 1e-4


def test_fbank_equals_kaldi_whatever_the_batch() -> None:
    rng = torch.Generator().manual_seed(0)
    lengths = torch.tensor([64000, 400, 5000, 399, 30123])
    waves = torch.randn(5, 64000, generator=rng) * 0.1  # noise beyond the valid samples must not be heard
    mel, valid = fbank(waves, lengths, 300)
    assert valid.tolist() == [300, 1, 29, 0, 186] == [min(300, frames_of(int(n))) for n in lengths]
    for row, n in enumerate(lengths.tolist()):
        assert (mel[row, valid[row] :] == 0).all()
        if n < 400:
            continue
        wave = waves[row, :n] - waves[row, :n].mean()
        expected = torchaudio.compliance.kaldi.fbank(
            wave[None], htk_compat=True, use_energy=False, window_type="hanning", num_mel_bins=128, dither=0.0
        )[:300]
        assert (mel[row, : valid[row]] - expected).abs().max() < 1e-4
        alone, _ = fbank(waves[row : row + 1, :n], lengths[row : row + 1], 300)
        assert (alone[0] - mel[row]).abs().max() < 1e-5


def painting(height: int, width: int, roll: int = 0) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    blue = np.where((y // 16 + x // 16) % 2 == 0, (x + y) % 256, 255 - (y % 256))
    rgb = np.stack([(3 * x + 2 * y) % 256, (x * x // 50 + 5 * y) % 256, blue], axis=2).astype(np.uint8)
    return np.roll(rgb, roll, axis=1)


def as_model_sees(rgb: np.ndarray) -> torch.Tensor:
    pixels = resize_and_crop(Image.fromarray(rgb), 224)
    return normalise_image(torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None])


def check_picture(name: str, found: torch.Tensor) -> None:
    image = found[0].numpy()
    assert np.abs(image[:, IMAGE["pixel_y"], IMAGE["pixel_x"]] - IMAGE[f"{name}_pixels"]).max() < 0.02
    assert np.abs(image[:, 112] - IMAGE[f"{name}_row112"]).max() < 0.02
    statistics = np.stack([image.mean((1, 2)), image.std((1, 2))])
    assert np.abs(statistics - IMAGE[f"{name}_meanstd_perchannel"]).max() < 2e-3


@pytest.mark.parametrize(
    ("name", "size", "roll"),
    [
        ("plain320x240", (240, 320), 0),
        ("tall240x320", (320, 240), 0),
        ("wide640x360", (360, 640), 0),
        ("upscale150x100", (100, 150), 0),
        ("eval_frame5", (240, 320), 35),
    ],
)
def test_reference_pictures(name: str, size: tuple[int, int], roll: int) -> None:
    check_picture(name, as_model_sees(painting(*size, roll)))


def test_mixed_pictures() -> None:
    plain, tall = as_model_sees(painting(240, 320)), as_model_sees(painting(320, 240))
    check_picture("mix03_plain_tall", augment.mix_images(plain, tall, torch.tensor([0.3])))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_label_vectors(smoothing: float) -> None:
    hot = torch.zeros(2, 5)
    hot[0, [1, 3]] = 1
    hot[1, 0] = 1
    found = augment.label_vector(hot, 5, smoothing)
    for row in range(2):
        assert np.allclose(found[row], LABELS[f"label_ls{smoothing}_item{row}"])
    single = augment.label_vector(torch.tensor([0]), 5, smoothing)
    assert torch.equal(single[0], found[1])


def test_mixed_labels() -> None:
    hot = torch.zeros(1, 5)
    hot[0, [1, 3]] = 1
    found = augment.mix_labels(hot, torch.tensor([0]), torch.tensor([0.3]), 5, 0.1)
    assert np.allclose(found[0], LABELS["mixup03_item0_with_item1_label"])


def test_spec_augment_blanks_one_band_and_one_span() -> None:
    mel = torch.ones(3, 1024, 128)
    draws = torch.tensor([[0.5, 0.0, 0.0, 0.0], [0.0, 0.0, 0.999, 0.999], [0.0, 0.3, 0.0, 0.3]])
    found = augment.spec_augment(mel, draws)
    assert (mel == 1).all()
    assert (found[0, :, :24] == 0).all() and (found[0, :, 24:] == 1).all()
    assert (found[1, 831:1022] == 0).all() and found[1].sum() == (1024 - 191) * 128
    assert (found[2] == 1).all()


def test_noise_is_bounded_and_rolled_along_time() -> None:
    audio = torch.arange(8.0)[None, :, None].expand(2, 8, 128)
    draws = torch.tensor([[0.0, 0.5], [0.999, 9 / 16]])
    found = augment.add_noise_and_roll(audio, torch.full((2, 8, 128), 0.5), draws)
    assert torch.equal(found[0], audio[0])
    assert torch.allclose(found[1], audio[1].roll(1, 0) + 0.04995)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA", "I;16", "RGB"])
def test_any_picture_mode(tmp_path: Path, mode: str) -> None:
    grey = np.linspace(0, 255, 40 * 30).reshape(40, 30).astype(np.uint8)
    picture = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    picture.save(path)
    found = load_image(path, 16)
    assert found.shape == (16, 16, 3) and found.dtype == np.uint8
    # Left out: "1", which dithers, and "P", whose palette is coarse.
    if mode not in ("1", "P"):
        assert np.abs(found.astype(int) - load_image_of(grey, tmp_path).astype(int)).max() <= 6


def load_image_of(grey: np.ndarray, folder: Path) -> np.ndarray:
    Image.fromarray(grey).save(folder / "plain.png")
    return load_image(folder / "plain.png", 16)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 12347])
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_any_rate_format_and_channel_count(tmp_path: Path, rate: int, suffix: str) -> None:
    if suffix == "ogg" and rate == 12347:
        pytest.skip("the encoder knows no such rate")
    t = np.arange(rate) / rate
    left = 0.5 * np.sin(2 * np.pi * 440 * t)
    path = tmp_path / f"x.{suffix}"
    soundfile.write(path, np.stack([left, -left], axis=1), rate)
    found = load_audio(path)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    assert found.dtype == np.float32 and abs(len(found) - 16000) <= 1
    assert np.abs(found[500:15500] - expected[500:15500]).max() < (0.05 if suffix == "ogg" else 0.02)  # ogg is lossy


def broken_sounds() -> dict[str, tuple[bytes, str]]:
    """File content and what its error must say."""
    tiny, empty, nan, loud = (io.BytesIO() for _ in range(4))
    soundfile.write(tiny, np.zeros(100), 16000, format="WAV")
    soundfile.write(nan, np.full(8000, np.nan), 16000, format="WAV", subtype="FLOAT")
    soundfile.write(loud, np.full(8000, 2e4), 16000, format="WAV", subtype="FLOAT")
    with wave_file.open(empty, "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
    return {
        "empty": (b"", "not a readable sound"),
        "text": (b"these are words, not sounds\n" * 20, "not a readable sound"),
        "no samples": (empty.getvalue(), "no samples"),
        "short": (tiny.getvalue(), "too short"),
        "nan": (nan.getvalue(), "not finite"),
        "loud": (loud.getvalue(), "peak"),
    }


@pytest.mark.parametrize("kind", list(broken_sounds()))
def test_broken_sounds_are_named(tmp_path: Path, kind: str) -> None:
    content, reason = broken_sounds()[kind]
    path = tmp_path / "broken.wav"
    path.write_bytes(content)
    with pytest.raises(BrokenFileError, match=reason) as caught:
        load_audio(path)
    assert "broken.wav" in str(caught.value)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "aiff"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_truncated_sounds_are_refused(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"cut.{suffix}"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (48000, 2))
    soundfile.write(path, noise, 16000)
    assert len(load_audio(path)) == 48000
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(BrokenFileError, match=rf"cut\.{suffix}: (truncated|not a readable sound)"):
        load_audio(path)


def test_a_piped_wav_of_unknown_size_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "piped.wav"
    soundfile.write(path, np.full(8000, 0.25), 16000)
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert len(load_audio(path)) == 8000


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "absent"])
def test_broken_pictures_are_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "broken.jpg"
    Image.fromarray(painting(64, 64)).save(path)
    content = {"empty": b"", "text": b"words " * 50, "truncated": path.read_bytes()[:500]}
    path.unlink()
    if kind in content:
        path.write_bytes(content[kind])
    with pytest.raises(BrokenFileError, match=r"broken\.jpg: not a readable picture"):
        load_image(path, 16)
