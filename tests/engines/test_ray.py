"""A real Ray cluster of two raylets on loopback: the same board as on this machine, and nothing lost by what dies."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Place, kill, wait_for

from mmbench.records import Score


@pytest.fixture(scope="session")
def words(cluster_place: Place) -> Iterator[tuple[str, ...]]:
    """Options that lead to a cluster of two nodes with one core each."""
    cluster = started()
    yield ("--executor", "ray", "--executor-option", f"address={cluster.address}")
    cluster.shutdown()


def started() -> Any:
    """Ray gives a node 30 seconds to come up, which is short beside other work."""
    from ray.cluster_utils import Cluster

    for _ in range(5):
        cluster = Cluster()
        try:
            cluster.add_node(num_cpus=1, include_dashboard=False)
            cluster.add_node(num_cpus=1)
            return cluster
        except Exception as error:
            cluster.shutdown()
            said = str(error)
            if "timed out during startup" not in said:
                raise
    pytest.fail(said)


def test_the_board_is_the_local_one(
    place: Place, words: tuple[str, ...], local_scores: dict[str, tuple[Score, ...]]
) -> None:
    done = place.run("quick", "ray", *words)
    assert done.returncode == 0, done.stderr
    assert place.scores("ray") == local_scores


def test_a_killed_trial_runs_again(place: Place, words: tuple[str, ...]) -> None:
    sweep = place.start("slow", "ray-killed", *words)
    wait_for(place.pids)
    kill(place.pids()[0])
    _, errors = sweep.communicate(timeout=500)
    assert sweep.returncode == 0, errors
    assert len(place.scores("ray-killed")) == 2


def test_a_killed_ray_worker_counts_no_trial_twice(place: Place, words: tuple[str, ...]) -> None:
    sweep = place.start("slow", "ray-worker", *words)
    wait_for(place.pids)
    found = subprocess.run(["ps", "-o", "ppid=", "-p", str(place.pids()[0])], capture_output=True, text=True)
    kill(int(found.stdout))
    _, errors = sweep.communicate(timeout=500)
    assert sweep.returncode == 0, errors
    assert len(place.scores("ray-worker")) == 2
    assert len(place.pids()) == 2, "the orphaned trial went on and was waited for"


def test_an_interrupted_sweep_takes_its_trials_along_and_resumes(place: Place, words: tuple[str, ...]) -> None:
    sweep = place.start("slow", "ray-interrupted", *words)
    wait_for(place.pids)
    sweep.send_signal(signal.SIGINT)
    _, errors = sweep.communicate(timeout=200)
    assert sweep.returncode == 130, errors
    again = place.run("slow", "ray-interrupted", *words)
    assert again.returncode == 0, again.stderr
    assert len(place.scores("ray-interrupted")) == 2


def test_an_address_where_no_ray_is_is_told(place: Place) -> None:
    refused = place.run("quick", "ray-refused", "--executor", "ray", "--executor-option", "address=127.0.0.1:1")
    assert refused.returncode == 2
    assert "cannot reach Ray at '127.0.0.1:1'" in refused.stderr


def test_more_cores_than_any_node_has_are_refused(place: Place, words: tuple[str, ...]) -> None:
    refused = place.run("quick", "ray-refused", *words, "--executor-option", "cpus=64")
    assert refused.returncode == 2
    assert "64 CPU" in refused.stderr
