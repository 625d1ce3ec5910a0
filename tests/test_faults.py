"""Faults that long runs meet, done for real: nothing finished is lost, the cause is named, the same command goes on."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from PIL import Image

from mmbench import logs
from mmbench.bench import EventLog
from mmbench.claims import CLAIM
from mmbench.config import DataConfig
from mmbench.data.embedded import SyntheticSource
from mmbench.data.folders import folder_pairs
from mmbench.data.store import Store, build_store, open_store
from mmbench.errors import DataError, StoreError
from mmbench.files import WriteError
from mmbench.layout import PREDICTIONS, STATES
from mmbench.logs import bounded_stderr, shorten
from mmbench.records import MARKER, RECORD, is_done, load_record
from mmbench.registry import ROOT
from mmbench.run import run_trial
from mmbench.suite_file import parse_suite
from mmbench.sweep import SweepOptions, plan, run_suite

CPU = torch.device("cpu")
SUITE: dict[str, Any] = {
    "name": "tiny",
    "methods": ["lora-qv"],
    "regimes": ["clean"],
    "cases": ["complete"],
    "seeds": [0],
    "datasets": [{"name": "synthetic-av", "samples": 60}],
    "backbones": [{"name": "cavmae-tiny", "epochs": 1}],
    "budget": {"samples": 10, "tuning_trials": 1, "batch_size": 10},
}
PAGE = os.sysconf("SC_PAGE_SIZE")


def one_trial(out: Path, **changes: object) -> Path:
    """A trial's folder with its spec, ready to be run in this process."""
    ((trial, folder),) = plan(parse_suite({**SUITE, **changes}), out, CPU, lambda event: None)
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(trial.model_dump_json())
    return folder


@pytest.fixture(scope="module")
def finished(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trial that ended well; tests take copies of it."""
    folder = one_trial(tmp_path_factory.mktemp("finished"))
    assert run_trial(folder, CPU) == "ok"
    return folder


@pytest.fixture
def trial(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "trial"))


def sweep(suite: dict[str, Any], out: Path) -> Counter[str]:
    """How many trials ended in which way, after a sweep of this process."""
    result = run_suite(parse_suite(suite), out, SweepOptions(CPU, 1))
    assert result.left == 0
    return result.statuses


def start(suite: dict[str, Any], out: Path) -> subprocess.CompletedProcess[str]:
    """The command line as a user starts it, to its end."""
    path = out.parent.parent / "tiny.yaml"
    path.write_text(yaml.safe_dump(suite))
    command = [sys.executable, str(ROOT / "mmbench" / "__main__.py"), "run", str(path), "--out", str(out), "--quiet"]
    command += ["--workers", "1", "--device", "cpu"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)


class Disk:
    """A file system of its own in memory, of a few megabytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
        )
        if made.returncode != 0:
            pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")

    def leave(self, size_bytes: int) -> None:
        """Fill it up but for so much."""
        found = os.statvfs(self.folder)
        (self.folder / "filler").write_bytes(bytes(max(0, found.f_bavail * found.f_frsize - size_bytes)))

    def free(self) -> None:
        (self.folder / "filler").unlink()

    def make(self, how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path / "disk")
    yield made
    subprocess.run(["umount", "--lazy", str(made.folder)], check=True)


def pages(path: Path) -> int:
    return -(-path.stat().st_size // PAGE)


# Full and read-only disks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [PREDICTIONS, STATES, RECORD])
def test_a_disk_that_fills_while_a_file_is_written_loses_nothing(finished: Path, disk: Disk, name: str) -> None:
    """Room is left for what is written before the file, and for half of it."""
    folder = disk.folder / "trial"
    folder.mkdir()
    shutil.copy(finished / "spec.json", folder)
    order = (PREDICTIONS, STATES, RECORD)
    before = sum(pages(finished / other) for other in order[: order.index(name)])
    half = pages(finished / name) // 2
    disk.leave((before + half + 2) * PAGE)  # the claim and the events take a page each
    with pytest.raises(WriteError, match=rf"cannot write .*{re.escape(name)}: .*No space left.*; free some space"):
        run_trial(folder, CPU)
    assert not is_done(folder)
    assert not {path.name for path in folder.iterdir()} - {"spec.json", "events.jsonl", *order[: order.index(name)]}
    disk.free()
    assert run_trial(folder, CPU) == "ok" and is_done(folder)


@pytest.mark.slow
def test_a_full_disk_ends_the_sweep_and_the_same_command_goes_on(cache: Path, disk: Disk) -> None:
    out = disk.folder / "out"
    assert sweep(SUITE, out) == {"ok": 1}
    (first,) = out.glob("trials/*")
    written = (first / RECORD).stat().st_mtime_ns
    more = {**SUITE, "seeds": [0, 1, 2]}
    disk.leave(pages(first / PREDICTIONS) // 2 * PAGE + 8 * PAGE)
    ended = start(more, out)
    assert ended.returncode == 2, ended.stderr
    assert re.search(r"error: trial lora-qv-clean-s1-\w+ was stopped: .*the same command goes on", ended.stderr)
    assert "free some space" in ended.stderr and "Traceback" not in ended.stderr
    disk.free()
    assert sweep(more, out) == {"ok": 3}
    assert (first / RECORD).stat().st_mtime_ns == written
    assert not list(out.glob(f"trials/*/{CLAIM}")) and not list(out.glob("trials/*/.*"))


@pytest.mark.slow
def test_a_read_only_folder_is_named_at_once_and_its_results_stay(cache: Path, disk: Disk) -> None:
    out = disk.folder / "out"
    assert sweep(SUITE, out) == {"ok": 1}
    disk.make("ro")
    ended = start({**SUITE, "seeds": [0, 1]}, out)
    assert ended.returncode == 2
    assert re.search(rf"error: cannot write {out}.*: Read-only file system; .*choose another folder", ended.stderr)
    disk.make("rw")
    assert sweep({**SUITE, "seeds": [0, 1]}, out) == {"ok": 2}


def test_a_store_without_room_names_the_way_out_and_is_built_later(disk: Disk) -> None:
    disk.leave(20 * PAGE)
    stores = disk.folder / "stores"
    with pytest.raises(DataError, match=r"cannot write the store .*No space left.*MMBENCH_CACHE"):
        build_store(SyntheticSource(40, 0), 64, 32, stores)
    assert [path for path in stores.iterdir() if path.is_dir()] == []
    disk.free()
    assert len(build_store(SyntheticSource(40, 0), 64, 32, stores)) == 40


def test_an_event_that_finds_no_room_does_not_end_the_trial(disk: Disk) -> None:
    log = EventLog(disk.folder / "events.jsonl")
    log(event="one")
    disk.leave(0)
    for _ in range(100):
        log(event="lost", text="x" * 100)
    disk.free()
    log(event="last")
    lines = (disk.folder / "events.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["event"] == "one" and "last" in lines[-1]


# Half of a record -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["cut", "empty", "no record", "no marker", "another's marker"])
def test_half_of_a_record_runs_again(trial: Path, broken: str) -> None:
    scores, whole = load_record(trial / RECORD).scores, (trial / RECORD).read_bytes()
    if broken in ("cut", "empty"):
        (trial / RECORD).write_bytes(whole[: len(whole) // 2] if broken == "cut" else b"")
    elif broken == "another's marker":
        (trial / MARKER).write_text("0" * 64)
    else:
        (trial / (RECORD if broken == "no record" else MARKER)).unlink()
    assert not is_done(trial)
    assert run_trial(trial, CPU) == "ok" and load_record(trial / RECORD).scores == scores


def test_remains_of_killed_writers_are_swept_away_and_nothing_else(trial: Path) -> None:
    remains = [f".{name}.0123abcd" for name in (RECORD, MARKER, PREDICTIONS, STATES)]
    kept = [".spec.json.0123abcd", ".trial.json.backup-of-mine", "notes.txt"]
    for name in (*remains, *kept):
        (trial / name).write_text("half")
    (trial / MARKER).unlink()
    assert run_trial(trial, CPU) == "ok"
    left = {path.name for path in trial.iterdir()}
    assert not left & set(remains) and set(kept) <= left


def test_a_run_that_crashes_has_no_predictions_of_the_run_before(trial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (trial / MARKER).unlink()
    monkeypatch.setattr("mmbench.run.data_facts", lambda *_: 1 // 0)
    assert run_trial(trial, CPU) == "crashed"
    assert not (trial / PREDICTIONS).exists() and not (trial / STATES).exists()


# Stores -----------------------------------------------------------------------------------------------------------


def change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["wave.npy", "fbank.npy", "image.npy"])
def test_a_changed_store_stops_a_trial_before_it_trains(trial: Path, tmp_path: Path, name: str) -> None:
    """It leaves no record, and runs once the store is whole again."""
    spec = json.loads((trial / "spec.json").read_text())
    store = Path(shutil.copytree(spec["store_folder"], tmp_path / "store"))
    (trial / "spec.json").write_text(json.dumps({**spec, "store_folder": str(store)}))
    for other in (RECORD, MARKER, PREDICTIONS, STATES):
        (trial / other).unlink()
    change_a_byte(store / name)
    with pytest.raises(StoreError, match=rf"{name} has changed since it was written; delete its folder to rebuild"):
        run_trial(trial, CPU)
    assert {path.name for path in trial.iterdir()} == {"spec.json", "events.jsonl"}
    assert "epoch" not in (trial / "events.jsonl").read_text()
    change_a_byte(store / name)
    if name == "fbank.npy":
        assert run_trial(trial, CPU) == "ok"


def test_a_store_is_read_whole_only_after_its_files_were_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = build_store(SyntheticSource(20, 0), 64, 32, tmp_path)
    looks: list[Path] = []
    whole = Store.verify
    monkeypatch.setattr(Store, "verify", lambda self: (looks.append(self.folder), whole(self)))
    open_store(store.folder)
    assert looks == []
    os.utime(store.folder / "wave.npy", ns=(1, 1))
    for _ in range(3):
        open_store(store.folder)
    assert len(looks) == 1  # and the seal is renewed
    (store.folder / "seal.json").write_text("[" * 5000)
    open_store(store.folder)
    assert len(looks) == 2


@pytest.mark.slow
def test_a_changed_store_stops_the_sweep_at_the_door(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "x").mkdir()
    out = tmp_path / "x" / "out"
    assert sweep({**SUITE, "methods": ["source"]}, out) == {"ok": 1}
    (fbank,) = (tmp_path / "cache" / "stores").glob("*/fbank.npy")
    change_a_byte(fbank)
    ended = start(SUITE, out)
    assert ended.returncode == 2 and f"{fbank} has changed" in ended.stderr
    assert sum(is_done(folder) for folder in out.glob("trials/*")) == 1


# Files that hang --------------------------------------------------------------------------------------------------


def pairs(root: Path) -> DataConfig:
    """Two classes of two pairs."""
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        for kind in ("Dataset_v3_sound", "Dataset_v3_vision"):
            (root / kind / label).mkdir(parents=True)
        for stem in ("a", "b"):
            soundfile.write(root / "Dataset_v3_sound" / label / f"{stem}.wav", rng.uniform(-0.1, 0.1, 8000), 16000)
            picture = Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8))
            picture.save(root / "Dataset_v3_vision" / label / f"{stem}.png")
    return DataConfig(name="folder-pairs", root=root)


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Opening a pipe that nobody writes to waits for ever; this ends the wait."""
    old = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


@pytest.mark.parametrize("name", ["Dataset_v3_sound/dog/b.wav", "Dataset_v3_vision/cat/a.png"])
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_pipe_in_place_of_a_file_is_refused_with_its_name(tmp_path: Path, name: str, on_error: str) -> None:
    config = pairs(tmp_path / "data")
    (tmp_path / "data" / name).unlink()
    os.mkfifo(tmp_path / "data" / name)
    with within(60):
        if on_error == "raise":
            with pytest.raises(DataError, match=rf"{name}: not a regular file"):
                build_store(folder_pairs(config), 64, 32, tmp_path / "cache", on_error)
            return
        store = build_store(folder_pairs(config), 64, 32, tmp_path / "cache", on_error)
    assert len(store) == 3 and [(entry.path, entry.reason) for entry in store.skipped] == [(name, "not a regular file")]


# Memory -----------------------------------------------------------------------------------------------------------

GREEDY = """
import os, resource, torch
from mmbench.method import Method
from mmbench.registry import method

@method("greedy", title="T", family="f", reference="r", year=2026, memory="M0")
class Greedy(Method):
    def build(self, rng):
        used = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, resource.RLIM_INFINITY))
        torch.zeros(2**30)  # four times what is left
"""


@pytest.mark.slow
def test_a_trial_without_memory_ends_alone(use_plugin: Callable[[str], Path], cache: Path, tmp_path: Path) -> None:
    use_plugin(GREEDY)
    assert sweep({**SUITE, "methods": ["greedy", "source"]}, tmp_path / "out") == {"does-not-fit": 1, "ok": 1}


# Logs -------------------------------------------------------------------------------------------------------------


def test_a_log_keeps_its_beginning_and_its_end_in_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = [f"line {number:06d}" for number in range(10_000)]
    path.write_text("\n".join(lines) + "\n")
    shorten(path, 10_000, "[cut]")
    kept = path.read_text().splitlines()
    place = kept.index("[cut]")
    assert path.stat().st_size <= 5_010
    assert kept[:place] == lines[:place] and kept[place + 1 :] == lines[-(len(kept) - place - 1) :]
    assert place > 150 and len(kept) - place > 150
    before = path.read_bytes()
    shorten(path, 10_000, "[cut]")
    assert path.read_bytes() == before


def test_a_line_without_end_is_cut_too(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 100_000)
    shorten(path, 10_000, "[cut]")
    assert path.stat().st_size < 6_000 and b"\n[cut]\n" in path.read_bytes()


def test_events_without_end_stay_bounded_and_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmbench.bench.EVENTS_BYTES", 20_000)
    log = EventLog(tmp_path / "events.jsonl")
    for number in range(2_000):
        log(event="epoch", number=number)
        assert (tmp_path / "events.jsonl").stat().st_size <= 20_000
    rows = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert rows[0]["number"] == 0 and rows[-1]["number"] == 1999 and {"epoch", "left-out"} == {r["event"] for r in rows}


CHATTY = """
import os, sys, time
from pathlib import Path
from mmbench import logs
logs.LOOK_SECONDS = 0.01
print("begin", file=sys.stderr, flush=True)
with logs.bounded_stderr(Path(sys.argv[1]), 100_000):
    for number in range(4000):
        print("x" * 1000, file=sys.stderr, flush=True)
        if number % 40 == 0:
            time.sleep(0.01)
            print(os.path.getsize(sys.argv[1]))
    os.system("echo from a child >&2")
    print("end", file=sys.stderr, flush=True)
"""


def test_what_a_worker_says_without_end_stays_bounded(tmp_path: Path) -> None:
    path = tmp_path / "stderr.txt"
    with path.open("wb") as stderr:
        said = subprocess.run(
            [sys.executable, "-c", CHATTY, str(path)], stderr=stderr, stdout=subprocess.PIPE, text=True, check=True
        )
    assert max(map(int, said.stdout.split())) < 1_500_000  # of four million
    content = path.read_bytes()
    assert len(content) <= 100_000 and b"\0" not in content
    assert content.startswith(b"begin\n") and content.endswith(b"from a child\nend\n") and b"[lines are left" in content


def test_stderr_that_goes_elsewhere_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "stderr.txt"
    path.write_bytes(b"x" * 1_000)
    with bounded_stderr(path, 100):
        time.sleep(2 * logs.LOOK_SECONDS / 10)
    assert path.stat().st_size == 1_000


# Everything at once -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(sys.platform != "linux", reason="the soak looks into /proc")
def test_a_soak_with_random_kills_ends_complete(cache: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(Path(__file__).parents[1] / "scripts" / "soak.py"), "--trials", "10"]
    ended = subprocess.run(
        [*command, "--every", "2", "--out", str(tmp_path / "soak")], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "10 trials" in ended.stdout and "FAIL" not in ended.stdout
    killed = re.findall(r"(\d+) x (?:worker|template|sweep)", ended.stdout)
    assert sum(map(int, killed)) >= 1
