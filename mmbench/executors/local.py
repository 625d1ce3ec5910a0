"""Runs each trial in a fresh process on this machine: honest peak memory, and a crash ends one trial only."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from mmbench.environment import WORKERS
from mmbench.errors import ConfigError
from mmbench.executors.base import ENTRY, GRACE_SECONDS, Finished, tail
from mmbench.executors.workers import Template, Worker, end, execute
from mmbench.layout import STDERR

PRELOAD = ("mmbench.cli", "mmbench.run")
"""What every trial imports. A method's own libraries are left to its trials: a peak of memory counts them where they
are used, and only there."""


@dataclass(frozen=True)
class Slot:
    """A place for one worker."""

    device: str
    """cpu or cuda."""
    gpu: str | None
    """As CUDA_VISIBLE_DEVICES names it, or several of them."""
    threads: int
    """Of each of its devices."""


class LocalExecutor:
    """A fixed number of slots; a slot holds one worker process at a time.

    On Linux, workers on CPUs are forked from a process that has imported the engine. CUDA does not survive a fork,
    so workers on GPUs start an interpreter of their own, and so do all once that process has died.
    """

    def __init__(self, slots: tuple[Slot, ...]) -> None:
        self._free = list(slots)
        self._workers = len(slots)
        self._running: dict[Path, tuple[Worker, Slot]] = {}
        self._templates: dict[Slot, Template] = {}

    def has_room(self) -> bool:
        return bool(self._free)

    def running(self) -> tuple[Path, ...]:
        return tuple(self._running)

    def submit(self, folder: Path) -> None:
        slot = self._free.pop(0)
        argv = [str(ENTRY), "trial", str(folder), "--device", slot.device]
        self._running[folder] = (self._start(slot, argv, folder / STDERR), slot)

    def _start(self, slot: Slot, argv: list[str], stderr: Path) -> Worker:
        environment = {**os.environ, "OMP_NUM_THREADS": str(slot.threads), "MKL_NUM_THREADS": str(slot.threads)}
        environment[WORKERS] = str(self._workers)
        if slot.gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = slot.gpu
        if slot.device == "cpu" and sys.platform == "linux":
            if slot not in self._templates:
                self._templates[slot] = Template(PRELOAD, environment)
            if self._templates[slot].alive():
                return self._templates[slot].start(argv, stderr)
        return execute(argv, stderr, environment)

    def collect(self) -> list[Finished]:
        """Workers that ended since the last call."""
        ended = []
        for folder, (worker, slot) in list(self._running.items()):
            code = worker.poll()
            if code is not None:
                del self._running[folder]
                self._free.append(slot)
                ended.append(Finished(folder, code, tail(folder / STDERR)))
        return ended

    def stop(self) -> None:
        """End all workers: SIGTERM first, so that they give back their claims; SIGKILL after the grace."""
        end([worker for worker, _ in self._running.values()], GRACE_SECONDS)
        self._running.clear()
        for template in self._templates.values():
            template.close()
        self._templates.clear()


def local_slots(
    device: str, workers: int | None, gpus: tuple[str, ...], cores: int, devices: int = 1
) -> tuple[Slot, ...]:
    """One slot for every `devices` GPUs; on CPUs, where a process is a device, up to four that share the cores evenly.

    Raises ConfigError where a trial needs more GPUs than there are.
    """
    if device == "cuda":
        if devices > len(gpus):
            raise ConfigError(f"budget.devices asks for {devices} GPUs a trial, and there are {len(gpus)}; lower it")
        count = workers or len(gpus) // devices
        mine = [[gpus[(i * devices + j) % len(gpus)] for j in range(devices)] for i in range(count)]
        return tuple(Slot("cuda", ",".join(each), max(1, cores // (count * devices))) for each in mine)
    count = workers or max(1, min(cores, 4) // devices)
    return tuple(Slot("cpu", None, max(1, cores // (count * devices))) for _ in range(count))
