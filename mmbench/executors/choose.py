"""The executor of a name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from mmbench.errors import ConfigError, UnknownNameError
from mmbench.executors.base import Executor, Share

EXECUTORS = ("local", "slurm", "ray")


@dataclass(frozen=True)
class Choice:
    """Where trials run."""

    name: str = "local"
    words: tuple[str, ...] = ()
    """KEY=VALUE options of the executor."""
    device: str | None = None
    """What the trials of a cluster run on, cpu or cuda; None for cpu."""
    devices: int = 1
    """Of each trial."""

    def __post_init__(self) -> None:
        if self.name not in EXECUTORS:
            raise UnknownNameError("executor", self.name, EXECUTORS)
        if self.name == "local" and self.words:
            raise ConfigError("executor local has no options; its workers are set by --workers and --device")


def make_executor(choice: Choice, workers: int | None, device: torch.device, out: Path) -> Executor:
    """Raises ConfigError where the machine, the extra or an option is missing."""
    if choice.name == "local":
        from mmbench.executors.local import LocalExecutor, local_slots

        return LocalExecutor(local_slots(device.type, workers, _gpus(device), _cores(), choice.devices))
    if workers is not None:
        raise ConfigError(f"--workers belongs to executor local; {choice.name} runs as many trials as it has room for")
    share = Share((choice.device or "cpu").partition(":")[0], 1, choice.devices)
    if choice.name == "slurm":
        from mmbench.executors.slurm import SlurmExecutor

        return SlurmExecutor(out / "slurm", share, choice.words)
    from mmbench.executors.ray import RayExecutor

    return RayExecutor(share, choice.words)


def _gpus(device: torch.device) -> tuple[str, ...]:
    """The GPU that was asked for by its number among those that are visible, else all of these."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]
    if device.type != "cuda" or device.index is None:
        return tuple(visible)
    if device.index >= len(visible):
        raise ConfigError(f"there is no device '{device}': {len(visible)} GPUs are visible, counted from 0")
    return (visible[device.index],)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
