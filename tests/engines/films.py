"""Films that tell which picture is shown and which second is heard."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from av.video.stream import VideoStream
from PIL import Image

FPS, RATE = 10, 48_000


def tone_hz(second: int) -> int:
    return 400 * (second + 1)


def film(path: Path, seconds: float, video: str = "mpeg4", audio: str = "aac", sound_s: float | None = None) -> Path:
    """Picture n is plain grey 8 + 5 n; second k sounds at its own pitch on the left, and reversed on the right.

    The mean of both channels is silence. Without a codec the film lacks that stream.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        pictures = out.add_stream(video, rate=FPS) if video else None
        sound = out.add_stream(audio, rate=RATE) if audio else None
        if pictures is not None:
            pictures.width, pictures.height, pictures.pix_fmt, pictures.gop_size = 64, 48, "yuv420p", 12
        if sound is not None:
            sound.layout = "stereo"
        if pictures is not None:
            show(out, pictures, [8 + 5 * number % 248 for number in range(round(seconds * FPS))])
        if sound is not None:
            time = np.arange(round((sound_s or seconds) * RATE)) / RATE
            wave = 0.5 * np.sin(2 * np.pi * 400 * (1 + time.astype(int)) * time)
            samples = np.stack([wave, -wave]).astype(np.float32)
            whole = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout="stereo")
            whole.sample_rate, whole.pts = RATE, 0
            out.mux(sound.encode(whole))
            out.mux(sound.encode(None))
    return path


def silent(path: Path, codec: str, rate: int, seconds: int) -> Path:
    """A second of pictures, and sound whose packets all say that they begin at once."""
    with av.open(str(path), "w") as out:
        pictures, sound = out.add_stream("mpeg4", rate=FPS), out.add_stream(codec, rate=rate)
        pictures.width, pictures.height, pictures.pix_fmt, sound.layout = 64, 48, "yuv420p", "mono"
        show(out, pictures, [0] * FPS)
        for number in range(seconds):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, rate), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = rate, number * rate
            for packet in sound.encode(frame):
                packet.pts = packet.dts = 0
                out.mux(packet)
    return path


def show(out: OutputContainer, stream: VideoStream, greys: Sequence[int]) -> None:
    for number, grey in enumerate(greys):
        frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), grey, np.uint8), format="rgb24")
        frame.pts, frame.time_base = number, Fraction(1, FPS)
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


def shown(picture: Path | bytes) -> int:
    """Which picture of the film a JPEG is."""
    with Image.open(picture if isinstance(picture, Path) else io.BytesIO(picture)) as file:
        return round((float(np.asarray(file).mean()) - 8) / 5)
