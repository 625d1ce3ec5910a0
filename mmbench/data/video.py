"""A clip of a video file as CAV-MAE is given it: ten pictures at even steps, and mono sound at 16 kHz.

Yuan Gong et al., Contrastive Audio-Visual Masked Autoencoder, ICLR 2023: the released code takes the pictures
beforehand, shorter side 224, centre-cropped, and the first channel of the sound as FFmpeg resamples it.
Torch-free: a decoding process needs 100 MB.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmbench.errors import DataError
from mmbench.picture_file import not_regular, refuse_absurd, resize_and_crop

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
# A list of segments may be named .mp4 and send the reader to other files and hosts; only these are opened.
CONTAINERS = {"protocol_whitelist": "file", "format_whitelist": "mov,matroska,webm,avi"}
SAMPLE_RATE = 16_000  # Hz
JPEG_QUALITY = 95  # the film is lossy already; the usual 75 would add blocks of its own
SOUND_RATES = (1_000, 768_000)  # Hz, least and most; a header may promise one that makes gigabytes of a packet
MOST_PICTURES = 20_000  # of a section before the choice; a header may promise any number a second
ROUNDING_S = 1e-3  # containers tell times in milliseconds
REORDER_S = 1.0  # pictures are stored in another order than shown, by less than this
LEAST_SHARE = 0.5  # of a section that must be there
WHOLE_SHARE = 0.95  # with less of it, the clip is kept and told


class VideoError(DataError):
    """A video that gives no clip; the message is the reason and does not name the file."""


@dataclass(frozen=True)
class Section:
    """Which part of a film, and what is taken of it."""

    start_s: float
    seconds: float
    frames: int
    size: int
    """Pixels, a side of each picture."""


@dataclass(frozen=True)
class Excerpt:
    """A clip as it goes to disk."""

    pictures: tuple[bytes, ...]
    """JPEG files, in order."""
    sound: bytes
    """A wav file, mono 16 kHz, 16 bits."""
    note: str
    """What a listener should know although the clip is used; empty for a whole one."""


def read_excerpt(path: Path, section: Section) -> Excerpt:
    """Decode a section of a video. Raises VideoError with the reason in one line."""
    import av

    if not_regular(path):
        raise VideoError("not a regular file")
    try:
        with av.open(str(path.resolve()), options=CONTAINERS) as container:
            film = _Film(container, section)
            count, pictures_s = film.count()
            pictures, decoded = film.pictures(count)
        with av.open(str(path.resolve()), options=CONTAINERS) as container:
            sound = _Film(container, section).sound()  # (S,)
    except VideoError:
        raise
    except Exception as error:  # decoders raise errors of every kind on damaged files
        raise VideoError(f"cannot be decoded ({_reason(error)})") from error
    note = _shortness(film.wanted_s, pictures_s * decoded / count, len(sound) / SAMPLE_RATE)
    return Excerpt(tuple(pictures), _wav(sound), note)


class _Film:
    """An open container and the section of it that is wanted; times count from the container's beginning."""

    def __init__(self, container: Any, section: Section) -> None:
        self._container, self._section = container, section
        self._video, self._audio = (container.streams.best(kind) for kind in ("video", "audio"))
        if self._video is None or self._audio is None:
            raise VideoError(f"holds no {'pictures' if self._video is None else 'sound'}")
        self._video.codec_context.thread_count = 1  # the processes are what runs side by side
        refuse_absurd(self._video.codec_context.width, self._video.codec_context.height)
        self._origin_s = (container.start_time or 0) / 1e6
        self._begin_s = section.start_s - ROUNDING_S
        self._end_s = section.start_s + section.seconds - ROUNDING_S
        told = None if container.duration is None else container.duration / 1e6
        if told is not None and told <= section.start_s:
            raise VideoError(f"ends after {told:.1f} s, the clip begins at {section.start_s:.1f} s")
        self.wanted_s = section.seconds if told is None else min(section.seconds, told - section.start_s)

    def count(self) -> tuple[int, float]:
        """Pictures in the section and the seconds that they span, told by the packets without decoding them."""
        found, latest_s = 0, self._section.start_s
        self._seek()
        for packet in self._container.demux(self._video):
            stored_s, shown_s = (self._seconds(packet, time) for time in (packet.dts, packet.pts))
            if stored_s is not None and stored_s > self._end_s + REORDER_S:
                break
            at_s = stored_s if shown_s is None else shown_s
            if packet.size > 0 and at_s is not None and self._begin_s <= at_s < self._end_s:
                found, latest_s = found + 1, max(latest_s, at_s)
            if found > MOST_PICTURES:
                raise VideoError(f"more than {MOST_PICTURES} pictures in {self._section.seconds:g} s")
        if found == 0:
            raise VideoError(f"no picture from {self._section.start_s:.1f} s on")
        return found, latest_s - self._section.start_s + 1 / float(self._video.average_rate or 25)

    def pictures(self, count: int) -> tuple[list[bytes], int]:
        """The chosen ones as JPEG files, and how many of `count` can be decoded, as far as that was looked at.

        Where the last ones cannot be, the last that can stands for them.
        """
        places = even_places(count, self._section.frames)
        chosen: dict[int, bytes] = {}
        number, frame = -1, None
        for number, frame in enumerate(self._decoded(self._video)):
            if number in places:
                chosen[number] = self._jpeg(frame)
            if number == places[-1]:
                break
        if frame is None:
            raise VideoError(f"none of {count} pictures can be decoded")
        if number == places[-1]:
            return [chosen[place] for place in places], count
        last = self._jpeg(frame)
        return [chosen.get(place, last) for place in places], number + 1

    def sound(self) -> NDArray[np.int16]:
        """The first channel, (S,), silence before it where the pictures begin earlier."""
        import av

        resampler = av.AudioResampler(format="fltp", rate=SAMPLE_RATE)
        wanted = missing = round(self._section.seconds * SAMPLE_RATE)
        parts: list[NDArray[np.float32]] = []
        offset: int | None = None
        for frame in self._decoded(self._audio):
            if not SOUND_RATES[0] <= frame.sample_rate <= SOUND_RATES[1]:
                raise VideoError(f"its sound has {frame.sample_rate} Hz, not {SOUND_RATES[0]} to {SOUND_RATES[1]}")
            if offset is None:
                first_s = self._section.start_s if frame.time is None else frame.time - self._origin_s
                offset = round((first_s - self._section.start_s) * SAMPLE_RATE)
                missing -= offset
            found = [_first_channel(part) for part in resampler.resample(frame)]
            parts += found
            missing -= sum(map(len, found))
            if missing <= 0:  # the times of later frames may say that they begin here too
                break
        if offset is None:
            raise VideoError(f"no sound from {self._section.start_s:.1f} s on")
        parts += [_first_channel(part) for part in resampler.resample(None)]
        samples = np.concatenate(parts)
        if not np.isfinite(samples).all():
            raise VideoError("its sound holds samples that are not finite")
        samples = np.pad(samples[max(0, -offset) :], (max(0, offset), 0))[:wanted]
        scaled: NDArray[np.int16] = np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)
        return scaled

    def _decoded(self, stream: Any) -> Iterator[Any]:
        """The frames of the section in the order they are shown; packets that are damaged are passed over."""
        import av

        self._seek()
        for packet in self._container.demux(stream):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                continue
            for frame in frames:
                begins_s = self._begin_s if frame.time is None else frame.time - self._origin_s
                if begins_s >= self._end_s:
                    return
                # A picture belongs to the section that it begins in, sound to every section that it reaches into.
                length_s = frame.samples / frame.sample_rate if stream is self._audio else 0.0
                if begins_s + length_s >= self._begin_s:
                    yield frame

    def _seek(self) -> None:
        start_s = self._origin_s + self._section.start_s
        self._container.seek(int(max(0.0, start_s) * 1e6), backward=True)

    def _seconds(self, packet: Any, time: int | None) -> float | None:
        return None if time is None else float(time * packet.time_base) - self._origin_s

    def _jpeg(self, frame: Any) -> bytes:
        refuse_absurd(frame.width, frame.height)  # may change on the way
        buffer = io.BytesIO()
        picture = Image.fromarray(resize_and_crop(frame.to_image(), self._section.size))
        picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
        return buffer.getvalue()


def even_places(count: int, frames: int) -> tuple[int, ...]:
    """Which of `count` pictures the released code takes: one before each even step, as its reader seeks one early."""
    return tuple(max(0, step * count // frames - 1) for step in range(frames))


def _shortness(wanted_s: float, pictures_s: float, sound_s: float) -> str:
    """What is missing of a section; raises VideoError where it is more than half."""
    notes = []
    for what, found_s in (("pictures", pictures_s), ("sound", sound_s)):
        words = f"{found_s:.1f} of {wanted_s:.1f} s of {what}"
        if found_s < LEAST_SHARE * wanted_s:
            raise VideoError(f"only {words}")
        if found_s < WHOLE_SHARE * wanted_s - 0.1:
            notes.append(words)
    return ", ".join(notes)


def _first_channel(part: Any) -> NDArray[np.float32]:
    """A copy, (S,): a view would keep all channels."""
    first: NDArray[np.float32] = part.to_ndarray()[0].copy()
    return first


def _wav(samples: NDArray[np.int16]) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(samples.astype("<i2").tobytes())
    return buffer.getvalue()


def _reason(error: Exception) -> str:
    """One line without the path, which libav repeats."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0][:300]
