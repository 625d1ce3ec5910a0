"""What trackers are given, and what happens without them; tests/trackers writes and reads back the real ones."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from results_bed import edit, trial_folder, write_results
from typer.testing import CliRunner

from mmbench.cli import app
from mmbench.files import RecordError
from mmbench.records import MARKER, TrialRecord, load_record
from mmbench.trackers import TRACKERS, Point, points, track

KEPT: dict[str, Any] = {}


class Notebook:
    """A tracker that keeps what it is given."""

    def start(self, trial: TrialRecord, settings: Mapping[str, Any]) -> Notebook:
        self._id = trial.trial.id
        KEPT[self._id] = {"settings": settings, "points": []}
        return self

    def scalars(self, point: Point) -> None:
        KEPT[self._id]["points"].append(point)

    def end(self, status: str, scores: Mapping[str, float]) -> None:
        KEPT[self._id] |= {"status": status, "scores": scores}


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def open_tracker(out: Path) -> Iterator[Notebook]:
        yield Notebook()

    module = ModuleType("notebook")
    module.open_tracker = open_tracker  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "notebook", module)
    monkeypatch.setattr("mmbench.trackers.TRACKERS", {"notebook": "notebook"})
    KEPT.clear()


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write_results(tmp_path / "results")


@pytest.mark.usefixtures("notebook")
def test_a_trial_is_told_whole(results: Path, tmp_path: Path) -> None:
    place = trial_folder(results)
    rows = [
        {"time": 5.0, "event": "epoch", "job": "final/all", "samples": 30, "of": 30, "loss": 0.5, "lr": 0.1},
        {"time": 6.0, "event": "tuned", "lr": 0.1, "score": None},
        {"time": 7.0, "event": "failed", "status": "diverged", "message": "loss"},
    ]
    (place / "events.jsonl").write_text("\n".join(map(json.dumps, rows)))
    track(results, "notebook", tmp_path / "out")
    record, told = load_record(place / "trial.json"), KEPT[place.name]
    assert told["points"] == [
        Point("final/all", 30, 5.0, {"loss": 0.5, "lr": 0.1}),
        Point("tuned", 1, 6.0, {"lr": 0.1}),
    ]
    assert told["status"] == "ok"
    means = [s.value for s in record.scores if s.metric == "accuracy" and s.value is not None]
    assert told["scores"]["blind/mean"] == pytest.approx(sum(means) / 4)
    assert told["scores"]["blind/missing-audio/accuracy"] == means[3]
    assert record.costs is not None
    assert told["scores"]["costs/epoch_seconds"] == record.costs.epoch_seconds
    assert (told["settings"]["budget.optim.name"], told["settings"]["environment.threads"]) == ("adamw", 1)
    assert all(isinstance(value, (str, int, float)) for value in told["settings"].values())


@pytest.mark.usefixtures("notebook")
def test_only_what_is_new_is_written(results: Path, tmp_path: Path) -> None:
    assert len(track(results, "notebook", tmp_path / "out").new) == 3
    KEPT.clear()
    (trial_folder(results, "source") / MARKER).unlink()  # running again
    edit(trial_folder(results), lambda record: record.model_copy(update={"lr": 0.5}))
    done = track(results, "notebook", tmp_path / "out")
    assert (done.new, done.known) == ((trial_folder(results).name,), 1)
    assert list(KEPT) == [trial_folder(results).name]


@pytest.mark.usefixtures("notebook")
def test_an_id_that_is_a_path_is_left_out(results: Path, tmp_path: Path) -> None:
    edit(trial_folder(results), lambda r: r.model_copy(update={"trial": r.trial.model_copy(update={"id": "../../x"})}))
    done = track(results, "notebook", tmp_path / "out")
    assert len(done.new) == 2
    assert "is damaged or not a record: 1 validation error for TrialRecord trial.id" in done.problems[0]
    assert "../../x" not in KEPT


@pytest.mark.parametrize("text", ["{", "[]", '{"event": "epoch", "loss": 1}', '{"time": "x", "event": "e", "lr": 1}'])
def test_a_damaged_event_log_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "events.jsonl").write_text(text)
    with pytest.raises(RecordError, match=r"cannot read the event log .*events\.jsonl"):
        list(points(tmp_path / "events.jsonl"))


@pytest.mark.usefixtures("notebook")
def test_a_folder_without_trials_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no finished trial"):
        track(tmp_path, "notebook", tmp_path / "out")


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_extra_names_what_to_install(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, TRACKERS[name], raising=False)
    for module in ("tensorboard", "torch.utils.tensorboard", "wandb", "mlflow", "mlflow.entities"):
        monkeypatch.setitem(sys.modules, module, None)
    found = CliRunner().invoke(app, ["track", str(tmp_path), "--to", name, "--out", str(tmp_path / "out")])
    assert found.exit_code == 2
    assert f'pip install "mmbench[{name}]"' in found.stderr


def test_an_unknown_tracker_offers_the_known_ones(tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["track", str(tmp_path), "--to", "tensorbord", "--out", str(tmp_path / "out")])
    assert found.exit_code == 2 and "did you mean: tensorboard?" in found.stderr
