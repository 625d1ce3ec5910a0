"""An interrupted training ends as an uninterrupted one, bit for bit, and what cannot be trusted is not used."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from beds import COMPLETE, CPU, NO_AUDIO, Rows, build, equal, make_bench, make_job, memory_data

from mmbench import registry, resume
from mmbench.bench import Bench
from mmbench.conformance_bed import Bed
from mmbench.feed import seed_from
from mmbench.meter import Clock, EnergyMeter, PeakMeter
from mmbench.method import Method
from mmbench.outputs import load_states
from mmbench.plain import Tensors, is_plain, pack, unpack
from mmbench.records import MARKER, RECORD, TrialRecord, load_record
from mmbench.registry import ROOT
from mmbench.resume import ASIDE, PROGRESS, Interrupted, Keeper, Place
from mmbench.run import run_trial, sigterm_raises
from mmbench.strategy import Strategy
from mmbench.suite_file import parse_suite
from mmbench.sweep import plan
from mmbench.train import Fitted, Job, fit

SUITE: dict[str, Any] = {
    "name": "tiny",
    "regimes": ["mixed"],
    "cases": ["complete", "missing-audio"],
    "seeds": [0],
    "datasets": [{"name": "synthetic-av", "samples": 60}],
    "backbones": [{"name": "cavmae-tiny", "epochs": 1}],
    "budget": {"samples": 90, "tuning_trials": 2, "batch_size": 10},
}
SLOW_STEPS = """
import runpy, sys, time
from mmbench import resume, train
resume.EVERY_SECONDS, resume.WRITING_SHARE = 0.0, 1.0
step = train.fitting_step
train.fitting_step = lambda *arguments: (time.sleep(0.1), step(*arguments))[1]
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
DATA = memory_data()
KEYS = {"trial": "one", "code": "two"}


@dataclass
class Stopping(Keeper):
    """Is told to stop after so many steps, as by SIGTERM."""

    after: int = 0

    def offer(self, *arguments: Any) -> None:
        self.after -= 1
        self._asked = self.after == 0
        super().offer(*arguments)


def bench_with(keeper: Keeper, log: Rows | None = None, **budget: Any) -> Bench:
    plain = make_bench(log=log, **budget)
    keeper.log = plain.log
    keeper.meters["clock"] = plain.clock
    return Bench(CPU, plain.budget, plain.clock, plain.log, keeper)


def interrupted(
    made: Callable[[], tuple[Method, Job]], stops: list[int], path: Path, **budget: Any
) -> tuple[Any, Rows]:
    """The training in as many runs as there are stops, and one more; every run is a fresh method."""
    log = Rows()
    for after in stops:
        keeper = Stopping(path, KEYS, after=after)
        assert keeper.open() is None
        torch.manual_seed(seed_from("torch", 0))
        method, job = made()
        with pytest.raises(Interrupted):
            fit(method, DATA, job, bench_with(keeper, log, **budget))
    keeper = Keeper(path, KEYS)
    assert keeper.open() is None and keeper.place is not None
    method, job = made()
    torch.manual_seed(12345)  # the draws go on where they were, wherever the generator is now
    return fit(method, DATA, job, bench_with(keeper, log, **budget)), log


def compare(made: Callable[[], tuple[Method, Job]], stops: list[int], path: Path, **budget: Any) -> Fitted:
    """Train with and without interruptions; both must leave the same."""
    log = Rows()
    torch.manual_seed(seed_from("torch", 0))
    method, job = made()
    expected = fit(method, DATA, job, make_bench(log=log, **budget))
    found, again = interrupted(made, stops, path, **budget)
    assert found.kept().keys() == expected.kept().keys()
    assert all(equal(found.kept()[name], state) for name, state in expected.kept().items())
    one, other = expected.ledger, found.ledger
    assert (one.samples, one.micro_batch, one.optimizer_bytes) == (
        other.samples,
        other.micro_batch,
        other.optimizer_bytes,
    )
    assert one.times.samples == other.times.samples
    kinds = ("epoch", "router")
    assert [row for row in again.rows if row["event"] in kinds] == [row for row in log.rows if row["event"] in kinds]
    assert sum(row["event"] == "resumed" for row in again.rows) == len(stops)
    return found


@pytest.mark.parametrize("name", registry.strategies().names())
def test_every_strategy_goes_on_where_it_stood(name: str, tmp_path: Path) -> None:
    def made() -> tuple[Method, Job]:
        strategy: Strategy = registry.strategies().load(name)({})
        return build("full-finetune"), make_job(samples=40, strategies=(strategy,))

    compare(made, [2], tmp_path / PROGRESS)


@pytest.mark.parametrize("stops", [[1], [3], [6], [1, 1, 1, 2]])
@pytest.mark.parametrize("budget", [{}, {"precision": "bf16"}, {"views": 2}, {"optim": {"name": "sgd"}}])
def test_wherever_it_is_interrupted(stops: list[int], budget: dict[str, Any], tmp_path: Path) -> None:
    compare(lambda: (build("lora-all", {"dropout": 0.5}), make_job(samples=48)), stops, tmp_path / PROGRESS, **budget)


@pytest.mark.parametrize("stops", [[1], [2], [3], [4], [2, 1]])
def test_phases_and_cases_that_were_finished_are_not_trained_again(stops: list[int], tmp_path: Path) -> None:
    job = make_job(samples=32, cases=(COMPLETE, NO_AUDIO), casewise=True)
    compare(lambda: (build("lp-ft"), job), stops, tmp_path / PROGRESS)


def test_a_router_is_not_trained_again(tmp_path: Path) -> None:
    def made() -> tuple[Method, Job]:
        job = make_job(samples=40, cases=(COMPLETE, NO_AUDIO), casewise=True, blind="router", source=Bed().net())
        return build("linear-probe"), job

    found = compare(made, [3], tmp_path / PROGRESS)
    assert found.router is not None


def test_encoders_that_are_remembered_are_built_again_and_counted_once(tmp_path: Path) -> None:
    fitted, _ = interrupted(lambda: (build("linear-probe"), make_job(samples=60)), [5], tmp_path / PROGRESS, views=2)
    assert fitted.ledger.times.built == {"complete/0", "complete/1"}


def test_damaged_or_foreign_progress_is_put_aside_with_its_reason(tmp_path: Path) -> None:
    whole = kept(tmp_path / "whole")
    content = whole.read_bytes()
    middle = len(content) - 100
    damaged = [content[:-1], content[:50], b"", content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]]
    for number, bad in enumerate(damaged):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / PROGRESS).write_bytes(bad)
        keeper = Keeper(folder / PROGRESS, KEYS)
        assert "damaged" in (keeper.open() or "") and keeper.place is None and keeper.tried == []
        assert [path.name for path in folder.iterdir()] == [ASIDE]
    assert Keeper(whole, {**KEYS, "code": "other"}).open() == "its progress was made with another code"
    assert not whole.exists()


def kept(folder: Path) -> Path:
    """The file of a training that was interrupted."""
    folder.mkdir()
    keeper = Stopping(folder / PROGRESS, KEYS, after=2)
    keeper.tried.append({"lr": 0.1, "score": None, "samples": 3})
    with pytest.raises(Interrupted):
        fit(build("linear-probe"), DATA, make_job(), bench_with(keeper))
    return folder / PROGRESS


def test_progress_is_no_pickle_and_holds_what_was_tried(tmp_path: Path) -> None:
    keeper = Keeper(kept(tmp_path / "one"), KEYS)
    assert keeper.open() is None
    assert keeper.tried == [{"lr": 0.1, "score": None, "samples": 3}]
    assert keeper.take_up("tune-0") is None
    place = keeper.take_up("final")
    assert place is not None and (place.case, place.phase, place.steps) == ("", 0, 2)


def test_a_full_disk_is_told_once_and_the_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "EVERY_SECONDS", 0.0)
    log = Rows()
    keeper = Keeper(tmp_path / "no such folder" / PROGRESS, KEYS)
    found = fit(build("linear-probe"), DATA, make_job(samples=40), bench_with(keeper, log))
    assert equal(found.states[""], fit(build("linear-probe"), DATA, make_job(samples=40), make_bench()).states[""])
    assert sum(row["event"] == "not-kept" for row in log.rows) == 1


def test_short_trainings_write_nothing_and_long_ones_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    monkeypatch.setattr(resume, "save_kept", lambda content, keys, path: written.append(content["place"]["steps"]))
    fit(build("linear-probe"), DATA, make_job(samples=40), bench_with(Keeper(tmp_path / PROGRESS, KEYS)))
    assert written == []
    monkeypatch.setattr(resume, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(resume, "save_kept", lambda content, keys, path: (written.append(1), time.sleep(0.3)))
    fit(build("linear-probe"), DATA, make_job(samples=40), bench_with(Keeper(tmp_path / PROGRESS, KEYS)))
    assert written == [1]  # 0.3 s of writing ask for 6 s of training


@pytest.mark.parametrize("asked_while_writing", [False, True])
def test_what_a_trial_came_to_until_sigterm_is_kept_however_slow_the_disk(
    asked_while_writing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "STEP_SECONDS", 0.1)
    monkeypatch.setattr(resume, "EVERY_SECONDS", 0.0)
    save = resume.save_file

    def save_slowly(*arguments: Any, **named: Any) -> None:
        if asked_while_writing:
            os.kill(os.getpid(), signal.SIGTERM)
        save(*arguments, **named)
        time.sleep(0.5)

    monkeypatch.setattr(resume, "save_file", save_slowly)
    keeper = Keeper(tmp_path / PROGRESS, KEYS)
    with pytest.raises(Interrupted), keeper.steps():
        if not asked_while_writing:
            os.kill(os.getpid(), signal.SIGTERM)
        keeper.offer(lambda: Place("final", "", 0, 5, {}), {})
    again = Keeper(tmp_path / PROGRESS, KEYS)
    assert again.open() is None and again.place is not None and again.place.steps == 5


def test_a_sigterm_that_comes_twice_at_once_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "REPEAT_SECONDS", 0.5)
    keeper = Keeper(tmp_path / PROGRESS, KEYS)
    with pytest.raises(Interrupted), keeper.steps():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        keeper.offer(lambda: Place("final", "", 0, 5, {}), {})
    assert (tmp_path / PROGRESS).exists()
    with pytest.raises(Interrupted), Keeper(tmp_path / PROGRESS, KEYS).steps():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.6)
        os.kill(os.getpid(), signal.SIGTERM)  # someone is impatient
        pytest.fail("it waited on")


def test_leaving_is_not_broken_off_by_another_sigterm() -> None:
    left = []
    with pytest.raises(Interrupted), sigterm_raises(Interrupted):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            left.append(True)
    assert left


def test_a_step_that_does_not_end_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "STEP_SECONDS", 0.1)
    with pytest.raises(Interrupted), Keeper(tmp_path / PROGRESS, KEYS).steps():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)


def test_costs_go_on_from_those_of_the_run_before() -> None:
    ticks = itertools.count(step=1.0)
    clock = Clock(CPU, lambda: next(ticks))
    with clock.phase("train"):
        pass
    before = clock.state_dict()
    after = Clock(CPU, lambda: next(ticks))
    after.load_state_dict(before)
    with after.phase("train"):
        pass
    assert after.seconds("train") == 2 * before["train"] == 2.0
    summary = after.summary()
    assert summary.wall > sum(before.values())
    assert summary.setup + summary.train == pytest.approx(summary.wall, abs=1.0)  # a tick between the two looks
    peaks = PeakMeter(CPU)
    peaks.load_state_dict({"allocated_bytes": None, "reserved_bytes": None, "rss_bytes": 2**50})
    assert peaks.read().rss_bytes in (2**50, None)
    peaks.reset()
    assert (peaks.read().rss_bytes or 0) < 2**50
    energy = EnergyMeter(CPU)
    energy.load_state_dict({"joules": 5.0})
    assert energy.read() is None


def test_plain_data_survives_with_types_strides_and_shared_storage() -> None:
    base = torch.arange(12, dtype=torch.bfloat16).reshape(3, 4)
    value = {"a": [1, 2.5, None, True, "x"], 3: (base.T, base[1], base), "e": torch.empty(0), "n": torch.tensor(7)}
    tensors = Tensors()
    text = json.dumps(pack(value, tensors))
    storages = [tensor.untyped_storage().data_ptr() for tensor in tensors.named.values() if tensor.numel()]
    assert len(set(storages)) == len(storages)
    found = unpack(json.loads(text), tensors.named, CPU)
    assert found["a"] == value["a"] and isinstance(found[3], tuple)
    for one, other in zip(found[3], (base.T, base[1], base), strict=True):
        assert torch.equal(one, other) and one.stride() == other.stride() and one.dtype == other.dtype
    assert found["n"].shape == () and found["e"].shape == (0,)
    assert not is_plain([object()]) and not is_plain(torch.nn.Parameter(base)) and is_plain(value)
    with pytest.raises(TypeError, match="set is no plain data"):
        pack({1}, Tensors())


def start(folder: Path) -> subprocess.Popen[bytes]:
    """A trial as a sweep starts it, but with slow steps and progress written after each of them."""
    command = [sys.executable, "-c", SLOW_STEPS, str(ROOT / "mmbench" / "__main__.py"), "trial", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*command, "--device", "cpu"],
        env=environment,
        cwd=folder,  # `-c` puts it first on the path, where no other copy of the package may lie
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def ended(process: subprocess.Popen[bytes]) -> int:
    output, _ = process.communicate(timeout=300)
    assert process.returncode in (0, 130, -9), output.decode()
    return process.returncode


def stop_at_work(folder: Path, number: int, rng: random.Random) -> None:
    """Start the trial and send it a signal at some moment of its trainings."""
    before = (folder / PROGRESS).stat().st_mtime_ns if (folder / PROGRESS).exists() else 0
    process = start(folder)
    while process.poll() is None:
        if (folder / PROGRESS).exists() and (folder / PROGRESS).stat().st_mtime_ns > before:
            time.sleep(rng.uniform(0.0, 0.6))
            process.send_signal(number)
            break
        time.sleep(0.01)
    assert ended(process) == (130 if number == signal.SIGTERM else -9)
    assert (folder / PROGRESS).exists() and not (folder / RECORD).exists()


def numbers(record: TrialRecord) -> dict[str, object]:
    """What two runs of one trial must agree in."""
    assert record.status == "ok" and record.costs is not None, record.failure
    costs = record.costs
    counted = (costs.steps, costs.samples_seen, costs.micro_batch, costs.training_state, costs.stored_bytes)
    return {
        "scores": record.scores,
        "lr": record.lr,
        "tuning": record.tuning,
        "counted": counted,
        "facts": record.trial,
    }


ROWS: dict[str, dict[str, Any]] = {
    "full": {"methods": ["full-finetune"]},
    "lora": {"methods": ["lora-qv"], "budget": {**SUITE["budget"], "precision": "bf16"}},
    "casewise": {"methods": ["prompt-the-missing"], "regimes": ["casewise"]},
    "mixup": {"methods": ["full-finetune+mixup"]},
    "adalora": {"methods": ["adalora"]},
}


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_a_trial_that_is_killed_and_stopped_leaves_the_record_of_one_that_is_not(
    row: str, cache: Path, tmp_path: Path
) -> None:
    ((trial, _),) = plan(parse_suite({**SUITE, **ROWS[row]}), tmp_path / "out", CPU, lambda event: None)
    whole, folder = tmp_path / "whole", tmp_path / "stopped"
    for each in (whole, folder):
        each.mkdir()
        (each / "spec.json").write_text(trial.model_dump_json())
    assert ended(start(whole)) == 0
    rng = random.Random(row)
    for number in rng.sample([signal.SIGKILL, signal.SIGTERM], 2):
        stop_at_work(folder, number, rng)
    assert ended(start(folder)) == 0
    one, other = load_record(whole / RECORD), load_record(folder / RECORD)
    assert numbers(one) == numbers(other)
    states = load_states(whole), load_states(folder)
    assert states[0].keys() == states[1].keys()
    assert all(equal(states[0][case], states[1][case]) for case in states[0])
    assert trainings(whole) == trainings(folder)
    assert not (folder / PROGRESS).exists() and not (whole / PROGRESS).exists()
    assert other.costs is not None and one.costs is not None
    assert other.costs.seconds.wall > one.costs.seconds.train


def trainings(folder: Path) -> list[dict[str, Any]]:
    """Events of trainings, without their times."""
    rows = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    kept = [row for row in rows if row["event"] in ("epoch", "tuned", "router")]
    return [{key: value for key, value in row.items() if key != "time"} for row in kept]


@pytest.mark.slow
def test_damaged_progress_starts_the_trial_anew(cache: Path, tmp_path: Path) -> None:
    suite = parse_suite({**SUITE, "methods": ["linear-probe"], "budget": {**SUITE["budget"], "samples": 20}})
    ((trial, folder),) = plan(suite, tmp_path / "out", CPU, lambda event: None)
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(trial.model_dump_json())
    (folder / PROGRESS).write_bytes(b"half of a file")
    assert run_trial(folder, CPU) == "ok"
    rows = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    (restarted,) = [row for row in rows if row["event"] == "restarted"]
    assert "damaged" in restarted["message"]
    assert not (folder / PROGRESS).exists() and not (folder / ASIDE).exists() and (folder / MARKER).exists()
