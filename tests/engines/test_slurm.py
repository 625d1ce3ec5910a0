"""A real Slurm of one node (.ci/slurm_node.sh): the same board as here, and nothing lost by what it kills."""

from __future__ import annotations

import signal
import subprocess

import pytest
from conftest import Place, kill, wait_for

from mmbench.records import Score

WORDS = ("--executor", "slurm", "--executor-option", "poll_seconds=1", "--executor-option", "time_minutes=10")


@pytest.fixture(scope="session", autouse=True)
def slurm() -> None:
    subprocess.run(["sinfo"], check=True, capture_output=True)  # without Slurm these tests have no meaning


def tasks() -> list[str]:
    command = ["squeue", "--noheader", "--array", "--format=%i"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_the_board_is_the_local_one(place: Place, local_scores: dict[str, tuple[Score, ...]]) -> None:
    done = place.run("quick", "slurm", *WORDS)
    assert done.returncode == 0, done.stderr
    assert place.scores("slurm") == local_scores


def test_a_killed_trial_runs_again(place: Place) -> None:
    sweep = place.start("slow", "slurm-killed", *WORDS)
    wait_for(place.pids)
    kill(place.pids()[0])
    _, errors = sweep.communicate(timeout=500)
    assert sweep.returncode == 0, errors
    assert len(place.scores("slurm-killed")) == 2
    assert len(place.pids()) == 3


def test_a_cancelled_task_is_submitted_again(place: Place) -> None:
    sweep = place.start("slow", "slurm-cancelled", *WORDS)
    wait_for(place.pids)
    subprocess.run(["scancel", tasks()[0]], check=True)
    _, errors = sweep.communicate(timeout=500)
    assert sweep.returncode == 0, errors
    assert len(place.scores("slurm-cancelled")) == 2


def test_an_interrupted_sweep_takes_its_tasks_along_and_resumes(place: Place) -> None:
    sweep = place.start("slow", "slurm-interrupted", *WORDS)
    wait_for(place.pids)
    sweep.send_signal(signal.SIGINT)
    _, errors = sweep.communicate(timeout=200)
    assert sweep.returncode == 130, errors
    wait_for(lambda: not tasks())
    again = place.run("slow", "slurm-interrupted", *WORDS)
    assert again.returncode == 0, again.stderr
    assert len(place.scores("slurm-interrupted")) == 2


def test_what_slurm_refuses_is_told(place: Place) -> None:
    refused = place.run("quick", "slurm-refused", *WORDS, "--executor-option", "partition=nosuch")
    assert refused.returncode == 2
    assert "nosuch" in refused.stderr or "partition" in refused.stderr
