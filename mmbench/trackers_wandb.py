"""Trials as Weights & Biases runs, kept on disk until `wandb sync` is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import wandb

from mmbench.records import TrialRecord
from mmbench.trackers import Point

MODE = "offline"
"""Unless WANDB_MODE says otherwise."""


class WandbRun:
    def __init__(self, run: Any) -> None:
        self._run = run
        self._jobs: set[str] = set()

    def scalars(self, point: Point) -> None:
        """Each job counts its own samples, so it has an axis of its own."""
        axis = f"{point.job}/samples"
        if point.job not in self._jobs:
            self._jobs.add(point.job)
            self._run.define_metric(axis, hidden=True)
            for name in point.values:
                self._run.define_metric(f"{point.job}/{name}", step_metric=axis)
        self._run.log({axis: point.step, **{f"{point.job}/{name}": value for name, value in point.values.items()}})

    def end(self, status: str, scores: Mapping[str, float]) -> None:
        self._run.summary.update({"status": status, **{f"final/{name}": value for name, value in scores.items()}})
        self._run.finish(exit_code=0 if status == "ok" else 1)


class Wandb:
    def __init__(self, out: Path) -> None:
        self._out = out

    def start(self, trial: TrialRecord, settings: Mapping[str, Any]) -> WandbRun:
        # Nothing of the process that writes is kept: no command line, environment, code, console or machine load.
        quiet = wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            disable_job_creation=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        facts = trial.trial
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", facts.suite),
            id=facts.id,
            name=f"{facts.title}+{facts.regime} seed {facts.seed}",
            group=f"{facts.title}+{facts.regime}",
            config=dict(settings),
            dir=self._out,
            mode=_mode(),
            settings=quiet,
            reinit="finish_previous",
        )
        return WandbRun(run)


def _mode() -> Any:
    return os.environ.get("WANDB_MODE", MODE)


@contextmanager
def open_tracker(out: Path) -> Iterator[Wandb]:
    """A folder `wandb` of offline runs."""
    yield Wandb(out)
