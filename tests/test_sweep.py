"""Sweeps: nothing finished is redone, nothing runs twice, and whatever ends them leaves no half record."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mmbench import dispatch
from mmbench.claims import CLAIM, is_claimed
from mmbench.config import Suite
from mmbench.costs import collect_costs
from mmbench.dispatch import Dispatcher, Event
from mmbench.errors import ConfigError
from mmbench.evaluate import score_all
from mmbench.executors import local
from mmbench.executors.base import INTERRUPTED, Finished
from mmbench.executors.choose import Choice, make_executor
from mmbench.executors.local import Slot, local_slots
from mmbench.files import RecordError
from mmbench.layout import PREDICTIONS
from mmbench.outputs import load_states
from mmbench.records import MARKER, RECORD, load_record
from mmbench.registry import ROOT
from mmbench.resume import PROGRESS, Interrupted
from mmbench.run import run_trial
from mmbench.suite_file import parse_suite
from mmbench.sweep import SweepOptions, plan, run_suite
from mmbench.trials import read_trial

CPU = torch.device("cpu")
SUITE = {
    "name": "tiny",
    "methods": ["logged"],
    "regimes": ["clean"],
    "cases": ["complete", "missing-audio"],
    "seeds": [0, 1],
    "datasets": [{"name": "synthetic-av", "samples": 60}],
    "backbones": [{"name": "cavmae-tiny", "epochs": 1}],
    "budget": {"samples": 20, "tuning_trials": 1, "batch_size": 10},
}
HEAD = """
import os, sys, time
from pathlib import Path
from mmbench.method import Method
from mmbench.registry import method

@method("logged", title="T", family="f", reference="r", year=2026, memory="M0", options={"seconds": 0.0, "end": ""})
class Logged(Method):
    def build(self, rng):
        with open(os.environ["RUN_LOG"], "a") as log:
            log.write(Path(sys.argv[-3]).name + "\\n")
        if self.options["end"] == "exit":
            os._exit(3)
        if self.options["end"] == "kill":
            os.kill(os.getpid(), 9)

    def after_backward(self, step, steps):
        time.sleep(self.options["seconds"])
"""


@pytest.fixture
def log(use_plugin: Callable[[str], Path], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where each worker leaves a line with its trial; the plugin is registered too."""
    use_plugin(HEAD)
    monkeypatch.setenv("RUN_LOG", str(tmp_path / "log"))
    (tmp_path / "log").touch()
    return tmp_path / "log"


def suite(**changes: object) -> Suite:
    return parse_suite({**SUITE, **changes})


def slow_method(seconds: float, **options: object) -> list[dict[str, object]]:
    return [{"name": "logged", "options": {"seconds": seconds, **options}}]


def start(out: Path, seconds: float, workers: int = 1) -> subprocess.Popen[bytes]:
    """The command line as a user starts it."""
    path = out.parent / "tiny.yaml"
    path.write_text(yaml.safe_dump({**SUITE, "methods": slow_method(seconds)}))
    command = [sys.executable, str(ROOT / "mmbench" / "__main__.py"), "run", str(path), "--out", str(out), "--quiet"]
    command += ["--workers", str(workers), "--device", "cpu", "--plugin", str(out.parent / "plugin.py")]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait_for(condition: Callable[[], object], seconds: float = 400.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def done(out: Path) -> dict[str, int]:
    """Finished trials and when their records were written."""
    return {path.parent.name: (path.parent / RECORD).stat().st_mtime_ns for path in out.glob(f"trials/*/{MARKER}")}


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] not in ("Z", "X")


@pytest.mark.slow
def test_a_killed_run_resumes_and_redoes_nothing(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(out, seconds=0.5)
    wait_for(lambda: done(out) and len(log.read_text().split()) == 2)
    templates = children(process.pid)
    workers = [worker for pid in templates for worker in children(pid)]
    assert workers
    process.kill()
    for pid in (*workers, *templates):  # a worker that is left alone would finish its trial
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()
    first = done(out)
    assert len(first) == 1
    again = start(out, seconds=0.5)
    _, errors = again.communicate(timeout=400)
    assert again.returncode == 0, errors.decode()
    assert len(done(out)) == 2
    assert {name: when for name, when in done(out).items() if name in first} == first
    starts = Counter(log.read_text().split())
    assert {name: starts[name] for name in done(out)} == {name: 1 if name in first else 2 for name in done(out)}
    assert not list(out.glob(f"trials/*/{CLAIM}"))


@pytest.mark.slow
def test_two_sweeps_on_one_folder_share_the_work(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sweeps = [start(out, seconds=0.2) for _ in range(2)]
    for sweep in sweeps:
        _, errors = sweep.communicate(timeout=400)
        assert sweep.returncode == 0, errors.decode()
    assert len(done(out)) == 2
    assert set(Counter(log.read_text().split()).values()) == {1}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_so_and_takes_its_workers_along(log: Path, tmp_path: Path, number: int) -> None:
    out = tmp_path / "out"
    process = start(out, seconds=30.0)
    wait_for(lambda: log.read_text())
    workers = children(process.pid)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors.decode()
    assert b"the same command resumes" in errors
    assert workers and not any(alive(pid) for pid in workers)
    assert done(out) == {}
    assert not list(out.glob(f"trials/*/{RECORD}")) and not list(out.glob(f"trials/*/{CLAIM}"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "starts", "message"), [("exit", 1, "exit code 3"), ("kill", 2, r"killed by signal 9 \(out of host memory")]
)
def test_a_worker_that_dies_ends_its_trial_only(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, starts: int, message: str
) -> None:
    events: list[Event] = []
    methods = [*slow_method(0.0, end=end), "source"]
    result = run_suite(suite(methods=methods, seeds=[0]), tmp_path / "out", SweepOptions(CPU, 2), events.append)
    assert result.statuses == {"crashed": 1, "ok": 1} and result.failed == 1 and result.left == 0
    assert len(log.read_text().split()) == starts
    (record,) = [r for r in map(load_record, tmp_path.glob(f"out/trials/*/{RECORD}")) if r.status == "crashed"]
    assert record.failure is not None and re.search(message, record.failure.message)
    assert record.trial.method == "logged"


class Preempting:
    """Ends the only trial's worker by SIGTERM some times, each time after it has kept its progress."""

    def __init__(self, times: int, keeps: bool) -> None:
        self.left, self.keeps, self.starts = times, keeps, 0
        self._now: list[Path] = []

    def has_room(self) -> bool:
        return not self._now

    def running(self) -> tuple[Path, ...]:
        return tuple(self._now)

    def submit(self, folder: Path) -> None:
        self.starts += 1
        self._now = [folder]

    def collect(self) -> list[Finished]:
        ended, self._now = self._now, []
        for folder in ended:
            if self.left:
                self.left -= 1
                if self.keeps:
                    (folder / PROGRESS).touch()
                    os.utime(folder / PROGRESS, (self.left, self.left))
            else:
                run_trial(folder, CPU)
        return [Finished(folder, INTERRUPTED, "") for folder in ended]

    def stop(self) -> None:
        pass


@pytest.mark.parametrize(("keeps", "starts", "status"), [(True, 6, "ok"), (False, 2, "crashed")])
def test_a_preempted_trial_is_started_as_long_as_it_gets_further(
    cache: Path, tmp_path: Path, keeps: bool, starts: int, status: str
) -> None:
    folder = one_trial(tmp_path / "out", methods=["source"])
    executor = Preempting(5, keeps)
    Dispatcher(executor, [folder], {}, lambda event: None).run(CPU, 0, 1)
    assert executor.starts == starts
    assert load_record(folder / RECORD).status == status


def test_trials_of_another_host_are_looked_at_seldom_and_taken_over_once_they_are_free(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = one_trial(tmp_path / "out", methods=["source"])
    claim = folder / CLAIM
    claim.write_text('{"token": "t", "host": "elsewhere", "pid": 5, "born": "1"}')
    looks: list[float] = []

    def look(place: Path) -> bool:
        looks.append(time.monotonic())
        if len(looks) == 3:
            claim.unlink()
        return is_claimed(place)

    monkeypatch.setattr(dispatch, "is_claimed", look)
    monkeypatch.setattr(dispatch, "LOOK_SECONDS", 0.5)
    Dispatcher(Preempting(0, False), [folder], {}, lambda event: None).run(CPU, 0, 1)
    assert load_record(folder / RECORD).status == "ok"
    assert looks[2] - looks[0] >= 1.0


def one_trial(out: Path, **changes: object) -> Path:
    """A trial's folder with its spec, ready to be run in this process."""
    ((trial, folder),) = plan(suite(seeds=[0], **changes), out, CPU, lambda event: None)
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(trial.model_dump_json())
    return folder


@pytest.fixture
def planned(cache: Path, tmp_path: Path) -> Path:
    return one_trial(tmp_path / "out", methods=["lora-qv"])


def test_the_same_spec_twice_gives_the_same_scores_and_state(planned: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(planned, other)
    assert run_trial(planned, CPU) == run_trial(other, CPU) == "ok"
    one, two = load_record(planned / RECORD), load_record(other / RECORD)
    assert one.scores == two.scores and len(one.scores) == 6
    states = load_states(planned)[""], load_states(other)[""]
    assert (
        all(torch.equal(states[0][name], states[1][name]) for name in states[0])
        and states[0].keys() == states[1].keys()
    )
    assert one.costs is not None and one.costs.samples_seen == 20
    seconds = one.costs.seconds
    parts = seconds.setup + seconds.data + seconds.train + seconds.tune + seconds.evaluate + seconds.log
    assert parts == pytest.approx(seconds.wall, rel=0.02)
    assert run_trial(planned, CPU) is None  # it is done


def test_a_damaged_spec_is_named(planned: Path) -> None:
    whole = (planned / "spec.json").read_text()
    for text in ("", whole[:100], whole.replace('"seed"', '"sed"', 1)):
        (planned / "spec.json").write_text(text)
        with pytest.raises(ConfigError, match=r"spec\.json is not a trial"):
            read_trial(planned)
    (planned / "spec.json").unlink()
    with pytest.raises(ConfigError, match=r"cannot read .*spec\.json: No such file"):
        run_trial(planned, CPU)


def test_a_failure_inside_a_trial_becomes_its_record(planned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("mmbench.run.save_predictions", fail)
    assert run_trial(planned, CPU) == "crashed"
    failure = load_record(planned / RECORD).failure
    assert failure is not None and "Input/output error" in failure.message and failure.traceback
    assert not (planned / CLAIM).exists()


@pytest.mark.parametrize("moment", ["mmbench.run.score_all", "mmbench.run.collect_costs"])
def test_a_trial_that_another_host_took_over_and_finished_is_left_to_it(
    planned: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    real = {"score_all": score_all, "collect_costs": collect_costs}[moment.rpartition(".")[2]]

    def sleep_long(*arguments: Any) -> Any:
        (planned / CLAIM).write_text('{"token": "another", "host": "elsewhere", "pid": 5, "born": "1"}')
        (planned / RECORD).write_bytes(b"theirs")
        (planned / PREDICTIONS).write_bytes(b"theirs")
        (planned / MARKER).write_text(hashlib.sha256(b"theirs").hexdigest())
        return real(*arguments)

    monkeypatch.setattr(moment, sleep_long)
    with pytest.raises(Interrupted):
        run_trial(planned, CPU)
    assert (planned / RECORD).read_bytes() == (planned / PREDICTIONS).read_bytes() == b"theirs"
    assert "elsewhere" in (planned / CLAIM).read_text()


def test_a_result_folder_that_is_a_file_is_a_clear_error(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RecordError, match=r"cannot write results to .*choose another folder with --out"):
            run_suite(suite(methods=["source"]), out, SweepOptions(CPU))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["missing-mode"], "tracks": ["blind"]}, "needs to be told 'avail', which none of blind offers"),
        (
            {"methods": ["prompt-zero"], "budget": {"samples": 20, "tuning_trials": 1, "train_head": False}},
            "trains the head only, which budget.train_head: false keeps frozen",
        ),
        (
            {"methods": ["prompt-attention"], "backbones": [{"name": "cavmae-tiny", "epochs": 1, "fusion": "none"}]},
            "need a fusion block",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_with_its_reason(
    cache: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    folder = one_trial(tmp_path / "out", **changes)
    assert run_trial(folder, CPU) == "refused"
    failure = load_record(folder / RECORD).failure
    assert failure is not None and message in failure.message and failure.traceback is None


def test_a_cap_no_sample_fits_is_recorded(cache: Path, tmp_path: Path) -> None:
    budget = {"samples": 20, "tuning_trials": 1, "memory_cap_gib": 1e-4}
    folder = one_trial(tmp_path / "out", methods=["full-finetune"], budget=budget)
    assert run_trial(folder, CPU) == "does-not-fit"
    failure = load_record(folder / RECORD).failure
    assert failure is not None and "one sample needs" in failure.message


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [("cuda:1", "2,3", "3"), ("cuda:0", "GPU-5f", "GPU-5f"), ("cuda", "2", "2"), ("cuda:1", None, "1")],
)
def test_a_gpu_is_counted_among_those_that_are_visible(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str, visible: str | None, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    slots: list[tuple[Slot, ...]] = []
    monkeypatch.setattr(local, "LocalExecutor", slots.append)
    make_executor(Choice(), None, torch.device(device), tmp_path)
    assert [slot.gpu for slot in slots[0]] == [expected]


def test_a_gpu_that_is_not_visible_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    with pytest.raises(ConfigError, match="no device 'cuda:5': 1 GPUs are visible"):
        make_executor(Choice(), None, torch.device("cuda:5"), tmp_path)


@pytest.mark.parametrize(
    ("device", "workers", "gpus", "cores", "expected"),
    [
        ("cpu", None, (), 2, [(None, 1), (None, 1)]),
        ("cpu", None, (), 16, [(None, 4)] * 4),
        ("cpu", 3, (), 2, [(None, 1)] * 3),
        ("cuda", None, ("0", "3"), 16, [("0", 8), ("3", 8)]),
        ("cuda", 3, ("0", "1"), 6, [("0", 2), ("1", 2), ("0", 2)]),
    ],
)
def test_slots_share_cores_and_gpus(
    device: str, workers: int | None, gpus: tuple[str, ...], cores: int, expected: list[tuple[str | None, int]]
) -> None:
    assert [(slot.gpu, slot.threads) for slot in local_slots(device, workers, gpus, cores)] == expected
