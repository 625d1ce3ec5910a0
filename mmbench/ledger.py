"""What a training used, counted while it runs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

WARMUP_STEPS = 3
"""Training steps left out of the step time: allocator, autotuning and first-touch costs."""


@dataclass
class StepTimes:
    """Durations of optimiser steps; the first ones and those in which something was compiled are warm-up."""

    seconds: list[float] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    compiling: set[int] = field(default_factory=set)
    """Steps in which something was compiled."""
    build_seconds: float = 0.0
    """Spent on what all steps read, such as the outputs of frozen encoders."""
    built: set[str] = field(default_factory=set)
    """What that was."""

    def add(self, seconds: float, samples: int, compiled: bool = False) -> None:
        if compiled:
            self.compiling.add(len(self.seconds))
        self.seconds.append(seconds)
        self.samples.append(samples)

    def add_build(self, name: str, seconds: float) -> None:
        """Counted once: what a resumed run builds again is no cost of the training."""
        if name not in self.built:
            self.built.add(name)
            self.build_seconds += seconds

    def state_dict(self) -> dict[str, Any]:
        return {
            "seconds": torch.tensor(self.seconds, dtype=torch.float64),
            "samples": torch.tensor(self.samples, dtype=torch.int64),
            "compiling": sorted(self.compiling),
            "build_seconds": self.build_seconds,
            "built": sorted(self.built),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seconds, self.samples = state["seconds"].tolist(), state["samples"].tolist()
        self.compiling, self.built = set(state["compiling"]), set(state["built"])
        self.build_seconds = state["build_seconds"]

    def _steady(self) -> tuple[list[float], list[int]]:
        skip = WARMUP_STEPS if len(self.seconds) > WARMUP_STEPS else 0
        steady = [step for step in range(skip, len(self.seconds)) if step not in self.compiling]
        return [self.seconds[step] for step in steady], [self.samples[step] for step in steady]

    def epoch_seconds(self, train_samples: int) -> float | None:
        """Training-step time of one pass over `train_samples`, with its share of what was built for all steps."""
        seconds, samples = self._steady()
        if not samples:
            return None
        return (sum(seconds) / sum(samples) + self.build_seconds / sum(self.samples)) * train_samples

    def median(self) -> float | None:
        seconds, _ = self._steady()
        return statistics.median(seconds) if seconds else None

    def std(self) -> float | None:
        seconds, _ = self._steady()
        return statistics.stdev(seconds) if len(seconds) > 1 else None


@dataclass
class Ledger:
    """What a training used, counted while it runs."""

    times: StepTimes = field(default_factory=StepTimes)
    samples: int = 0
    optimizer_bytes: int = 0
    micro_batch: int = 0
    """Samples in memory at once, in the end; 0 for a method that does not train."""

    def state_dict(self) -> dict[str, Any]:
        return {**vars(self), "times": self.times.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.times.load_state_dict(state["times"])
        vars(self).update({**state, "times": self.times})
