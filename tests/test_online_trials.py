"""Trials with an online adapter: they start from what their base trained, wait for it, and say when it failed."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from mmbench import run_online
from mmbench.claims import claimed
from mmbench.config import Suite
from mmbench.dispatch import Event
from mmbench.errors import ConfigError
from mmbench.executors.base import BUSY, Finished
from mmbench.executors.local import Slot, local_slots
from mmbench.layout import PREDICTIONS, STATES
from mmbench.records import MARKER, RECORD, Status, TrialRecord, is_done, load_record
from mmbench.run import run_trial
from mmbench.suite_file import parse_suite
from mmbench.sweep import SweepOptions, _write_specs, plan, run_suite
from mmbench.trials import Digests, make_trial, read_trial, rows

CPU = torch.device("cpu")
CASES = ("complete", "missing-audio")
STREAMS = ("reset/16", "mixed/8")
SUITE = {
    "name": "adapted",
    "methods": ["linear-probe+tilt"],
    "regimes": ["clean"],
    "cases": list(CASES),
    "streams": list(STREAMS),
    "seeds": [0],
    "datasets": [{"name": "synthetic-av", "samples": 60}],
    "backbones": [{"name": "cavmae-tiny", "epochs": 1}],
    "budget": {"samples": 20, "tuning_trials": 1, "batch_size": 10},
}
PLUGIN = """
import torch
from mmbench.errors import DivergedError
from mmbench.method import Method
from mmbench.online import Online
from mmbench.registry import method, online


@online("tilt", title="T", reference="r", year=2026, memory="M0", updates="the head's bias", forwards=0.0,
        backwards=0.0, source_samples=7, options={"by": 0.5, "end": ""})
class Tilt(Online):
    def updated(self):
        return {"bias": self.method.net.mlp_head[1].bias}

    def adapt(self, batch):
        assert batch.label is None and batch.case is None
        assert len(self.source) == 7 and self.source.label is None
        if self.options["end"] == "nan":
            self.updated()["bias"].data.fill_(float("nan"))
        with torch.no_grad():
            self.updated()["bias"][0] += self.options["by"]
        return len(batch)


@method("doomed", title="D", family="f", reference="r", year=2026, memory="M0")
class Doomed(Method):
    def build(self, rng):
        raise DivergedError("it never trains")
"""


@pytest.fixture(autouse=True)
def adapters(use_plugin: Callable[[str], Path], cache: Path, tmp_path: Path) -> Path:
    return use_plugin(f"{PLUGIN}# {tmp_path}: a module of its own for each test\n")


def suite(**changes: object) -> Suite:
    return parse_suite({**SUITE, **changes})


def planned(out: Path, **changes: object) -> list[Path]:
    """Folders with their specs, ready to be run in this process, bases first."""
    (out / "trials").mkdir(parents=True, exist_ok=True)
    return _write_specs(plan(suite(**changes), out, CPU, lambda event: None))


def run_all(out: Path, **changes: object) -> TrialRecord:
    """The record of the last trial, the others having run before it."""
    folders = planned(out, **changes)
    for folder in folders:
        run_trial(folder, CPU)
    return load_record(folders[-1] / RECORD)


def test_an_online_trial_adapts_what_its_base_trained(tmp_path: Path) -> None:
    record = run_all(tmp_path)
    base, online = planned(tmp_path)
    plain = load_record(base / RECORD)
    assert record.status == "ok" and record.failure is None
    expected = {(c, s, u) for c in CASES for s in STREAMS for u in ("before", "after")} | {
        (c, "", "none") for c in CASES
    }
    assert {(s.case, s.stream, s.update) for s in record.scores if s.metric == "accuracy"} == expected
    # The reference is the base's own evaluation, on the same sets.
    assert [s for s in record.scores if s.update == "none"] == list(plain.scores)
    nll = {(s.case, s.stream, s.update): s.value for s in record.scores if s.metric == "nll"}
    assert nll["complete", "reset/16", "after"] != nll["complete", "reset/16", "before"] != nll["complete", "", "none"]
    assert sorted(path.name for path in online.iterdir()) == sorted(
        [MARKER, RECORD, PREDICTIONS, "events.jsonl", "spec.json"]
    )
    assert (base / STATES).exists()


def test_the_record_says_what_adapting_cost_and_claims_no_training(tmp_path: Path) -> None:
    record = run_all(tmp_path)
    facts, costs = record.online, record.costs
    assert facts is not None and costs is not None
    assert (facts.name, facts.options, facts.base) == ("tilt", {"by": 0.5, "end": ""}, planned(tmp_path)[0].name)
    assert (facts.updated_parameters, facts.source_samples, facts.used_share) == (10, 7, 1.0)
    assert facts.update_seconds_per_sample is not None and 0 < facts.update_seconds_per_sample < 1
    assert (record.lr, record.tuning, costs.epoch_seconds, costs.step_seconds_median) == (None, (), None, None)
    assert (costs.training_state, costs.micro_batch, costs.train_flops_per_sample, costs.energy_joules) == (None,) * 4
    assert costs.train_memory.rss_bytes is None and costs.eval_seconds_per_sample is None
    seconds = costs.seconds
    parts = seconds.setup + seconds.data + seconds.train + seconds.tune + seconds.evaluate + seconds.log
    assert parts == pytest.approx(seconds.wall, rel=0.02) and seconds.train == seconds.tune == 0
    assert record.trial.online == "tilt" and record.trial.regime == "clean"


def test_predictions_tell_stream_and_update(tmp_path: Path) -> None:
    record = run_all(tmp_path)
    online = planned(tmp_path)[-1]
    assert record.data is not None
    table = pq.read_table(online / PREDICTIONS).to_pandas()
    kinds = table.groupby(["stream", "update", "case"]).size()
    expected = {("", "none", c) for c in CASES} | {(STREAMS[0], u, c) for u in ("before", "after") for c in CASES}
    assert set(kinds.index) == expected and set(kinds) == {record.data.test}


def test_rows_that_do_not_train_have_no_state_and_adapt_all_the_same(tmp_path: Path) -> None:
    record = run_all(tmp_path, methods=["source+tilt"])
    assert record.status == "ok" and record.trial.regime == "none"
    assert not (planned(tmp_path, methods=["source+tilt"])[0] / STATES).exists()


def test_the_same_spec_twice_gives_the_same_scores(tmp_path: Path) -> None:
    one, two = run_all(tmp_path / "one"), run_all(tmp_path / "two")
    assert one.scores == two.scores


def test_alone_without_its_base_a_trial_leaves_no_record(tmp_path: Path) -> None:
    _, online = planned(tmp_path)
    with pytest.raises(ConfigError, match=r"has not been run in .*; run the suite rather than this trial alone"):
        run_trial(online, CPU)
    assert not (online / RECORD).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["doomed+tilt"]}, "its base trial doomed-clean-.* ended as diverged"),
        ({"methods": ["linear-probe+casewise+tilt"]}, "linear-probe was trained case by case and does not combine"),
        ({"methods": ["prompt-input+casewise+tilt"], "tracks": ["informed"]}, "needs the blind track"),
    ],
)
def test_what_cannot_be_adapted_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    record = run_all(tmp_path, **changes)
    assert record.status == "refused" and record.failure is not None
    assert re.search(message, record.failure.message)


def test_case_wise_states_that_combine_are_adapted_as_one(tmp_path: Path) -> None:
    record = run_all(tmp_path, methods=["prompt-input+casewise+tilt"])
    assert record.status == "ok" and {s.track for s in record.scores} == {"blind"}
    plain = load_record(planned(tmp_path, methods=["prompt-input+casewise+tilt"])[0] / RECORD)
    blind = [(s.case, s.metric, s.value) for s in plain.scores if s.track == "blind"]
    assert [(s.case, s.metric, s.value) for s in record.scores if s.update == "none"] == blind


def test_data_with_several_labels_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, online = planned(tmp_path)
    run_trial(base, CPU)
    track = run_online._track

    def several(desk: run_online.Desk) -> object:
        object.__setattr__(desk.data, "multi_label", True)
        return track(desk)

    monkeypatch.setattr(run_online, "_track", several)
    assert run_trial(online, CPU) == "refused"
    failure = load_record(online / RECORD).failure
    assert failure is not None and "softmax over exclusive classes" in failure.message


def test_an_adapter_that_blows_up_is_recorded_as_diverged(tmp_path: Path) -> None:
    methods = [{"name": "source", "online": {"name": "tilt", "options": {"end": "nan"}}}]
    record = run_all(tmp_path, methods=methods)
    assert record.status == "diverged" and record.failure is not None
    assert "predictions of tilt in stream reset/16 under complete are not finite" in record.failure.message


# Sweeps -----------------------------------------------------------------------------------------------------------


@dataclass
class InProcess:
    """Two slots, one trial after the other in this process, first come first served."""

    slots: object
    begun: list[Path] = field(default_factory=list)

    def has_room(self) -> bool:
        return len(self.begun) < 2

    def running(self) -> tuple[Path, ...]:
        return tuple(self.begun)

    def submit(self, folder: Path) -> None:
        self.begun.append(folder)

    def collect(self) -> list[Finished]:
        if not self.begun:
            return []
        folder = self.begun.pop(0)
        return [Finished(folder, BUSY if run_trial(folder, CPU) is None else 0, "")]

    def stop(self) -> None:
        assert self.begun == []


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmbench.executors.local.LocalExecutor", InProcess)


def swept(out: Path, retry: tuple[Status, ...] = (), **changes: object) -> list[str]:
    """What happened, in order: each trial's name without seed and digest, and what became of it."""
    events: list[Event] = []
    run_suite(suite(**changes), out, SweepOptions(CPU, 2, retry=retry), events.append)
    told = [e for e in events if e.kind in ("started", "finished")]
    return [f"{e.what.rpartition('-s0-')[0]} {e.status or e.kind}" for e in told]


BOTH = ["source+tilt", {"name": "source", "label": "gently", "online": {"name": "tilt", "options": {"by": 0.1}}}]


@pytest.mark.usefixtures("in_process")
def test_adapters_wait_for_their_base_and_share_it(tmp_path: Path) -> None:
    events = swept(tmp_path, methods=BOTH)
    assert events[:2] == ["source-frozen started", "source-frozen ok"]
    assert sorted(events[2:]) == ["source-frozen-tilt ok"] * 2 + ["source-frozen-tilt started"] * 2
    assert swept(tmp_path, methods=BOTH) == []


@pytest.mark.slow
def test_workers_of_their_own_find_the_base_too(tmp_path: Path) -> None:
    assert swept(tmp_path, methods=["source+tilt"])[1::2] == ["source-frozen ok", "source-frozen-tilt ok"]


@pytest.mark.usefixtures("in_process")
def test_a_base_that_fails_leaves_its_adapters_refused_and_both_can_be_retried(tmp_path: Path) -> None:
    methods = ["doomed+tilt"]
    ended = ["doomed-clean started", "doomed-clean diverged", "doomed-clean-tilt started", "doomed-clean-tilt refused"]
    assert swept(tmp_path, methods=methods) == ended
    assert swept(tmp_path, methods=methods, retry=("refused",)) == ended[2:]
    assert swept(tmp_path, methods=methods, retry=("diverged",)) == ended


@pytest.mark.usefixtures("in_process")
def test_a_limit_takes_bases_first_and_the_rest_is_left(tmp_path: Path) -> None:
    result = run_suite(suite(methods=BOTH), tmp_path, SweepOptions(CPU, 2, limit=1))
    assert result.statuses == {"ok": 1} and result.left == 2
    assert is_done(planned(tmp_path, methods=BOTH)[0])


@pytest.mark.usefixtures("in_process")
def test_a_base_claimed_elsewhere_is_waited_for(tmp_path: Path) -> None:
    methods = ["source+tilt"]
    base, online = planned(tmp_path, methods=methods)
    events: list[Event] = []
    options = SweepOptions(CPU, 2)
    sweep = threading.Thread(target=run_suite, args=(suite(methods=methods), tmp_path, options, events.append))
    with claimed(base):
        sweep.start()
        while not any(event.kind == "waiting" for event in events):
            time.sleep(0.05)
        time.sleep(0.5)
        assert not any(event.kind == "started" for event in events)
    sweep.join(timeout=120)
    assert is_done(base) and load_record(online / RECORD).status == "ok"


@pytest.mark.usefixtures("in_process")
def test_a_base_put_aside_by_another_sweep_runs_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = ["source+tilt"]
    base, online = planned(tmp_path, methods=methods)
    run_trial(base, CPU)

    def meddle(*args: Any) -> tuple[Slot, ...]:
        (base / MARKER).unlink()  # after this sweep has seen that the base is done
        return local_slots(*args)

    monkeypatch.setattr("mmbench.executors.local.local_slots", meddle)
    result = run_suite(suite(methods=methods), tmp_path, SweepOptions(CPU, 1))
    assert result.statuses == {"ok": 2} and is_done(online)


# Planning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("methods", "trials"),
    [
        (BOTH, 3),
        ([*BOTH, "source"], 3),
        ([*BOTH, {"name": "source", "label": "mine"}], 3),
        (["linear-probe+clean+tilt", "linear-probe+mixed+tilt"], 4),
    ],
)
def test_a_shared_base_is_planned_once_whatever_its_label(methods: list[object], trials: int) -> None:
    asked = suite(methods=methods, seeds=[0])
    folders = {"backbone": Path("b"), "store": Path("s")}
    made = [make_trial(row, asked, Digests("d", "b"), folders) for row in rows(asked)]
    names = [trial.id for trial in made]
    assert len(names) == len(set(names)) == trials
    for place, trial in enumerate(made):
        assert trial.base is None or trial.base in names[:place]


def test_one_adapter_under_two_labels_is_one_trial(tmp_path: Path) -> None:
    twice = ["source+tilt", {"name": "source", "online": "tilt", "label": "again"}]
    with pytest.raises(ConfigError, match="two rows of suite adapted are the same trial source-frozen-tilt"):
        plan(suite(methods=twice), tmp_path, CPU, lambda event: None)


def test_a_spec_names_streams_and_base(tmp_path: Path) -> None:
    base, online = (read_trial(folder) for folder in planned(tmp_path))
    assert (base.streams, base.base) == ((), None)
    assert (online.streams, online.base) == (STREAMS, base.id)
