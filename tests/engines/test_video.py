"""Real video files through PyAV: the right pictures and the right sound."""

from __future__ import annotations

import io
import os
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from films import film, shown, silent, tone_hz
from PIL import Image

from mmbench.data.video import Section, VideoError, read_excerpt

KINDS = (("a.mp4", "mpeg4", "aac"), ("a.mp4", "libx264", "aac"), ("a.mkv", "mpeg4", "aac"), ("a.avi", "mpeg4", "mp3"))
WEB = ("a.webm", "libvpx-vp9", "libopus")


def pitch_hz(samples: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax() * 16_000 / len(samples))


def heard(wav: bytes) -> np.ndarray:
    samples, rate = soundfile.read(io.BytesIO(wav))
    assert rate == 16_000 and samples.ndim == 1
    return samples


@pytest.mark.parametrize("name, video, audio", [*KINDS, WEB], ids=lambda word: word)
def test_pictures_and_sound_of_every_kind_of_file(tmp_path: Path, name: str, video: str, audio: str) -> None:
    excerpt = read_excerpt(film(tmp_path / name, 3.0, video, audio), Section(0.0, 10.0, 10, 32))
    found = [shown(picture) for picture in excerpt.pictures]
    # 30 pictures: int(i * 30 / 10), one earlier; the writer of avi leaves a hole behind the first picture
    assert np.abs(np.array(found) - [0, 2, 5, 8, 11, 14, 17, 20, 23, 26]).max() <= (name == "a.avi")
    with Image.open(io.BytesIO(excerpt.pictures[0])) as first:
        assert first.size == (32, 32) and first.format == "JPEG"
    samples = heard(excerpt.sound)
    assert abs(len(samples) - 3 * 16_000) < 0.1 * 16_000 and excerpt.note == ""
    for second in range(3):
        middle = samples[second * 16_000 + 4000 :][:8000]
        assert pitch_hz(middle) == pytest.approx(tone_hz(second), abs=5)
        assert np.sqrt((middle**2).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.1)


@pytest.mark.parametrize("name, video, audio", [*KINDS[:3], WEB], ids=lambda word: word)
def test_a_section_of_an_uncut_film(tmp_path: Path, name: str, video: str, audio: str) -> None:
    """It begins between two key pictures."""
    excerpt = read_excerpt(film(tmp_path / name, 5.0, video, audio), Section(1.7, 2.0, 5, 32))
    assert [shown(picture) for picture in excerpt.pictures] == [17 + place for place in (0, 3, 7, 11, 15)]
    samples = heard(excerpt.sound)
    assert len(samples) == 2 * 16_000
    assert pitch_hz(samples[:4000]) == pytest.approx(tone_hz(1), abs=20)
    assert pitch_hz(samples[5500:20_500]) == pytest.approx(tone_hz(2), abs=5)
    assert pitch_hz(samples[21_500:31_500]) == pytest.approx(tone_hz(3), abs=5)


def test_what_gives_no_clip_says_why(tmp_path: Path) -> None:
    def reason(path: Path, start_s: float = 0.0) -> str:
        with pytest.raises(VideoError) as error:
            read_excerpt(path, Section(start_s, 10.0, 10, 32))
        assert str(tmp_path) not in str(error.value) and "\n" not in str(error.value)
        return str(error.value)

    whole = film(tmp_path / "whole.mp4", 3.0)
    assert reason(film(tmp_path / "deaf.mp4", 1.0, audio="")) == "holds no sound"
    assert reason(film(tmp_path / "blind.mp4", 1.0, video="")) == "holds no pictures"
    assert reason(whole, 7.0).startswith("ends after 3.0 s, the clip begins at 7.0 s")
    assert reason(film(tmp_path / "quiet.mp4", 4.0, sound_s=1.0)).startswith("only 1.0 of 4.0 s of sound")
    (tmp_path / "half.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert reason(tmp_path / "half.mp4").startswith("cannot be decoded")
    cut = film(tmp_path / "cut.mkv", 6.0)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 3])
    assert reason(cut).startswith("only ")
    (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:3,\n{whole}\n#EXT-X-ENDLIST\n")
    assert reason(tmp_path / "list.mp4").startswith("cannot be decoded")
    (tmp_path / "text.mp4").write_text("no film")
    assert reason(tmp_path / "text.mp4").startswith("cannot be decoded")
    os.mkfifo(tmp_path / "pipe.mp4")
    assert reason(tmp_path / "pipe.mp4") == "not a regular file"
    assert "No such file" in reason(tmp_path / "none.mp4")


def test_a_clip_that_is_a_little_short_is_used_and_told(tmp_path: Path) -> None:
    excerpt = read_excerpt(film(tmp_path / "a.mp4", 4.0, sound_s=3.0), Section(0.0, 10.0, 4, 32))
    assert re.fullmatch(r"3\.\d of 4\.0 s of sound", excerpt.note)
    cut = film(tmp_path / "cut.mkv", 6.0)
    cut.write_bytes(cut.read_bytes()[: int(cut.stat().st_size * 0.75)])
    assert re.fullmatch(
        r"4\.\d of 6\.0 s of pictures, 4\.\d of 6\.0 s of sound", read_excerpt(cut, Section(0, 9, 4, 32)).note
    )


def test_sound_is_counted_by_its_samples_whatever_its_times_say(tmp_path: Path) -> None:
    path = silent(tmp_path / "long.mkv", "flac", 16_000, 600)
    tracemalloc.start()
    try:
        samples = heard(read_excerpt(path, Section(0.0, 1.0, 2, 32)).sound)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(samples) == 16_000 and most < 4e6  # all of it would be 38 MB


@pytest.mark.parametrize("rate", [900, 800_000])
def test_a_rate_that_no_sound_has_is_refused(tmp_path: Path, rate: int) -> None:
    with pytest.raises(VideoError, match=f"^its sound has {rate} Hz, not 1000 to 768000$"):
        read_excerpt(silent(tmp_path / "a.mkv", "pcm_s16le", rate, 2), Section(0.0, 1.0, 2, 32))
