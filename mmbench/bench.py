"""What a trial carries through its phases: device, clock, deadline and the event log."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mmbench.backbone.compiling import CompileWatch
from mmbench.config import Budget
from mmbench.errors import ConfigError, OverBudgetError
from mmbench.logs import EVENTS_BYTES, shorten
from mmbench.meta_pass import MetaPass
from mmbench.meter import Clock
from mmbench.ranks import ALONE, Ranks
from mmbench.resume import Keeper


@dataclass(frozen=True)
class Bench:
    """Shared by training and evaluation; knows no method."""

    device: torch.device
    budget: Budget
    clock: Clock
    log: Callable[..., None] = field(default=lambda **row: None)
    """Writes one row of events."""
    keeper: Keeper = field(default_factory=Keeper)
    """Keeps the progress of trainings."""
    ranks: Ranks = ALONE

    def check_deadline(self) -> None:
        """Raises OverBudgetError once the trial has used its wall clock."""
        minutes = self.budget.wall_clock_minutes
        if minutes is not None and self.ranks.any(self.clock.elapsed() > 60 * minutes)[0]:
            raise OverBudgetError(f"the budget's {minutes:g} minutes of wall clock ran out")

    def compile_watch(self) -> CompileWatch:
        """For around a training step: what is compiled in it is no training, but setup."""
        return CompileWatch(self.budget.compile, partial(self.clock.phase, "setup"))

    def autocast(self) -> AbstractContextManager[object]:
        """The budget's precision for a forward pass."""
        lower = self.budget.precision == "bf16"
        if self.device.type == "meta":
            return MetaPass(lower)
        return torch.autocast(self.device.type, torch.bfloat16, enabled=lower)


class EventLog:
    """Appends a JSON line per event; each line is flushed, so a killed trial keeps what it wrote.

    The file stays within bounds, and where it cannot be written (no space is left) an event is lost, not the trial.
    """

    def __init__(self, path: Path, echo: Callable[[dict[str, Any]], None] | None = None) -> None:
        self._path = path
        self._echo = echo

    def keep(self, size_bytes: int) -> None:
        """Begin anew, or go on after the first `size_bytes` of an earlier run."""
        with contextlib.suppress(OSError):
            if size_bytes and self._path.stat().st_size >= size_bytes:
                os.truncate(self._path, size_bytes)
            elif not size_bytes:
                self._path.unlink(missing_ok=True)

    def __call__(self, **row: Any) -> None:
        row = {"time": round(time.time(), 3), **row}
        with contextlib.suppress(OSError):
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
            if self._path.stat().st_size > EVENTS_BYTES:
                shorten(self._path, EVENTS_BYTES, json.dumps({"time": row["time"], "event": "left-out"}))
        if self._echo:
            self._echo(row)


def pick_device(wanted: str | None = None) -> torch.device:
    """The device asked for, or the GPU if there is one. Raises ConfigError if it is not here."""
    name = wanted or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"no device '{name}'; use cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device '{name}' is not supported; use cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device '{name}' was asked for, but torch sees no CUDA device; use cpu or check the driver")
    return device
