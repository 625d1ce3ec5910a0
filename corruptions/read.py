"""READ's corruptions (VGGSound-C, Kinetics50-C): six of sound, fifteen of pictures that are those of ImageNet-C.

Its recordings were never published, so traffic, crowd, rain, thunder and wind are generated scenes, or the user's own
recordings. They come in two forms: at an absolute level, as READ adds its files, and at a ratio to the clip.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from mmbench.audio_mix import add_at_rms, add_at_snr, each_clip
from mmbench.audio_scenes import scene_noise
from mmbench.registry import corruption, corruptions
from mmbench.rng import Draws

NOISE_STD = {1: 0.08, 2: 0.12, 3: 0.18, 4: 0.26, 5: 0.38}
SCENE_RMS = 0.05  # of the noise before the gain, -26 dBFS; READ's own files had levels of their own
GAIN_DB = {1: 1, 2: 2, 3: 4, 4: 6, 5: 8}
SNR_DB = {1: 20, 2: 15, 3: 10, 4: 5, 5: 0}

GAIN_FORM = {
    "family": "read",
    "modality": "audio",
    "stage": "waveform",
    "variant": "read-gain",
    "reference": "Yang et al., Test-time Adaption against Multi-modal Reliability Bias, ICLR 2024: noise at "
    "+1 2 4 6 8 dB",
    "note": "level is absolute, so the ratio depends on the clip; noise RMS .05 before the gain, over the valid "
    "samples; a generated scene or a user's recording from a random place on, where READ starts one fixed file at its "
    "beginning",
}
SNR_FORM = {
    "family": "read",
    "modality": "audio",
    "stage": "waveform",
    "variant": "snr",
    "reference": "the scenes of Yang et al., ICLR 2024, at 20 15 10 5 0 dB",
    "note": "not READ's own form: the same scenes at a ratio to the clip's power, over valid samples, means removed; "
    "a silent clip stays silent",
}
# Class names, or their last words, that are the scene.
TRAFFIC = {"scenes": ("traffic", "traffic noise", "roadway noise")}
CROWD = {"scenes": ("crowd", "children playing", "cheering", "babbling", "hubbub", "chatter")}
RAIN = {"scenes": ("rain", "raining", "rainfall", "raindrop", "rain on surface")}
THUNDER = {"scenes": ("thunder", "thunderstorm")}
WIND = {"scenes": ("wind", "wind noise", "wind rustling leaves")}
PICTURE = {
    "family": "read",
    "modality": "vision",
    "stage": "image",
    "variant": "imagenet-c-main",
    "reference": "Yang et al., ICLR 2024: the main corruptions of ImageNet-C (Hendrycks and Dietterich, ICLR 2019)",
    "note": "the corruption of this name in imagenet_c, with its draws: the pictures are identical; READ's files went "
    "through JPEG at quality 85 as well, these do not",
}


@corruption(
    "read/gaussian_noise",
    family="read",
    modality="audio",
    stage="waveform",
    reference="Yang et al., ICLR 2024: white noise of std .08 .12 .18 .26 .38 on the waveform",
    note="level is absolute, so the ratio depends on the clip; the sum clips where it is rounded to 16 bits",
)
def gaussian_noise(wave: Tensor, draws: Draws, severity: int) -> Tensor:
    std = NOISE_STD[severity]
    return each_clip(wave, draws, lambda clip, own: clip + std * own.normal("noise", clip.shape)[0].double().numpy())


@corruption("read/traffic", **GAIN_FORM, **TRAFFIC)
def traffic(wave: Tensor, draws: Draws, severity: int) -> Tensor:
    return _at_gain(wave, draws, severity, "traffic")


@corruption("read/crowd", **GAIN_FORM, **CROWD)
def crowd(wave: Tensor, draws: Draws, severity: int) -> Tensor:
    return _at_gain(wave, draws, severity, "crowd")


@corruption("read/rain", **GAIN_FORM, **RAIN)
def rain(wave: Tensor, draws: Draws, severity: int) -> Tensor:
    return _at_gain(wave, draws, severity, "rain")


@corruption("read/thunder", **GAIN_FORM, **THUNDER)
def thunder(wave: Tensor, draws: Draws, severity: int) -> Tensor:
    return _at_gain(wave, draws, severity, "thunder")


@corruption("read/wind", **GAIN_FORM, **WIND)
def wind(wave: Tensor, draws: Draws, severity: int) -> Tensor:
    return _at_gain(wave, draws, severity, "wind")


@corruption("read/traffic_snr", **SNR_FORM, **TRAFFIC)
def traffic_snr(wave: Tensor, draws: Draws, severity: int) -> Tensor:
    return _at_snr(wave, draws, severity, "traffic")


@corruption("read/crowd_snr", **SNR_FORM, **CROWD)
def crowd_snr(wave: Tensor, draws: Draws, severity: int) -> Tensor:
    return _at_snr(wave, draws, severity, "crowd")


@corruption("read/rain_snr", **SNR_FORM, **RAIN)
def rain_snr(wave: Tensor, draws: Draws, severity: int) -> Tensor:
    return _at_snr(wave, draws, severity, "rain")


@corruption("read/thunder_snr", **SNR_FORM, **THUNDER)
def thunder_snr(wave: Tensor, draws: Draws, severity: int) -> Tensor:
    return _at_snr(wave, draws, severity, "thunder")


@corruption("read/wind_snr", **SNR_FORM, **WIND)
def wind_snr(wave: Tensor, draws: Draws, severity: int) -> Tensor:
    return _at_snr(wave, draws, severity, "wind")


def _at_gain(wave: Tensor, draws: Draws, severity: int, scene: str) -> Tensor:
    rms = SCENE_RMS * 10 ** (GAIN_DB[severity] / 20)
    return each_clip(wave, draws, lambda clip, own: add_at_rms(clip, scene_noise(scene, own, len(clip)), rms))


def _at_snr(wave: Tensor, draws: Draws, severity: int, scene: str) -> Tensor:
    snr_db = SNR_DB[severity]
    return each_clip(wave, draws, lambda clip, own: add_at_snr(clip, scene_noise(scene, own, len(clip)), snr_db))


@corruption("read/gaussian_noise_image", **PICTURE)
@corruption("read/shot_noise", **PICTURE)
@corruption("read/impulse_noise", **PICTURE)
@corruption("read/defocus_blur", **PICTURE, deterministic=True)
@corruption("read/glass_blur", **PICTURE)
@corruption("read/motion_blur", **PICTURE)
@corruption("read/zoom_blur", **PICTURE, deterministic=True)
@corruption("read/snow", **PICTURE)
@corruption("read/frost", **PICTURE)
@corruption("read/fog", **PICTURE)
@corruption("read/brightness", **PICTURE, deterministic=True)
@corruption("read/contrast", **PICTURE, deterministic=True)
@corruption("read/elastic_transform", **PICTURE)
@corruption("read/pixelate", **PICTURE, deterministic=True)
@corruption("read/jpeg_compression", **PICTURE, deterministic=True)
def picture(image: Tensor, draws: Draws, severity: int) -> Tensor:
    """The corruption of the same name in imagenet_c; white noise has `_image` here, where the sound's has the name."""
    name = draws.corruption.replace("read/", "imagenet_c/").removesuffix("_image")
    out: Tensor = corruptions().load(name)(image, replace(draws, corruption=name), severity)
    return out
