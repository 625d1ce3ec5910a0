"""Lists of clips as data sets publish them, the videos they mean, and processes that may hang or crash."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from mmbench.data.clip_list import Clip, Videos, list_folder, read_list, with_labels
from mmbench.data.decoders import Decoders, Died
from mmbench.data.manifest_files import Labels, label_text, labels_of, read_labels
from mmbench.data.video import VideoError, even_places
from mmbench.errors import DataError

VGGSOUND = '--film_A,1,"female speech, woman speaking",test\nfilmB,20,rain,train\n'
AUDIOSET = """# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=2, num_segs=2, num_unique_labels=3, num_positive_labels=3
# YTID, start_seconds, end_seconds, positive_labels
--film_A, 30.000, 40.000, "/m/09x0r,/t/dd00088"
filmB, 0.000, 8.000, "/m/05zppz"
"""
KINETICS = "label,youtube_id,time_start,time_end,split\nplaying drums,filmC,5,15,validate\n"


def listed(folder: Path, text: str, name: str = "list.csv") -> tuple[Clip, ...]:
    (folder / name).write_text(text)
    return read_list(folder / name).clips


def test_lists_of_four_data_sets_are_told_apart(tmp_path: Path) -> None:
    assert listed(tmp_path, VGGSOUND) == (
        Clip("--film_A_000001", "--film_A", 1.0, None, ("female speech, woman speaking",), "test"),
        Clip("filmB_000020", "filmB", 20.0, None, ("rain",), "train"),
    )
    assert listed(tmp_path, AUDIOSET) == (
        Clip("--film_A_000030", "--film_A", 30.0, 40.0, ("/m/09x0r", "/t/dd00088"), ""),
        Clip("filmB_000000", "filmB", 0.0, 8.0, ("/m/05zppz",), ""),
    )
    assert listed(tmp_path, KINETICS) == (Clip("filmC_000005", "filmC", 5.0, 15.0, ("playing drums",), "val"),)
    assert listed(tmp_path, 'id,labels\nx,"a,b"\n') == (Clip("x", "x", None, None, ("a", "b"), ""),)
    clips = '{"data": [{"video_id": "y_000003", "wav": "", "video_path": "", "labels": "/m/a,/m/b"}]}'
    assert listed(tmp_path, clips, "list.json") == (Clip("y_000003", "y_000003", None, None, ("/m/a", "/m/b"), ""),)


def test_clips_that_begin_in_the_same_second_have_names_of_their_own(tmp_path: Path) -> None:
    clips = listed(tmp_path, "id,start,label\na,1,x\na,1.1,x\na,1.9,x\na,1.9996,x\na,1900,x\na,1000000,x\n")
    assert [clip.id for clip in clips] == [
        "a_000001",
        "a_000001100",
        "a_000001900",
        "a_000002",
        "a_001900",
        "a_1000000",
    ]
    videos = touch(tmp_path, "a_000001.mp4", "a_000001900_000003500.mp4", "a.mp4")
    assert videos.find(Clip("id", "a", 1.1, None, ("x",), "")) == ("a.mp4", 1.1)
    assert videos.find(Clip("id", "a", 1.9, 3.5, ("x",), "")) == ("a_000001900_000003500.mp4", None)


def test_a_clip_that_ends_before_it_begins_is_not_usable(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("id,start,end,label\na,5,5,x\nb,5,4.5,x\nc,5,5.5,x\nd,,4,x\n")
    found = read_list(tmp_path / "list.csv")
    assert [clip.film for clip in found.clips] == ["c", "d"]
    assert [problem.reason for problem in found.problems] == [
        "end 5 is not after start 5",
        "end 4.5 is not after start 5",
    ]


def test_a_json_of_clips_keeps_its_splits(tmp_path: Path) -> None:
    entries = [{"video_id": name, "labels": "a", "split": name} for name in ("test", "validate", "trian")]
    others = [{"video_id": f"other{split}", "labels": "a", "split": split} for split in (None, 1)]
    (tmp_path / "list.json").write_text(json.dumps({"data": entries + others}))
    found = read_list(tmp_path / "list.json")
    assert {clip.id: clip.split for clip in found.clips} == {"test": "test", "validate": "val", "otherNone": ""}
    assert [problem.reason.split(" is ")[0] for problem in found.problems] == ["split 'trian'", "split 1"]


@pytest.mark.parametrize(
    "row, reason",
    [
        ("../../etc/passwd,1,rain,train", "not a plain file name"),
        ("/etc/passwd,1,rain,train", "not a plain file name"),
        (".hidden,1,rain,train", "not a plain file name"),
        ("..,1,rain,train", "not a plain file name"),
        ("a\\b,1,rain,train", "not a plain file name"),
        ("a\x1b[2J,1,rain,train", "not a plain file name"),
        (f"{'x' * 300},1,rain,train", "not a plain file name"),
        (",1,rain,train", "not a plain file name"),
        ("a,soon,rain,train", "start 'soon' is no second"),
        ("a,nan,rain,train", "start 'nan' is no second"),
        ("a,-1,rain,train", "start '-1' is no second"),
        ("a,1,rain, heavy,train", "5 cells, not 4; quote a label"),
        ("a,1,,train", "a label is empty"),
        ("good,1,snow,train", "good_000001 is given twice"),
        ("a,1,snow,trian", "split 'trian' is none of train, val"),
    ],
)
def test_an_entry_that_cannot_be_used_is_told_with_its_line(tmp_path: Path, row: str, reason: str) -> None:
    (tmp_path / "list.csv").write_text(f"good,1,rain,train\n{row}\n")
    found = read_list(tmp_path / "list.csv")
    assert [clip.id for clip in found.clips] == ["good_000001"]
    (problem,) = found.problems
    assert problem.id == "list.csv entry 2" and problem.kind == "unusable" and reason in problem.reason


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("list.csv", b"", "lists no usable clip"),
        ("list.csv", b"\xff\xfe\x00", "cannot read the list"),
        ("list.csv", b"a,1," + b"x" * 200_000, "cannot read the list"),
        ("list.json", b"[]", 'key "data"'),
        ("list.json", b'{"data": [{"video_id": 3, "labels": "a"}]}', "must be texts"),
        ("list.json", b'{"data": [{"video_id": "../a", "labels": "a"}]}', "not a plain file name"),
    ],
)
def test_a_file_that_is_no_list_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_list(tmp_path / name)


def touch(root: Path, *names: str) -> Videos:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return Videos(root)


def test_a_file_named_by_its_start_is_the_clip_and_one_named_by_the_film_is_cut(tmp_path: Path) -> None:
    videos = touch(tmp_path, "a/cut_000030.MP4", "b/kin_000005_000015.mkv", "whole.webm", "cut.mp4", "notes.txt")

    def find(film: str, start_s: float | None, end_s: float | None = None) -> tuple[str, float | None] | None:
        return videos.find(Clip("id", film, start_s, end_s, ("x",), ""))

    assert find("cut", 30.0) == ("a/cut_000030.MP4", None)
    assert find("cut", 31.0) == ("cut.mp4", 31.0)
    assert find("kin", 5.0, 15.0) == ("b/kin_000005_000015.mkv", None)
    assert find("kin", 5.0, 16.0) is None
    assert find("whole", 7.5) == ("whole.webm", 7.5) and find("whole", None) == ("whole.webm", None)
    assert find("notes", None) is None
    with pytest.raises(VideoError, match="several videos are called whole"):
        touch(tmp_path, "other/whole.avi").find(Clip("id", "whole", 1.0, None, ("x",), ""))
    with pytest.raises(DataError, match="cannot read the folder"):
        Videos(tmp_path / "nothing")


def test_a_folder_of_classes_is_a_list(tmp_path: Path) -> None:
    videos = touch(tmp_path, "dog/001.mp4", "cat/001.mp4", "test/cat/x.mkv", "stray.mp4")
    found = list_folder(videos)
    assert {(clip.id, clip.labels, clip.split) for clip in found.clips} == {
        ("dog-001", ("dog",), ""),
        ("cat-001", ("cat",), ""),
        ("x", ("cat",), "test"),
    }
    assert {videos.find(clip) for clip in found.clips} == {
        ("dog/001.mp4", None),
        ("cat/001.mp4", None),
        ("test/cat/x.mkv", None),
    }
    assert [problem.reason for problem in found.problems] == ["stray.mp4 does not lie in a folder of its class"]


def test_labels_become_mids_without_commas_and_are_read_back(tmp_path: Path) -> None:
    labels = labels_of(("dog", "female speech, woman speaking"))
    assert labels.mids == ("dog", "female_speech_woman_speaking")
    (tmp_path / "labels.csv").write_text(label_text(labels))
    assert read_labels(tmp_path / "labels.csv") == labels
    with pytest.raises(DataError, match="a_b"):
        labels_of(("a b", "a, b"))


def test_labels_of_a_checkpoint_are_found_by_mid_or_name(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("id,label\nx,/m/1\ny,Rain\nz,Snow\n")
    found = with_labels(read_list(tmp_path / "list.csv"), Labels(("/m/0", "/m/1"), ("Rain", "Dog")))
    assert [(clip.id, clip.labels) for clip in found.clips] == [("x", ("/m/1",)), ("y", ("/m/0",))]
    assert [(problem.id, problem.reason) for problem in found.problems] == [
        ("z", "label Snow names no single class of the label csv")
    ]


def test_a_name_that_several_classes_share_names_none(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("id,label\nx,crow\ny,/m/a\nz,dog\n")
    found = with_labels(read_list(tmp_path / "list.csv"), Labels(("/m/a", "/m/b", "/m/c"), ("crow", "crow", "dog")))
    assert [(clip.id, clip.labels) for clip in found.clips] == [("y", ("/m/a",)), ("z", ("/m/c",))]
    assert [(problem.id, problem.kind) for problem in found.problems] == [("x", "unusable")]


@pytest.mark.parametrize(
    "count, frames, places",
    [(300, 10, (0, 29, 59, 89, 119, 149, 179, 209, 239, 269)), (3, 10, (0, 0, 0, 0, 0, 0, 0, 1, 1, 1)), (5, 1, (0,))],
)
def test_places_are_those_of_the_released_reader(count: int, frames: int, places: tuple[int, ...]) -> None:
    assert even_places(count, frames) == places


def test_a_process_that_hangs_or_crashes_costs_its_own_job() -> None:
    began_s = time.monotonic()
    waits = [0.0, 60.0, 0.01, 0.02]
    slept = dict(Decoders(time.sleep, 2, 1.5).run(iter(waits)))
    assert slept == {0.0: None, 60.0: Died("took longer than 1.5 s"), 0.01: None, 0.02: None}
    assert time.monotonic() - began_s < 20
    (crashed,) = Decoders(signal.raise_signal, 1, 9.0).run(iter([signal.SIGSEGV]))
    assert crashed[1] == Died("the decoder crashed (SIGSEGV)")
    with pytest.raises(DataError, match=r"could not start .exit code 3"):
        list(Decoders(os._exit, 1, 9.0).run(iter([3, 4])))


def test_jobs_are_taken_as_processes_become_free() -> None:
    taken: list[float] = []

    def jobs() -> object:
        for _ in range(50):
            taken.append(0.0)
            yield 0.0

    running = Decoders(time.sleep, 2, 9.0).run(jobs())  # type: ignore[arg-type]
    next(running)
    assert len(taken) == 2
    running.close()
    assert len(taken) == 2
