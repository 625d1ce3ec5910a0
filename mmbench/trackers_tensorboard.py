"""Trials as TensorBoard runs: one folder of event files a trial."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from mmbench.records import TrialRecord
from mmbench.trackers import Point


class TensorBoardRun:
    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        if folder.exists():  # of a trial that has been run again, or written in part
            shutil.rmtree(folder)
        self._writer: Any = SummaryWriter(str(folder))
        lines = "\n".join(f"    {key} = {value}" for key, value in settings.items())  # indented: shown as it stands
        self._writer.add_text("settings", lines)

    def scalars(self, point: Point) -> None:
        for name, value in point.values.items():
            self._writer.add_scalar(f"{point.job}/{name}", value, point.step, walltime=point.time)

    def end(self, status: str, scores: Mapping[str, float]) -> None:
        for name, value in scores.items():
            self._writer.add_scalar(f"final/{name}", value, 0)
        self._writer.add_text("status", status)
        self._writer.close()


class TensorBoard:
    def __init__(self, out: Path) -> None:
        self._out = out

    def start(self, trial: TrialRecord, settings: Mapping[str, Any]) -> TensorBoardRun:
        return TensorBoardRun(self._out / "tensorboard" / trial.trial.id, settings)


@contextmanager
def open_tracker(out: Path) -> Iterator[TensorBoard]:
    """A folder for `tensorboard --logdir OUT/tensorboard`."""
    yield TensorBoard(out)
