"""Trials written to each tracker and read back with its own reader. Needs the extras: `tox run -e trackers`."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from results_bed import edit, trial_folder, write_results
from typer.testing import CliRunner

from mmbench.cli import app
from mmbench.records import RECORD, load_record

SECRET = "0123456789abcdef0123456789abcdef01234567"
LOSSES = (1.5, 0.75, 0.25)
EPOCH = {"event": "epoch", "job": "final/all", "phase": "train", "of": 90, "lr": 0.001}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three trials, one with a training curve; keys in the environment, and a home that is not the user's."""
    for name in ("WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "DATABRICKS_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    folder = write_results(tmp_path / "results")
    rows = [{"time": 1e9 + i, **EPOCH, "epoch": i, "samples": 30 * (i + 1), "loss": v} for i, v in enumerate(LOSSES)]
    rows.insert(0, {"time": 1e9 - 1, "event": "tuned", "lr": 0.001, "score": 0.5})
    (trial_folder(folder) / "events.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def run(results: Path, name: str, out: Path) -> str:
    found = CliRunner().invoke(app, ["track", str(results), "--to", name, "--out", str(out)], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.stderr


def final(results: Path) -> float:
    scores = load_record(trial_folder(results) / RECORD).scores
    return next(s.value for s in scores if (s.case, s.metric) == ("complete", "accuracy") and s.value is not None)


def again(results: Path, name: str, out: Path) -> None:
    """A second call writes nothing; a trial with a new record is written anew."""
    assert "0 trials written" in run(results, name, out)
    edit(trial_folder(results), lambda record: record.model_copy(update={"lr": 0.5}))
    assert "1 trials written" in run(results, name, out)


def no_secret(*folders: Path) -> None:
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        assert SECRET.encode() not in path.read_bytes(), path


def test_tensorboard(results: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read() -> EventAccumulator:
        found = EventAccumulator(str(tmp_path / "out" / "tensorboard" / trial_folder(results).name))
        found.Reload()
        return found

    assert "3 trials written to tensorboard" in run(results, "tensorboard", tmp_path / "out")
    losses = read().Scalars("final/all/loss")
    assert [(event.step, event.value, event.wall_time) for event in losses] == [
        (30 * (i + 1), value, 1e9 + i) for i, value in enumerate(LOSSES)
    ]
    assert read().Scalars("tuned/score")[0].value == 0.5
    assert read().Scalars("final/blind/complete/accuracy")[0].value == pytest.approx(final(results))
    (text,) = read().Tensors("settings/text_summary")
    assert b"method = lora-qv" in text.tensor_proto.string_val[0]
    again(results, "tensorboard", tmp_path / "out")
    assert len(read().Scalars("final/all/loss")) == len(LOSSES)  # once, though it was written twice
    no_secret(tmp_path)


def test_mlflow(results: Path, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    run(results, "mlflow", tmp_path / "out")
    client = MlflowClient(f"sqlite:///{tmp_path / 'out' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("corruptions-tiny")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == 3
    query = f"tags.trial = '{trial_folder(results).name}'"
    (found,) = client.search_runs([experiment.experiment_id], query)
    history = client.get_metric_history(found.info.run_id, "final/all/loss")
    assert [(m.step, m.value, m.timestamp) for m in history] == [
        (30 * (i + 1), value, 1000 * (10**9 + i)) for i, value in enumerate(LOSSES)
    ]
    assert found.data.metrics["final/blind/complete/accuracy"] == pytest.approx(final(results))
    assert (found.data.params["method"], found.data.params["budget.epochs"]) == ("lora-qv", "4.0")
    assert found.info.status == "FINISHED"
    again(results, "mlflow", tmp_path / "out")
    (anew,) = client.search_runs([experiment.experiment_id], query)
    assert anew.data.params["lr"] == "0.5"
    no_secret(tmp_path)


def test_wandb(results: Path, tmp_path: Path) -> None:
    run(results, "wandb", tmp_path / "out")
    name = trial_folder(results).name
    (path,) = (tmp_path / "out" / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb")
    records = list(wandb_records(path))
    (begun,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
    config = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert (begun.run_id, config["method"], config["budget.epochs"]) == (name, "lora-qv", 4.0)
    rows = [record.history for record in records if record.WhichOneof("record_type") == "history"]
    found = [{i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in row.item} for row in rows]
    curve = [(row["final/all/samples"], row["final/all/loss"]) for row in found if "final/all/loss" in row]
    assert curve == [(30 * (i + 1), value) for i, value in enumerate(LOSSES)]
    summaries = [record.summary for record in records if record.WhichOneof("record_type") == "summary"]
    last = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for s in summaries for i in s.update}
    assert last["final/blind/complete/accuracy"] == pytest.approx(final(results))
    again(results, "wandb", tmp_path / "out")
    no_secret(tmp_path)


def wandb_records(path: Path) -> Iterator[object]:
    """Records of an offline run: a 7-byte header, then LevelDB's log format in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    content, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # no header fits into what is left of the block
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # all of a record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record
