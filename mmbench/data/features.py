"""Files to features as CAV-MAE expects them: Kaldi log-mel frames and ImageNet-normalised pictures."""

from __future__ import annotations

import math
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import torchaudio
from numpy.typing import NDArray
from PIL import Image
from scipy.signal import resample_poly
from torch import Tensor

from mmbench.data.source import BrokenFileError
from mmbench.picture_file import not_regular, read_picture, resize_and_crop

FEATURE_VERSION = 1  # raise it whenever the numbers below change, so that old stores are not reused
SAMPLE_RATE = 16_000  # Hz
MEL_BINS = 128
WINDOW = 400  # samples, 25 ms
SHIFT = 160  # samples, 10 ms
FFT_SIZE = 512
PRE_EMPHASIS = 0.97
LOW_HZ = 20.0
AUDIO_MEAN = -5.081  # AudioSet statistics, used for every data set by the official checkpoints
AUDIO_STD = 4.4849
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
FRAMES_AT_ONCE = 512  # frames per transform on a CPU: what stays in its cache
LARGEST_KERNEL_RATIO = 2000  # above it the exact sinc kernel would need gigabytes
CHUNK_LOG = re.compile(r"^\s*(?:data|SSND) : (\d+) \(should be (\d+)\)", re.MULTILINE)
UNKNOWN_SIZE = 2**31 - 4096  # bytes; recorders that write to a pipe leave a size near this or above
LARGEST_OGG_PAGE = 65_307  # bytes
MOST_SAMPLES = 2**28  # of all channels, 1 GiB: an hour and a half of one channel at 48 kHz
LOWEST_RATE, HIGHEST_RATE = 1000, 768_000  # Hz
PEAK_LIMIT = 2.0  # a float file beyond this was not scaled to [-1, 1]


def frames_of(samples: int) -> int:
    """Whole analysis windows in a clip; the incomplete last one is dropped."""
    return 0 if samples < WINDOW else 1 + (samples - WINDOW) // SHIFT


def samples_for(frames: int) -> int:
    """The shortest clip that fills this many frames."""
    return WINDOW + (frames - 1) * SHIFT


def fbank(wave: Tensor, lengths: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """Log-mel of the mean-free clips, (B, S) -> (B, frames, 128) not normalised, and the valid frames (B,).

    Each clip's mean is taken over its valid samples, all of them, also those beyond the last frame.
    Frames past the end of a clip are 0, the value that the official checkpoints were trained with.
    """
    valid = torch.where(lengths >= WINDOW, 1 + (lengths - WINDOW) // SHIFT, 0).clamp(max=frames)  # (B,)
    mel = wave.new_zeros(wave.shape[0], frames, MEL_BINS)  # (B, T, 128)
    rows = len(mel) if wave.is_cuda else max(1, FRAMES_AT_ONCE // frames)
    for start in range(0, len(mel), max(1, rows)):
        part = slice(start, start + rows)
        longest = int(valid[part].max())
        inside = (torch.arange(longest, device=lengths.device) < valid[part, None]).to(wave.device)  # (b, t)
        mel[part, :longest] = _log_mel(wave[part], lengths[part], longest).masked_fill_(~inside[:, :, None], 0.0)
    return mel, valid


def _log_mel(wave: Tensor, lengths: Tensor, frames: int) -> Tensor:
    """(B, S) -> (B, frames, 128); what lies beyond a clip's end is not yet blanked."""
    if frames == 0:
        return wave.new_zeros(wave.shape[0], 0, MEL_BINS)
    lengths = lengths.to(wave.device)
    inside = torch.arange(wave.shape[1], device=wave.device) < lengths[:, None]  # (B, S)
    wave = wave.masked_fill(~inside, 0.0)
    # Summed in float64, so that the padding, which depends on the batch, cannot change the mean's last digits.
    mean = wave.sum(1, dtype=torch.float64) / lengths.clamp(min=1)
    wave = wave - mean.to(wave.dtype)[:, None]
    needed = samples_for(frames)
    wave = torch.nn.functional.pad(wave[:, :needed], (0, max(0, needed - wave.shape[1])))
    strips = wave.unfold(1, WINDOW, SHIFT)  # (B, T, 400)
    strips = strips - strips.mean(2, keepdim=True)
    # Pre-emphasis repeats the first sample of each window as its own predecessor.
    strips = strips - PRE_EMPHASIS * torch.cat([strips[..., :1], strips[..., :-1]], dim=2)
    strips = strips * torch.hann_window(WINDOW, periodic=False, dtype=wave.dtype, device=wave.device)
    spectrum = torch.fft.rfft(strips, n=FFT_SIZE)  # (B, T, 257)
    power = spectrum.real.square() + spectrum.imag.square()
    mel: Tensor = power @ _mel_filters().to(power)  # (B, T, 128)
    return mel.clamp_(min=torch.finfo(torch.float32).eps).log_()


@lru_cache(maxsize=1)
def _mel_filters() -> Tensor:
    """Triangles that are straight on the mel scale, (257, 128) float32; the Nyquist bin has no weight."""
    low, high = _mel(LOW_HZ), _mel(SAMPLE_RATE / 2)
    step = (high - low) / (MEL_BINS + 1)
    # The reference works in float32 in this very order; weights near a triangle's foot show any other rounding.
    band = torch.arange(MEL_BINS)
    left, centre, right = (low + (band + offset) * step for offset in (0.0, 1.0, 2.0))  # (128,) each
    hertz = torch.arange(FFT_SIZE // 2) * (SAMPLE_RATE / FFT_SIZE)
    bins = (1127.0 * (1.0 + hertz / 700.0).log())[:, None]  # (256, 1)
    triangles = torch.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clamp(min=0.0)
    return torch.cat([triangles, triangles.new_zeros(1, MEL_BINS)])


def _mel(hertz: float) -> float:
    return 1127.0 * math.log(1.0 + hertz / 700.0)


def normalise_audio(mel: Tensor, mean: float = AUDIO_MEAN, std: float = AUDIO_STD) -> Tensor:
    """Any shape; padding, 0 before, becomes +1.133 after."""
    return (mel - mean) / std


def normalise_image(image: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 -> float32 with ImageNet's mean and deviation."""
    mean = torch.tensor(IMAGE_MEAN, device=image.device)[:, None, None]
    std = torch.tensor(IMAGE_STD, device=image.device)[:, None, None]
    return (image / 255.0).sub_(mean).div_(std)  # in place: of large pictures, copies cost more than sums


def resample(wave: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """One channel at `rate` Hz -> 16 kHz, band-limited."""
    if rate == SAMPLE_RATE:
        return wave
    common = math.gcd(rate, SAMPLE_RATE)
    if max(rate, SAMPLE_RATE) // common > LARGEST_KERNEL_RATIO:
        return np.asarray(resample_poly(wave, SAMPLE_RATE // common, rate // common), dtype=np.float32)
    result: NDArray[np.float32] = _resampler(rate)(torch.from_numpy(wave)).numpy()
    return result


@lru_cache(maxsize=16)
def _resampler(rate: int) -> Any:
    return torchaudio.transforms.Resample(rate, SAMPLE_RATE)


def load_audio(path: Path) -> NDArray[np.float32]:
    """Mono float32 at 16 kHz; of several channels the first is taken, as the official features do.

    Raises BrokenFileError for what cannot be decoded, is empty, holds NaN or was not scaled to [-1, 1].
    """
    _refuse_special(path)
    try:
        with soundfile.SoundFile(path) as file:
            rate, promised, log = int(file.samplerate), int(file.frames), str(file.extra_info)
            _refuse_absurd(path, rate, promised, int(file.channels))
            samples = file.read(dtype="float32", always_2d=True)
        cut = _is_cut(path, log) or len(samples) < 0.95 * promised
    except (OSError, RuntimeError, ValueError, TypeError, MemoryError) as error:
        raise BrokenFileError(path, f"not a readable sound ({_first_line(error)})") from error
    if cut:
        raise BrokenFileError(path, f"truncated: ends after {len(samples)} samples, before its own end")
    wave = np.ascontiguousarray(samples[:, 0])
    if wave.size == 0:
        raise BrokenFileError(path, "holds no samples")
    if not np.isfinite(wave).all():
        raise BrokenFileError(path, f"holds {int((~np.isfinite(wave)).sum())} samples that are not finite")
    if (peak := float(np.abs(wave).max())) > PEAK_LIMIT:
        raise BrokenFileError(path, f"its peak is {peak:.4g}, but samples must lie in [-1, 1]")
    wave = resample(wave, rate)
    if wave.size < WINDOW:
        raise BrokenFileError(path, f"too short: {wave.size} samples at 16 kHz, one frame needs {WINDOW}")
    return wave


def _refuse_absurd(path: Path, rate: int, frames: int, channels: int) -> None:
    """A header may promise, and a few bytes may unpack to, more than any memory holds; nothing is read before this."""
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise BrokenFileError(path, f"its sample rate is {rate} Hz, but {LOWEST_RATE} to {HIGHEST_RATE} are read")
    if frames * channels > MOST_SAMPLES or frames * SAMPLE_RATE > MOST_SAMPLES * rate:
        what = f"its header tells {frames} samples of {channels} channels at {rate} Hz"
        raise BrokenFileError(path, f"{what}; at most {MOST_SAMPLES} values are read")


def _refuse_special(path: Path) -> None:
    if not_regular(path):
        raise BrokenFileError(path, "not a regular file")


def _is_cut(path: Path, log: str) -> bool:
    """Decoders return the first half of a cut file without a word; its own bookkeeping tells."""
    found = CHUNK_LOG.search(log)
    if found is not None:  # wav and aiff: the sound chunk's size, as written and as found
        written, there = int(found.group(1)), int(found.group(2))
        return there + 8 < written < UNKNOWN_SIZE
    with path.open("rb") as file:
        if file.read(4) != b"OggS":
            return False
        file.seek(max(0, path.stat().st_size - LARGEST_OGG_PAGE))
        tail = file.read()
    last = tail.rfind(b"OggS")
    return last < 0 or len(tail) < last + 6 or not tail[last + 5] & 4  # the flag of a stream's last page


def load_image(path: Path, size: int) -> NDArray[np.uint8]:
    """(size, size, 3) uint8 RGB: shorter side resized (bicubic), centre-cropped. Orientation tags are not obeyed."""
    _refuse_special(path)
    try:
        picture = read_picture(path, _to_rgb)
    except ValueError as error:
        raise BrokenFileError(path, f"not a readable picture ({error})") from error
    return resize_and_crop(picture, size)


def _to_rgb(picture: Image.Image) -> Image.Image:
    """Eight-bit RGB whatever the mode; deep grey pictures are scaled, where Pillow alone would clip them to white."""
    if picture.mode.startswith("I") or picture.mode == "F":
        grey = np.asarray(picture, dtype=np.float64)
        scale = _grey_scale(picture.mode, float(grey.max(initial=0.0)))
        picture = Image.fromarray(np.clip(np.rint(grey * scale), 0, 255).astype(np.uint8))
    return picture.convert("RGB")


def _grey_scale(mode: str, brightest: float) -> float:
    """Factor to eight bits: sixteen-bit files tell their depth by the mode, others only by their values."""
    if mode == "F" and brightest <= 1.0:
        return 255.0
    return 1 / 257 if mode.startswith("I;16") or brightest > 255 else 1.0


def _first_line(error: BaseException) -> str:
    # Decoders repeat the whole path; the error that carries this text names it once already.
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text.rpartition(": ")[2] if "Error opening" in text else text
