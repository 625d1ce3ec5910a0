"""One small suite run on this machine, which every engine must reproduce."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from mmbench.records import MARKER, RECORD, Score, load_record
from mmbench.registry import ROOT

SUITE = {
    "name": "engines",
    "regimes": ["clean"],
    "cases": ["complete", "missing-audio", "noise-to-audio"],
    "seeds": [0, 1],
    "datasets": [{"name": "synthetic-av", "samples": 60}],
    "backbones": [{"name": "cavmae-tiny", "epochs": 1}],
    "budget": {"samples": 20, "tuning_trials": 1, "batch_size": 10},
}
SLOW = """
import os, time
from mmbench.method import Method
from mmbench.registry import method

@method("slow", title="T", family="f", reference="r", year=2026, memory="M0", options={"seconds": 1.0})
class Slow(Method):
    def build(self, rng):
        pass

    def after_backward(self, step, steps):
        log = os.environ["STARTS"]
        if step == 0:
            with open(log, "a") as file:
                file.write(f"{os.getpid()}\\n")
        time.sleep(self.options["seconds"])
"""


@dataclass(frozen=True)
class Place:
    """A folder with two suites: quick trials, and ones that take some seconds."""

    folder: Path
    starts: Path
    """A line with the process id for each training that began."""

    def command(self, suite: str, out: str, *words: str) -> list[str]:
        entry = [sys.executable, str(ROOT / "mmbench" / "__main__.py"), "run", str(self.folder / f"{suite}.yaml")]
        plugin = ["--plugin", str(self.folder / "slow.py")]
        return [*entry, "--out", str(self.folder / out), "--quiet", *plugin, *words]

    def run(self, suite: str, out: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(suite, out, *words), capture_output=True, text=True, timeout=600)

    def start(self, suite: str, out: str, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(self.command(suite, out, *words), stderr=subprocess.PIPE, text=True)

    def pids(self) -> list[int]:
        return [int(line) for line in self.starts.read_text().split()]

    def scores(self, out: str) -> dict[str, tuple[Score, ...]]:
        """Scores with their evaluation sets' digests, by trial."""
        folders = [path.parent for path in (self.folder / out).glob(f"trials/*/{MARKER}")]
        records = [load_record(folder / RECORD) for folder in folders]
        assert all(record.status == "ok" for record in records), [record.failure for record in records]
        return {record.trial.id: record.scores for record in records}


@pytest.fixture(scope="session")
def cluster_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("engines")
    (folder / "slow.py").write_text(SLOW)
    (folder / "starts").touch()
    (folder / "quick.yaml").write_text(yaml.safe_dump({**SUITE, "methods": ["lora-qv", "source"]}))
    (folder / "slow.yaml").write_text(yaml.safe_dump({**SUITE, "methods": ["slow"]}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMBENCH_CACHE", str(folder / "cache"))
        patch.setenv("STARTS", str(folder / "starts"))
        yield Place(folder, folder / "starts")


@pytest.fixture(scope="session")
def local_scores(cluster_place: Place) -> dict[str, tuple[Score, ...]]:
    done = cluster_place.run("quick", "local")
    assert done.returncode == 0, done.stderr
    return cluster_place.scores("local")


@pytest.fixture
def place(cluster_place: Place) -> Place:
    cluster_place.starts.write_text("")
    return cluster_place


def wait_for(condition: Callable[[], object], seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
