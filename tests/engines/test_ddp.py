"""Trials on two devices, here two processes that meet through gloo: what one device gives, and no rank left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from conftest import SUITE, Place, kill, wait_for
from safetensors.torch import load_file
from shared_training import REMEMBERING, courses

from mmbench.outputs import load_states
from mmbench.records import MARKER, RECORD, Score, TrialRecord, load_record

SCRIPT = Path(__file__).with_name("shared_training.py")
TWO = ("--set", "budget.devices=2", "--workers", "1")
ROUNDING = 5e-6
"""Of sums in another order: all that two devices may change."""
DROPPING = """
import os, time
from mmbench.method import Loss, Method
from mmbench.registry import method
from torch.nn import functional as F

@method("dropping", title="T", family="f", reference="r", year=2026, memory="M0")
class Dropping(Method):
    def build(self, rng):
        pass

    def loss(self, batch):
        logits = F.dropout(self.logits(batch), 0.3, self.net.training)
        return Loss(self.criterion(logits, batch.label), logits)

    def after_backward(self, step, steps):
        with open(os.environ["STARTS"], "a") as file:
            file.write(f"{os.getpid()}\\n")
        time.sleep(0.5)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every course by one process and by two."""
    folder = tmp_path_factory.mktemp("trained")
    own = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-W", "ignore", str(SCRIPT), str(folder)]
    each = [subprocess.Popen([*command, *words], env=own) for words in (("0", "1"), ("0", "2"), ("1", "2"))]
    assert [process.wait(500) for process in each] == [0, 0, 0]
    return folder


@pytest.mark.parametrize("name", [course.name for course in courses()])
def test_two_ranks_train_and_predict_as_one(name: str, trained: Path) -> None:
    alone, first, second = (load_file(trained / f"{name}-{rank}.safetensors") for rank in ("0of1", "0of2", "1of2"))
    assert alone.keys() == first.keys() == second.keys()
    for key, tensor in alone.items():
        assert torch.equal(first[key], second[key]), key
        if key.startswith("digest"):
            assert torch.equal(first[key], tensor), key
        torch.testing.assert_close(first[key], tensor, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("name", [kind.__name__ for kind in REMEMBERING])
def test_what_ranks_keep_of_their_own_samples_is_refused(name: str, trained: Path) -> None:
    alone, first, second = ((trained / f"{name}-{rank}").read_text() for rank in ("0of1", "0of2", "1of2"))
    assert alone == "" and first == second
    assert "holds other values on each of 2 devices" in first and "needs batch_dependent" in first


def records(place: Place, out: str) -> list[TrialRecord]:
    return [load_record(path.parent / RECORD) for path in sorted((place.folder / out).glob(f"trials/*/{MARKER}"))]


def test_the_board_is_that_of_one_device(place: Place, local_scores: dict[str, tuple[Score, ...]]) -> None:
    done = place.run("quick", "ddp", *TWO, "--set", "seeds=[0]")
    assert done.returncode == 0, done.stderr
    found = {record.trial.method: record for record in records(place, "ddp")}
    alone = {record.trial.method: record for record in records(place, "local") if record.trial.seed == 0}
    assert found.keys() == alone.keys() == {"lora-qv", "source"}
    assert found["source"].scores == alone["source"].scores
    assert found["source"].trial.id == alone["source"].trial.id
    one, two = alone["lora-qv"], found["lora-qv"]
    assert (one.environment.devices, two.environment.devices) == (1, 2)
    assert [score.digest for score in two.scores] == [score.digest for score in one.scores]
    for mine, theirs in zip(two.scores, one.scores, strict=True):
        assert replace(mine, value=theirs.value) == theirs
        assert mine.value == pytest.approx(theirs.value, abs=1e-4)
    assert one.costs is not None and two.costs is not None
    assert (two.costs.micro_batch, two.costs.samples_seen, two.costs.steps) == (5, one.costs.samples_seen, 2)
    assert two.costs.train_memory.rss_bytes is None or two.costs.train_memory.rss_bytes > 0


def rank_of(pid: int) -> str:
    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next(word.decode() for word in words if word.startswith(b"RANK=")).removeprefix("RANK=")


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_killed_rank_fails_its_trial_by_name_and_no_other(place: Place) -> None:
    sweep = place.start("slow", "ddp-killed", *TWO)
    wait_for(lambda: len(place.pids()) >= 2)
    ranks = place.pids()[:2]
    name = rank_of(ranks[1])
    kill(ranks[1])
    _, errors = sweep.communicate(timeout=500)
    assert sweep.returncode == 1, errors
    assert gone(ranks)
    found = records(place, "ddp-killed")
    assert sorted(record.status for record in found) == ["crashed", "ok"]
    (failure,) = (record.failure for record in found if record.failure is not None)
    assert failure.message.startswith(f"rank {name} of 2 was killed by signal 9")


def write_dropping(place: Place) -> tuple[str, ...]:
    """A suite of one trial whose training draws at random; the words that name its plugin."""
    (place.folder / "dropping.py").write_text(DROPPING)
    suite = {**SUITE, "methods": ["dropping"], "seeds": [0], "budget": {**SUITE["budget"], "samples": 60}}
    (place.folder / "dropping.yaml").write_text(yaml.safe_dump(suite))
    return ("--plugin", str(place.folder / "dropping.py"))


def test_ranks_end_with_their_trial_and_a_stopped_one_goes_on_bit_for_bit(place: Place) -> None:
    plugin = write_dropping(place)
    sweep = place.start("dropping", "ddp-alone", *TWO, *plugin)
    wait_for(lambda: len(place.pids()) >= 2)
    ranks = place.pids()[:2]
    kill(parent_of(ranks[0]))
    wait_for(lambda: gone(ranks), seconds=20)
    _, errors = sweep.communicate(timeout=500)  # the trial runs again, from its start
    assert sweep.returncode == 0, errors
    place.starts.write_text("")
    sweep = place.start("dropping", "ddp-stopped", *TWO, *plugin)
    wait_for(lambda: len(place.pids()) >= 5)
    os.kill(parent_of(place.pids()[-1]), signal.SIGTERM)
    _, errors = sweep.communicate(timeout=500)
    assert sweep.returncode == 0, errors
    one, two = (next((place.folder / out).glob("trials/*")) for out in ("ddp-alone", "ddp-stopped"))
    events = [
        [json.loads(line)["event"] for line in (at / "events.jsonl").read_text().splitlines()] for at in (one, two)
    ]
    assert [found.count("resumed") for found in events] == [0, 1]
    assert all(torch.equal(load_states(one)[""][name], tensor) for name, tensor in load_states(two)[""].items())
    assert load_record(one / RECORD).scores == load_record(two / RECORD).scores
