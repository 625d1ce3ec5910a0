"""Real video files through PyAV: the right pictures and the right sound, and runs that are stopped, killed, resumed."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from conftest import wait_for
from PIL import Image

from mmbench.config import DataConfig, SplitConfig
from mmbench.data.clip_list import ClipList, Videos, list_folder
from mmbench.data.extract import Job, Order, Refused, extract, extract_clip
from mmbench.data.extract_ledger import Settings
from mmbench.data.manifest import cavmae_manifest
from mmbench.data.manifest_files import labels_of
from mmbench.data.store import build_store
from mmbench.data.video import Section, VideoError, read_excerpt
from mmbench.errors import DataError
from mmbench.registry import ROOT

KINDS = (("a.mp4", "mpeg4", "aac"), ("a.mp4", "libx264", "aac"), ("a.mkv", "mpeg4", "aac"), ("a.avi", "mpeg4", "mp3"))
WEB = ("a.webm", "libvpx-vp9", "libopus")
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
            for number in range(round(seconds * FPS)):
                grey = np.full((48, 64, 3), 8 + 5 * number % 248, np.uint8)
                frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, FPS)
                out.mux(pictures.encode(frame))
            out.mux(pictures.encode(None))
        if sound is not None:
            time = np.arange(round((sound_s or seconds) * RATE)) / RATE
            wave = 0.5 * np.sin(2 * np.pi * 400 * (1 + time.astype(int)) * time)
            samples = np.stack([wave, -wave]).astype(np.float32)
            whole = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout="stereo")
            whole.sample_rate, whole.pts = RATE, 0
            out.mux(sound.encode(whole))
            out.mux(sound.encode(None))
    return path


def shown(picture: Path | bytes) -> int:
    """Which picture of the film a JPEG is."""
    with Image.open(picture if isinstance(picture, Path) else io.BytesIO(picture)) as file:
        return round((float(np.asarray(file).mean()) - 8) / 5)


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


def silent(path: Path, codec: str, rate: int, seconds: int) -> Path:
    """A second of pictures, and sound whose packets all say that they begin at once."""
    with av.open(str(path), "w") as out:
        pictures, sound = out.add_stream("mpeg4", rate=FPS), out.add_stream(codec, rate=rate)
        pictures.width, pictures.height, pictures.pix_fmt, sound.layout = 64, 48, "yuv420p", "mono"
        for number in range(FPS):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            out.mux(pictures.encode(frame))
        out.mux(pictures.encode(None))
        for number in range(seconds):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, rate), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = rate, number * rate
            for packet in sound.encode(frame):
                packet.pts = packet.dts = 0
                out.mux(packet)
    return path


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


# The verb ---------------------------------------------------------------------------------------------------------


def command(out: Path, *words: str) -> list[str]:
    entry = [sys.executable, str(ROOT / "mmbench" / "__main__.py"), "data", "extract"]
    return [*entry, *words, "--out", str(out), "--workers", "2", "--size", "32"]


def run(out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(out, *words), capture_output=True, text=True, timeout=120)


def files(out: Path) -> dict[str, str]:
    """What a reader of the folder finds, by content."""
    found = [path for path in out.rglob("*") if path.is_file() and path.name != "extracted.jsonl"]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four videos of two classes."""
    folder = tmp_path_factory.mktemp("many")
    first = film(folder / "dog" / "clip00.mp4", 2.0)
    (folder / "cat").mkdir()
    for number in range(1, 24):
        shutil.copy(first, folder / ("dog", "cat")[number % 2] / f"clip{number:02d}.mp4")
    return folder


@pytest.fixture(scope="module")
def whole(many: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What an extraction in one go leaves."""
    out = tmp_path_factory.mktemp("whole")
    ended = run(out, str(many))
    assert ended.returncode == 0, ended.stderr
    return files(out)


def test_from_a_list_and_videos_to_a_store(tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    film(videos / "uncut.mp4", 5.0)
    film(videos / "deep" / "rain_000030.mkv", 2.0)
    (videos / "broken_000000.mp4").write_bytes(b"x" * 999)
    film(tmp_path / "secret.mp4", 2.0)
    rows = (
        'uncut,1,"speech, loud",train', 'uncut,3,"speech, loud",test', "rain,30,rain,train", "gone,0,rain,train",
        "broken,0,rain,test", "../secret,,rain,train",
    )  # fmt: skip
    (tmp_path / "list.csv").write_text("\n".join(rows))
    ended = run(out, str(tmp_path / "list.csv"), "--videos", str(videos), "--seconds", "2", "--frames", "4")
    assert ended.returncode == 1, ended.stderr
    assert ended.stdout.startswith(
        "3 of 6 clips extracted\n  1 broken\n  1 without a video\n  1 not usable as listed\n"
    )
    with (out / "left_out.csv").open() as file:
        left_out = {(row["id"], row["kind"], row["video"]) for row in csv.DictReader(file)}
    assert left_out == {
        ("broken_000000", "broken", "broken_000000.mp4"),
        ("gone_000000", "missing", ""),
        ("list.csv entry 6", "unusable", ""),
    }
    assert ended.stdout.endswith("    frames: 4\n    split: {kind: listed}\n")
    config = DataConfig(name="cavmae-manifest", manifest=out / "clips.json", label_csv=out / "labels.csv", frames=4)
    source = cavmae_manifest(config.model_copy(update={"split": SplitConfig(kind="listed")}))
    assert {item.id: item.split for item in source.items}["uncut_000003"] == "test"
    source = cavmae_manifest(config)
    assert source.problems == () and source.classes == ("rain", "speech, loud")
    assert {(item.id, item.group, item.labels) for item in source.items} == {
        ("uncut_000001", "uncut", (1,)), ("uncut_000003", "uncut", (1,)), ("rain_000030", "rain", (0,)),
    }  # fmt: skip
    store = build_store(source, 128, 32, tmp_path / "cache")
    batch = store.batch(["uncut_000003"])
    assert round((float(batch.image.float().mean()) - 8) / 5) == 30 + 9  # the middle one of four, one early
    assert not list(tmp_path.rglob("*secret*.wav")) and not (out / ".parts").exists()


def test_a_run_that_is_killed_goes_on_where_it_stood(many: Path, whole: dict[str, str], tmp_path: Path) -> None:
    ledger = tmp_path / "extracted.jsonl"
    running = subprocess.Popen(command(tmp_path, str(many)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: ledger.exists() and ledger.read_bytes().count(b"\n") > 5)
    running.kill()
    running.wait()
    with ledger.open("ab") as file:
        file.write(b'{"id": "clip3')  # the line that was being written
    ended = run(tmp_path, str(many))
    assert ended.returncode == 0, ended.stderr
    found = re.match(r"24 of 24 clips extracted \((\d+) by an earlier run\)", ended.stdout)
    assert found is not None and 5 <= int(found.group(1)) < 24
    assert files(tmp_path) == whole
    assert "(24 by an earlier run)" in run(tmp_path, str(many), "--verify").stdout


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
        return True
    except ProcessLookupError:
        return False


def test_ctrl_c_ends_all_processes_and_leaves_no_half_file(many: Path, whole: dict[str, str], tmp_path: Path) -> None:
    ledger = tmp_path / "extracted.jsonl"
    running = subprocess.Popen(
        command(tmp_path, str(many)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for(lambda: ledger.exists() and ledger.read_bytes().count(b"\n") > 3)
    os.killpg(running.pid, signal.SIGINT)
    _, told = running.communicate(timeout=30)
    assert running.returncode == 130 and told == "interrupted; the same command resumes\n"
    wait_for(lambda: not alive(running.pid), seconds=30)
    assert not (tmp_path / ".parts").exists() and not (tmp_path / "clips.json").exists()
    assert run(tmp_path, str(many)).returncode == 0 and files(tmp_path) == whole


def test_what_changed_is_made_anew_and_what_is_finished_needs_no_video(many: Path, tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    for number in range(4):
        (videos / "dog").mkdir(parents=True, exist_ok=True)
        shutil.copy(many / "dog" / "clip00.mp4", videos / "dog" / f"clip{number}.mp4")
    assert run(out, str(videos)).returncode == 0
    before = files(out)
    picture = out / "frames" / "frame_3" / "clip1.jpg"
    picture.write_bytes(picture.read_bytes()[:-2] + b"xx")  # of the same size
    (out / "audio" / "clip2.wav").unlink()
    (many / "dog" / "clip00.mp4").touch()
    assert "(3 by an earlier run)" in run(out, str(videos)).stdout and files(out) != before
    assert "(3 by an earlier run)" in run(out, str(videos), "--verify").stdout and files(out) == before
    film(videos / "dog" / "clip0.mp4", 3.0)
    assert "(3 by an earlier run)" in run(out, str(videos)).stdout
    assert soundfile.info(out / "audio" / "clip0.wav").duration == pytest.approx(3.0, abs=0.1)
    listing = {"data": [{"video_id": f"clip{number}", "labels": "dog"} for number in range(4)]}
    (tmp_path / "list.json").write_text(json.dumps(listing))
    (tmp_path / "none").mkdir()
    ended = run(out, str(tmp_path / "list.json"), "--videos", str(tmp_path / "none"))
    assert ended.returncode == 0 and "(4 by an earlier run)" in ended.stdout
    refused = run(out, str(videos), "--frames", "8")
    assert refused.returncode == 2 and "was begun with schema 1, frames 10, seconds 10.0, size 32" in refused.stderr


def test_a_clip_ends_where_the_list_says_unless_its_file_is_the_clip(tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    film(videos / "uncut.mp4", 6.0)
    film(videos / "own_000030.mp4", 4.0)
    (tmp_path / "list.csv").write_text("id,start,end,label\nuncut,0,2,a\nuncut,1,5,a\nown,30,31,a\n")
    words = ("--videos", str(videos), "--seconds", "3")
    assert run(out, str(tmp_path / "list.csv"), *words).returncode == 0
    lengths = {path.stem: soundfile.info(path).duration for path in (out / "audio").iterdir()}
    assert lengths == {"uncut_000000": 2.0, "uncut_000001": 3.0, "own_000030": 3.0}
    assert shown(out / "frames" / "frame_9" / "uncut_000000.jpg") == 20 * 9 // 10 - 1


def test_a_corrected_list_makes_its_clips_anew(tmp_path: Path) -> None:
    videos, out, listing = tmp_path / "videos", tmp_path / "out", tmp_path / "list.csv"
    film(videos / "a.mp4", 5.0)

    def extracted(*rows: str) -> str:
        listing.write_text("\n".join(("id,start,end,label", *rows)))
        ended = run(out, str(listing), "--videos", str(videos))
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.splitlines()[0]

    assert extracted("a,1.1,3,x", "a,1.7,3,x", "a,2,4,x") == "3 of 3 clips extracted"
    names = ("a_000001100", "a_000001700", "a_000002")
    assert [shown(out / "frames" / "frame_0" / f"{name}.jpg") for name in names] == [11, 17, 20]
    listed = extracted("a,1.1,3,x", "a,1.7,4.7,x", "a,2.0002,4.0,x")  # an end, and a start by less than a name tells
    assert listed == "3 of 3 clips extracted (1 by an earlier run)"
    assert [soundfile.info(out / "audio" / f"{name}.wav").duration for name in names[1:]] == [3.0, 1.9998125]
    (videos / "a.mp4").unlink()
    assert extracted("a,1.1,3,x", "a,2.0002,4,x") == "2 of 2 clips extracted (2 by an earlier run)"
    listing.write_text("a,1.1,x,train\na,2,x,train\n")  # other ends than those of the files
    ended = run(out, str(listing), "--videos", str(videos))
    assert ended.returncode == 2 and "none of 2 clips could be extracted" in ended.stderr
    source = cavmae_manifest(
        DataConfig(name="cavmae-manifest", manifest=out / "clips.json", label_csv=out / "labels.csv")
    )
    assert {item.group for item in source.items} == {"a"}


def test_a_link_that_leads_nowhere_is_a_missing_video(many: Path, tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    (videos / "dog").mkdir(parents=True)
    for name in ("first", "second"):
        shutil.copy(many / "dog" / "clip00.mp4", tmp_path / f"{name}.mp4")
        (videos / "dog" / f"{name}.mp4").symlink_to(tmp_path / f"{name}.mp4")
    (tmp_path / "second.mp4").unlink()
    ended = run(out, str(videos))
    assert (ended.returncode, ended.stderr) == (1, "")
    assert ended.stdout.startswith("1 of 2 clips extracted\n  1 without a video\n")
    assert (
        "second,missing,the file has gone or cannot be reached,dog/second.mp4\n" in (out / "left_out.csv").read_text()
    )
    (tmp_path / "first.mp4").unlink()  # its clip is finished and needs it no more
    assert "1 of 2 clips extracted (1 by an earlier run)\n" in run(out, str(videos)).stdout


def test_a_decoder_that_takes_too_long_is_ended(many: Path, tmp_path: Path) -> None:
    videos = Videos(many)
    listed, labels = list_folder(videos), labels_of(("cat", "dog"))
    order = Order(tmp_path, Settings(2, 1.0, 32), workers=2, limit_s=1e-4)
    few = ClipList(listed.clips[:5], ())
    told: list[tuple[int, int]] = []
    with pytest.raises(DataError, match=r"none of 5 clips could be extracted; .*left_out\.csv says why"):
        extract(few, videos, labels, order, lambda *now: told.append(now))
    assert told == [(done, done) for done in range(1, 6)]
    assert (tmp_path / "left_out.csv").read_text().count(",broken,took longer than 0.0001 s,") == 5
    report = extract(few, videos, labels, replace(order, limit_s=60.0), lambda *now: told.append(now))
    assert (report.listed, report.extracted, report.before, report.left_out) == (5, 5, 0, ())
    assert told[5:] == [(done, 0) for done in range(1, 6)]


def test_files_that_cannot_be_written_end_the_run_with_their_name(many: Path, tmp_path: Path) -> None:
    (tmp_path / "audio" / "clip03.wav").mkdir(parents=True)
    ended = run(tmp_path, str(many))
    assert ended.returncode == 2 and "cannot write the files of clip03: Is a directory" in ended.stderr
    section = Section(0.0, 2.0, 2, 32)
    refused = extract_clip(Job("a", "dog/clip00.mp4", (0, 0), None, 2.0, many, section, tmp_path / "nowhere"))
    assert isinstance(refused, Refused) and refused.fatal


def test_two_runs_at_once_are_refused(many: Path, tmp_path: Path) -> None:
    running = subprocess.Popen(command(tmp_path, str(many)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for((tmp_path / "extracted.jsonl").exists)
    second = run(tmp_path, str(many))
    running.wait()
    assert running.returncode == 0
    assert second.returncode == 2 and f"another process is extracting into {tmp_path}" in second.stderr


def test_a_list_needs_its_videos(many: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("a,1,b,train\n")
    for words in ((str(tmp_path / "list.csv"),), (str(many), "--videos", str(many))):
        ended = run(tmp_path, *words)
        assert ended.returncode == 2 and "a list of clips needs --videos DIR" in ended.stderr
