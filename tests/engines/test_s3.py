"""Results on an S3 server on loopback: two machines share the work, and what was done is not done again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from conftest import Place, kill, wait_for

from mmbench.records import MARKER, Score

BUCKET = "results"
IMPATIENT = """
import runpy, sys
from mmbench import remote
remote.STALE_SECONDS = remote.WATCH_SECONDS = 12.0
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="session", autouse=True)
def server() -> Iterator[str]:
    import boto3
    from moto.server import ThreadedMotoServer

    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    host, port = running.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=BUCKET)
        yield endpoint
    running.stop()


def keys(prefix: str, endpoint: str) -> list[str]:
    import boto3

    found = boto3.client("s3", endpoint_url=endpoint).list_objects_v2(Bucket=BUCKET, Prefix=prefix)
    return [entry["Key"] for entry in found.get("Contents", ())]


def run_at(place: Place, suite: str, prefix: str, machine: str) -> list[str]:
    """The command of a machine that has a cache, and so a mirror, of its own."""
    command = place.command(suite, "unused")
    command[command.index("--out") + 1] = f"s3://{BUCKET}/{prefix}"
    return ["env", f"MMBENCH_CACHE={place.folder / machine}", *command]


def mirror_scores(place: Place, machine: str) -> dict[str, tuple[Score, ...]]:
    (folder,) = (place.folder / machine / "results").glob("*")
    return place.scores(str(folder.relative_to(place.folder)))


def test_the_board_is_the_local_one_and_nothing_is_done_twice(
    place: Place, local_scores: dict[str, tuple[Score, ...]], server: str
) -> None:
    first = subprocess.run(run_at(place, "quick", "one", "machine-a"), capture_output=True, text=True, timeout=300)
    assert first.returncode == 0, first.stderr
    assert mirror_scores(place, "machine-a") == local_scores
    done = [key for key in keys("one", server) if key.endswith(f"/{MARKER}")]
    assert len(done) == 3
    again = subprocess.run(run_at(place, "quick", "one", "machine-b"), capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert mirror_scores(place, "machine-b") == local_scores
    assert not [key for key in keys("one", server) if key.endswith("claim.json")]


def test_two_machines_share_the_trials(place: Place, server: str) -> None:
    for machine in ("machine-c", "machine-d"):  # stores and source models first, so that both begin at once
        done = subprocess.run(
            [*run_at(place, "slow", machine, machine), "--limit", "0"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    sweeps = [
        subprocess.Popen([*run_at(place, "slow", "two", machine), "--workers", "1"], stderr=subprocess.PIPE, text=True)
        for machine in ("machine-c", "machine-d")
    ]
    for sweep in sweeps:
        _, errors = sweep.communicate(timeout=400)
        assert sweep.returncode == 0, errors
    assert len(place.pids()) == 2


def test_a_killed_machine_loses_its_trial_to_the_next(place: Place, server: str) -> None:
    sweep = subprocess.Popen([*run_at(place, "slow", "three", "machine-e"), "--workers", "1"], stderr=subprocess.PIPE)
    wait_for(place.pids)
    kill(sweep.pid)
    kill(place.pids()[0])
    sweep.communicate()
    assert [key for key in keys("three", server) if key.endswith("claim.json")]
    command = run_at(place, "slow", "three", "machine-f")
    entry = command.index(sys.executable)
    impatient = [*command[: entry + 1], "-c", IMPATIENT, *command[entry + 1 :]]
    again = subprocess.run(impatient, capture_output=True, text=True, timeout=500, cwd=place.folder)
    assert again.returncode == 0, again.stderr
    assert len([key for key in keys("three", server) if key.endswith(f"/{MARKER}")]) == 2
