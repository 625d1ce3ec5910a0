"""`mmbench data extract` on real video files: what it writes, and runs that are stopped, killed, resumed."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
from conftest import wait_for
from films import film, shown

from mmbench.config import DataConfig, SplitConfig
from mmbench.data.clip_list import ClipList, Videos, list_folder
from mmbench.data.extract import Job, Order, Refused, extract, extract_clip
from mmbench.data.extract_ledger import Settings
from mmbench.data.manifest import cavmae_manifest
from mmbench.data.manifest_files import labels_of
from mmbench.data.store import build_store
from mmbench.data.video import Section
from mmbench.errors import DataError
from mmbench.registry import ROOT


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
