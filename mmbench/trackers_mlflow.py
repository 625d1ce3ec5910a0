"""Trials as MLflow runs in a SQLite file; an experiment a suite."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when the package is imported

from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from mmbench.records import TrialRecord
from mmbench.trackers import Point

LONGEST_PARAM = 6000
BATCH = 1000
"""MLflow's limits: characters of a parameter, metrics of one call."""


class MlflowRun:
    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client, self._run_id = client, run_id
        self._metrics: list[Metric] = []

    def scalars(self, point: Point) -> None:
        when = round(1000 * point.time)
        self._metrics += [Metric(_key(f"{point.job}/{k}"), v, when, point.step) for k, v in point.values.items()]

    def end(self, status: str, scores: Mapping[str, float]) -> None:
        when = max((metric.timestamp for metric in self._metrics), default=0)
        self._metrics += [Metric(_key(f"final/{name}"), value, when, 0) for name, value in scores.items()]
        for begin in range(0, len(self._metrics), BATCH):
            self._client.log_batch(self._run_id, metrics=self._metrics[begin : begin + BATCH])
        self._client.set_tag(self._run_id, "status", status)
        self._client.set_terminated(self._run_id, "FINISHED" if status == "ok" else "FAILED")


class Mlflow:
    def __init__(self, out: Path) -> None:
        self._client = MlflowClient(f"sqlite:///{out.resolve() / 'mlflow.db'}")
        self._artifacts = (out.resolve() / "mlflow-artifacts").as_uri()

    def start(self, trial: TrialRecord, settings: Mapping[str, Any]) -> MlflowRun:
        facts = trial.trial
        found = self._client.get_experiment_by_name(facts.suite)
        experiment = found.experiment_id if found else self._client.create_experiment(facts.suite, self._artifacts)
        for old in self._client.search_runs([experiment], f"tags.trial = '{facts.id}'"):
            self._client.delete_run(old.info.run_id)  # of a trial that has been run again, or written in part
        name = f"{facts.title}+{facts.regime} seed {facts.seed}"
        run = self._client.create_run(experiment, tags={"trial": facts.id}, run_name=name)
        params = [Param(_key(key), str(value)[:LONGEST_PARAM]) for key, value in settings.items()]
        self._client.log_batch(run.info.run_id, params=params[:100], tags=[RunTag("date", trial.environment.date)])
        return MlflowRun(self._client, run.info.run_id)


def _key(name: str) -> str:
    """MLflow takes letters, digits, and these signs in names."""
    return re.sub(r"[^\w./ -]", "_", name)


@contextmanager
def open_tracker(out: Path) -> Iterator[Mlflow]:
    """A file for `mlflow ui --backend-store-uri sqlite:///OUT/mlflow.db`."""
    yield Mlflow(out)
