"""What a cluster does to trials, without one: tasks at their limit, arrays in portions, a queue that is full."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mmbench.errors import ConfigError
from mmbench.executors import slurm, there
from mmbench.executors.base import INTERRUPTED, Share
from mmbench.executors.slurm import SlurmExecutor
from mmbench.executors.there import EXIT_CODE, run_there

TRIAL = """
import os, pathlib, signal, sys, time
place = pathlib.Path(sys.argv[2])

def leave(*_):
    (place / "left").touch()
    raise SystemExit(130)

signal.signal(signal.SIGTERM, leave)
(place / "pid").write_text(str(os.getpid()))
(place / "up").touch()
time.sleep(60)
"""


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A trial's folder; the trial leaves in order when it is asked to."""
    (tmp_path / "entry.py").write_text(TRIAL)
    monkeypatch.setattr(there, "ENTRY", tmp_path / "entry.py")
    (tmp_path / "trial").mkdir()
    return tmp_path / "trial"


def once_up(trial: Path, act: Callable[[], object]) -> threading.Thread:
    """Act as soon as the trial is at work."""

    def wait() -> None:
        while not (trial / "up").exists():
            threading.Event().wait(0.02)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


class LimitError(Exception):
    """What submitit's own handler raises at a task's limit."""


@pytest.fixture
def submitit_handler() -> Any:
    def give_up(number: int, frame: object) -> None:
        raise LimitError

    old = signal.signal(signal.SIGUSR2, give_up)
    yield give_up
    assert signal.getsignal(signal.SIGUSR2) is give_up
    signal.signal(signal.SIGUSR2, old)


def test_a_trial_leaves_in_order_before_its_task_s_limit(trial: Path, submitit_handler: object) -> None:
    thread = once_up(trial, lambda: os.kill(os.getpid(), signal.SIGUSR2))
    assert run_there(str(trial), "cpu", 1) == INTERRUPTED
    thread.join()
    assert (trial / "left").exists() and (trial / EXIT_CODE).read_text() == str(INTERRUPTED)


def test_a_trial_that_slurm_signals_itself_goes_on_until_it_is_asked_to_leave(
    trial: Path, submitit_handler: object
) -> None:
    def signal_all() -> None:
        os.kill(int((trial / "pid").read_text()), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGUSR2)

    thread = once_up(trial, signal_all)
    assert run_there(str(trial), "cpu", 1) == INTERRUPTED
    thread.join()


def test_whatever_ends_the_task_ends_the_trial(trial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def give_up(number: int, frame: object) -> None:
        raise LimitError

    old = signal.signal(signal.SIGUSR1, give_up)
    thread = once_up(trial, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    try:
        with pytest.raises(LimitError):
            run_there(str(trial), "cpu", 1)
    finally:
        signal.signal(signal.SIGUSR1, old)
        thread.join()
    assert (trial / "left").exists()


@dataclass(frozen=True)
class Job:
    job_id: str


@dataclass
class Sbatch:
    """Takes arrays, or refuses them."""

    arrays: list[int] = field(default_factory=list)
    refusal: str = ""
    tries: int = 0

    def map_array(self, run: object, folders: list[str], *others: object) -> list[Job]:
        self.tries += 1
        if self.refusal:
            raise RuntimeError(f"sbatch: error: {self.refusal}")
        self.arrays.append(len(folders))
        return [Job(f"{len(self.arrays)}_{i}") for i in range(len(folders))]

    def queue(self) -> frozenset[str]:
        return frozenset(f"{array + 1}_{i}" for array, size in enumerate(self.arrays) for i in range(size))


@pytest.fixture
def sbatch(monkeypatch: pytest.MonkeyPatch) -> Sbatch:
    found = Sbatch()
    monkeypatch.setattr(slurm, "_submitit_executor", lambda *_: found)
    monkeypatch.setattr(slurm, "_queue", found.queue)
    return found


def executor_of(tmp_path: Path, *words: str) -> SlurmExecutor:
    return SlurmExecutor(tmp_path / "logs", Share("cpu", 1), words, settle_seconds=0.0)


def fill(executor: SlurmExecutor, trials: list[Path]) -> None:
    while trials and executor.has_room():
        executor.submit(trials.pop())


def test_arrays_stay_below_slurm_s_limit_and_follow_one_another(
    tmp_path: Path, sbatch: Sbatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = executor_of(tmp_path, "max_parallel=100")
    executor._poll_seconds = 0.0
    trials = [tmp_path / str(number) for number in range(1200)]
    fill(executor, trials)
    executor.collect()
    fill(executor, trials)
    assert sbatch.arrays == [500] and len(executor.running()) == 500
    queue = sorted(sbatch.queue())
    monkeypatch.setattr(slurm, "_queue", lambda: frozenset(queue[:99]))
    assert len(executor.collect()) == 401
    fill(executor, trials)
    executor.collect()
    assert sbatch.arrays == [500, 500] and len(trials) == 200


def test_a_full_queue_ends_no_sweep_whose_tasks_run(tmp_path: Path, sbatch: Sbatch) -> None:
    executor = executor_of(tmp_path)
    executor.submit(tmp_path / "one")
    executor.collect()
    sbatch.refusal = "Job violates accounting/QOS policy"
    executor.submit(tmp_path / "two")
    with pytest.warns(UserWarning, match="did not take 1 trials, which wait: sbatch: error: Job violates"):
        executor.collect()
    executor.collect()
    assert sbatch.tries == 2 and len(executor.running()) == 2
    sbatch.refusal = ""
    executor._poll_seconds = 0.0
    assert executor.collect() == []
    assert sbatch.arrays == [1, 1]


def test_what_is_refused_at_first_is_an_error(tmp_path: Path, sbatch: Sbatch) -> None:
    sbatch.refusal = "invalid partition specified: nosuch"
    executor = executor_of(tmp_path)
    executor.submit(tmp_path / "one")
    with pytest.raises(ConfigError, match="nosuch; see --executor-option"):
        executor.collect()
