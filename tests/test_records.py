"""Records: written whole or not at all, read back exactly, and named when they are damaged."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from report_records import record

from mmbench.files import RecordError, write_atomic
from mmbench.records import MARKER, RECORD, find_records, is_done, load_record, save_record


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    saved = record("lora-qv")
    save_record(saved, tmp_path)
    assert load_record(tmp_path / RECORD) == saved
    assert is_done(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {RECORD, MARKER}


def test_the_schema_version_comes_first(tmp_path: Path) -> None:
    save_record(record("lora-qv"), tmp_path)
    assert next(iter(json.loads((tmp_path / RECORD).read_text()))) == "schema_version"


@pytest.mark.parametrize("name", [RECORD, MARKER])
def test_a_record_without_its_marker_or_a_marker_without_its_record_is_not_done(tmp_path: Path, name: str) -> None:
    save_record(record("lora-qv"), tmp_path)
    (tmp_path / name).unlink()
    assert not is_done(tmp_path)


def test_only_finished_trials_are_found(tmp_path: Path) -> None:
    for name in ("b-done", "a-done", "cut"):
        (tmp_path / "trials" / name).mkdir(parents=True)
        save_record(record("lora-qv"), tmp_path / "trials" / name)
    (tmp_path / "trials" / "cut" / MARKER).unlink()
    (tmp_path / "trials" / "empty").mkdir()
    assert [path.parent.name for path in find_records(tmp_path)] == ["a-done", "b-done"]


@pytest.mark.parametrize(
    "damage",
    ["", "{", "[]", "null", "3", '{"schema_version": 1}', '{"schema_version": 1, "status": "fine"}', "\x00\x01"],
)
def test_a_damaged_record_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / RECORD
    path.write_text(damage)
    with pytest.raises(RecordError, match="is damaged or not a record") as caught:
        load_record(path)
    assert str(path) in str(caught.value)


def test_a_cut_record_and_one_with_an_unknown_field_are_damaged(tmp_path: Path) -> None:
    save_record(record("lora-qv"), tmp_path)
    whole = (tmp_path / RECORD).read_text()
    for text in (whole[: len(whole) // 2], whole.replace('"status"', '"state"', 1), whole.encode().hex()):
        (tmp_path / RECORD).write_text(text)
        with pytest.raises(RecordError, match="damaged"):
            load_record(tmp_path / RECORD)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "9" * 30])
@pytest.mark.parametrize("key", ["seed", "n", "epochs"])
def test_numbers_that_no_later_step_could_take_are_damage(tmp_path: Path, key: str, number: str) -> None:
    save_record(record("lora-qv"), tmp_path)
    whole = (tmp_path / RECORD).read_text()
    text = re.sub(rf'"{key}": ?[\d.]+', f'"{key}": {number}', whole, count=1)
    assert text != whole
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(RecordError, match="damaged"):
        load_record(tmp_path / RECORD)


def test_a_record_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"cannot read record .*nothing\.json: No such file"):
        load_record(tmp_path / "nothing.json")


@pytest.mark.parametrize("version", [0, 3, 99, None, "1"])
def test_another_schema_says_to_update(tmp_path: Path, version: object) -> None:
    save_record(record("lora-qv"), tmp_path)
    content = json.loads((tmp_path / RECORD).read_text())
    content["schema_version"] = version
    (tmp_path / RECORD).write_text(json.dumps(content))
    with pytest.raises(RecordError, match="update mmbench"):
        load_record(tmp_path / RECORD)


def test_a_record_of_the_first_schema_still_reads(tmp_path: Path) -> None:
    save_record(record("lora-qv"), tmp_path)
    content = json.loads((tmp_path / RECORD).read_text())
    del content["online"], content["trial"]["strategies"]
    for score in content["scores"]:
        del score["stream"], score["update"]
    (tmp_path / RECORD).write_text(json.dumps({**content, "schema_version": 1}))
    assert load_record(tmp_path / RECORD) == record("lora-qv")


def test_a_write_replaces_the_old_file_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


FULL = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
from mmbench.records import RecordError, write_atomic
try:
    write_atomic(Path(sys.argv[1]), b"x" * 5000)
except RecordError as error:
    print(error)
"""


def test_a_full_disk_leaves_the_old_file_and_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    found = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True)
    assert f"cannot write {path}: File too large" in found.stdout
    assert "free some space" in found.stdout
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "folder").touch()
    with pytest.raises(RecordError, match="cannot write"):
        write_atomic(tmp_path / "folder" / "file", b"x")
