"""Failing microphones, converters, links and rooms: sensor/* of sound.

Waveform rows act on valid samples only; the padding of a batch stays zero and plays no part.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.signal import fftconvolve, resample_poly
from torch import Tensor

from corruptions.missing import LOG_FLOOR
from mmbench.audio_mix import SILENCE_POWER, add_at_snr, each_clip
from mmbench.audio_source import SAMPLE_RATE, Floats
from mmbench.registry import corruption
from mmbench.rng import Draws

# Per packet: the chance that a good link turns bad, and that a bad one turns good; all is lost while it is bad.
# Loss .02 .05 .1 .2 .4 in bursts of 1.5 2 3 4 6 packets.
GILBERT = {1: (0.01361, 0.6667), 2: (0.02632, 0.5), 3: (0.03704, 0.3333), 4: (0.0625, 0.25), 5: (0.11111, 0.1667)}
CLIPPED_SHARE = {1: 0.02, 2: 0.05, 3: 0.1, 4: 0.2, 5: 0.4}
GAIN_DB = {1: 6, 2: 12, 3: 20, 4: 30, 5: 40}
BITS = {1: 10, 2: 8, 3: 6, 4: 5, 5: 4}
RESAMPLED_HZ = {1: 12_000, 2: 8_000, 3: 4_000, 4: 2_000, 5: 1_000}
CODEC_HZ = {1: 16_000, 2: 8_000, 3: 6_000, 4: 4_000, 5: 2_000}
ROOM = {1: (0.2, 10), 2: (0.4, 5), 3: (0.6, 0), 4: (0.9, -3), 5: (1.3, -6)}  # RT60 in s, direct to reverberant in dB
MUTED_SHARE = {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4, 5: 0.5}
ON_TIME_S = {1: 2.0, 2: 1.0, 3: 0.5, 4: 0.25, 5: 0.1}
HUM_SNR_DB = {1: 20, 2: 15, 3: 10, 4: 5, 5: 0}
DESYNC_S = {1: 0.25, 2: 0.5, 3: 1.0, 4: 2.0, 5: 4.0}
DEAD_BINS = {1: 8, 2: 16, 3: 32, 4: 48, 5: 64}  # of 128 mel bins

PACKET = SAMPLE_RATE // 50  # samples, 20 ms
MU = 255.0
CODES = 127  # magnitudes of an 8-bit code with a sign
FIRST_ECHO = SAMPLE_RATE // 500  # samples, 2 ms
HUM_HZ, HARMONICS = 50, 5
MOST_SHIFTED = 0.75  # of the valid samples

SHARED = {
    "family": "sensor",
    "modality": "audio",
    "stage": "waveform",
    "variant": "sensor-1",
}


@corruption(
    "sensor/packet_loss",
    **SHARED,
    reference="Gilbert's two-state channel, 20 ms packets, loss .02 .05 .1 .2 .4 in bursts of 1.5 2 3 4 6",
    note="lost packets are silent; none is repeated to conceal them",
)
def packet_loss(wave: Tensor, draws: Draws, severity: int) -> Tensor:
    """Packets of 20 ms are lost in bursts."""
    lost = gilbert(draws.uniform("packet", (math.ceil(wave.shape[1] / PACKET),)), severity)
    return wave.masked_fill(lost.repeat_interleave(PACKET, 1)[:, : wave.shape[1]].to(wave.device), 0)


@corruption(
    "sensor/clipping",
    **SHARED,
    deterministic=True,
    reference="hard clipping of a share .02 .05 .1 .2 .4 of the samples",
    note="the threshold is a quantile of the clip's own magnitudes; the level is not restored",
)
def clipping(wave: Tensor, draws: Draws, severity: int) -> Tensor:
    """The loudest samples are cut to the magnitude of the loudest that is left."""

    def clip_peaks(clip: Floats, own: Draws) -> Floats:
        kept = len(clip) - round(CLIPPED_SHARE[severity] * len(clip))  # at least one
        threshold = np.partition(np.abs(clip), kept - 1)[kept - 1]
        return np.asarray(np.clip(clip, -threshold, threshold))

    return each_clip(wave, draws, clip_peaks)


@corruption(
    "sensor/gain_clip",
    **SHARED,
    deterministic=True,
    reference="gain of 6 12 20 30 40 dB, then clipped to full scale",
    note="a quiet clip only becomes louder",
)
def gain_clip(wave: Tensor, draws: Draws, severity: int) -> Tensor:
    """An input stage turned up too far."""
    return (wave * 10 ** (GAIN_DB[severity] / 20)).clamp_(-1, 1)


@corruption(
    "sensor/bit_depth",
    **SHARED,
    deterministic=True,
    reference="rounded to 10 8 6 5 4 bits",
    note="mid-tread: silence stays silent and what is quieter than half a step vanishes; no dither",
)
def bit_depth(wave: Tensor, draws: Draws, severity: int) -> Tensor:
    """A coarse converter."""
    levels = 2 ** (BITS[severity] - 1)  # of each sign
    out: Tensor = (wave * levels).round_().clamp_(-levels, levels - 1) / levels
    return out


@corruption(
    "sensor/bandwidth",
    **SHARED,
    deterministic=True,
    reference="resampled to 12 8 4 2 1 kHz and back",
)
def bandwidth(wave: Tensor, draws: Draws, severity: int) -> Tensor:
    """Nothing is left above half of a lower sampling rate."""
    rate = RESAMPLED_HZ[severity]
    return each_clip(wave, draws, lambda clip, own: _back(_resampled(clip, rate), rate, len(clip)))


@corruption(
    "sensor/codec",
    **SHARED,
    deterministic=True,
    reference="8-bit mu-law (mu 255) at 16 8 6 4 2 kHz",
    note="stands for MP3 at 64 32 24 16 8 kbit/s, which would need an encoder; 127 magnitudes and a sign, so that "
    "silence stays silent",
)
def codec(wave: Tensor, draws: Draws, severity: int) -> Tensor:
    """A telephone's code at ever lower sampling rates."""
    rate = CODEC_HZ[severity]
    return each_clip(wave, draws, lambda clip, own: _back(_mu_law(_resampled(clip, rate)), rate, len(clip)))


@corruption(
    "sensor/reverb",
    **SHARED,
    reference="decaying noise as a room: RT60 .2 .4 .6 .9 1.3 s, direct to reverberant 10 5 0 -3 -6 dB",
    note="echoes begin 2 ms after the direct sound and end with RT60; the clip keeps its length and its RMS",
)
def reverb(wave: Tensor, draws: Draws, severity: int) -> Tensor:
    """A reverberant room."""

    def place(clip: Floats, own: Draws) -> Floats:
        power = np.mean(clip**2)
        if power < SILENCE_POWER:
            return clip
        heard = np.asarray(fftconvolve(clip, _room(own, severity)))[: len(clip)]
        return np.asarray(heard * np.sqrt(power / np.mean(heard**2)))

    return each_clip(wave, draws, place)


@corruption(
    "sensor/mute_segments",
    **SHARED,
    reference=".1 .2 .3 .4 .5 of the valid samples muted, in 2 4 6 8 10 disjoint segments",
)
def mute_segments(wave: Tensor, draws: Draws, severity: int) -> Tensor:
    """Drop-outs of a stated share."""

    def mute(clip: Floats, own: Draws) -> Floats:
        out: Floats = clip.copy()
        for part in disjoint(own, round(MUTED_SHARE[severity] * len(clip)), 2 * severity, len(clip)):
            out[part] = 0
        return out

    return each_clip(wave, draws, mute)


@corruption(
    "sensor/dead_mic",
    **SHARED,
    reference="on and off in turn for 2 1 .5 .25 .1 s each",
    note="a square wave of which the phase is drawn; a clip shorter than the off-time may be silent as a whole",
)
def dead_mic(wave: Tensor, draws: Draws, severity: int) -> Tensor:
    """A loose contact."""
    period = 2 * ON_TIME_S[severity] * SAMPLE_RATE  # samples
    turns = torch.arange(wave.shape[1], dtype=torch.float64) / period + draws.uniform("phase")[:, None]  # (B, S)
    return wave.masked_fill((turns % 1 >= 0.5).to(wave.device), 0)


@corruption(
    "sensor/hum",
    **SHARED,
    reference="50 Hz mains hum at 20 15 10 5 0 dB",
    note="harmonics 1 to 5 with amplitudes 1/k; ratio over the valid clip, means removed; a silent clip stays silent",
)
def hum(wave: Tensor, draws: Draws, severity: int) -> Tensor:
    """Mains hum with its harmonics."""
    order = np.arange(1, HARMONICS + 1)[:, None]

    def add(clip: Floats, own: Draws) -> Floats:
        phase = own.uniform("phase", (HARMONICS,))[0].double().numpy()[:, None]
        turns = order * HUM_HZ * np.arange(len(clip)) / SAMPLE_RATE + phase  # (harmonics, S)
        return add_at_snr(clip, (np.sin(2 * np.pi * turns) / order).sum(0), HUM_SNR_DB[severity])

    return each_clip(wave, draws, add)


@corruption(
    "sensor/dead_bands",
    family="sensor",
    modality="audio",
    stage="fbank",
    variant="sensor-1",
    reference="8 16 32 48 64 neighbouring mel bins at the floor of the logarithm, -15.942",
    note="valid frames only",
)
def dead_bands(mel: Tensor, draws: Draws, severity: int) -> Tensor:
    """A band of the spectrum in which nothing is heard."""
    bins = mel.shape[2]
    width = min(DEAD_BINS[severity], bins)
    start = draws.integers("start", bins - width + 1)[:, None]
    dead = (torch.arange(bins) >= start) & (torch.arange(bins) < start + width)  # (B, 128)
    valid = torch.arange(mel.shape[1]) < draws.lengths[:, None]  # (B, T)
    return mel.masked_fill((valid[:, :, None] & dead[:, None]).to(mel.device), LOG_FLOOR)


@corruption(
    "sensor/desync",
    family="sensor",
    modality="audio",
    stage="sample",
    variant="sensor-1",
    requires="moving-pictures",
    reference="sound .25 .5 1 2 4 s late or early",
    note="at most 3/4 of the valid samples; what moves in is silent, nothing wraps around",
)
def desync(wave: Tensor, draws: Draws, severity: int) -> Tensor:
    """Sound and picture out of step."""

    def move(clip: Floats, own: Draws) -> Floats:
        by = min(round(DESYNC_S[severity] * SAMPLE_RATE), int(MOST_SHIFTED * len(clip)))
        still = np.zeros(by)
        late = bool(own.integers("sign", 2)[0])
        return np.concatenate([still, clip[: len(clip) - by]] if late else [clip[by:], still])

    return each_clip(wave, draws, move)


def gilbert(chances: Tensor, severity: int) -> Tensor:
    """(B, N) bool: what a bursty link loses of N packets, from one uniform each; the first is of the stationary law.

    Below `to_bad` a link is bad whatever it was, above `1 - to_good` it is good, in between it stays as it was: so the
    state is that of the last decided packet, and no loop over packets is needed. It takes to_bad <= 1 - to_good.
    """
    to_bad, to_good = GILBERT[severity]
    bad, good = chances < to_bad, chances >= 1 - to_good
    bad[:, :1] = chances[:, :1] < to_bad / (to_bad + to_good)
    good[:, :1] = ~bad[:, :1]
    decided = torch.where(bad | good, torch.arange(chances.shape[1]), 0)  # (B, N)
    return bad.gather(1, decided.cummax(1).values)


def disjoint(own: Draws, total: int, pieces: int, room: int) -> list[slice]:
    """Disjoint slices of [0, room) for one sample, `total` long together; their lengths differ by at most one."""
    gaps = sorted(own.integers("starts", room - total + 1, (pieces,))[0].tolist())
    return [slice(gap + total * i // pieces, gap + total * (i + 1) // pieces) for i, gap in enumerate(gaps)]


def _room(own: Draws, severity: int) -> Floats:
    """(RT60,) impulse response: the direct sound, then noise that falls by 60 dB within RT60."""
    rt60_s, direct_db = ROOM[severity]
    length = round(rt60_s * SAMPLE_RATE)
    response: Floats = own.normal("room", (length,))[0].double().numpy()
    response *= 10 ** (-3 * np.arange(length) / length)
    response[:FIRST_ECHO] = 0
    response *= np.sqrt(10 ** (-direct_db / 10) / np.sum(response**2))
    response[0] = 1
    return response


def _resampled(clip: Floats, rate: int) -> Floats:
    common = math.gcd(rate, SAMPLE_RATE)
    return np.asarray(resample_poly(clip, rate // common, SAMPLE_RATE // common))


def _back(clip: Floats, rate: int, length: int) -> Floats:
    common = math.gcd(rate, SAMPLE_RATE)
    return np.asarray(resample_poly(clip, SAMPLE_RATE // common, rate // common))[:length]


def _mu_law(clip: Floats) -> Floats:
    """Through the 8-bit code and back."""
    magnitude = np.log1p(MU * np.minimum(np.abs(clip), 1)) / np.log1p(MU)
    decoded = np.expm1(np.round(magnitude * CODES) / CODES * np.log1p(MU)) / MU
    return np.asarray(np.copysign(decoded, clip))
