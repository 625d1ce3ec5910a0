"""Runs each trial in a fresh process on this machine: honest peak memory, and a crash ends one trial only."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from mmbench.environment import WORKERS
from mmbench.registry import ROOT

GRACE_SECONDS = 30.0
"""How long a trial may take to leave after SIGTERM before it is killed."""
BUSY = 75
"""Exit code of a worker that found its trial claimed by another process."""
INTERRUPTED = 130
"""Exit code of a worker that was asked to stop; its trial has no record and runs again."""
STDERR = "stderr.txt"


@dataclass(frozen=True)
class Finished:
    """A worker process that ended."""

    folder: Path
    code: int
    """Exit code; negative is the signal that ended it."""
    stderr: str
    """The last lines it wrote."""


@dataclass(frozen=True)
class Slot:
    """A place for one worker."""

    device: str
    """cpu or cuda."""
    gpu: str | None
    threads: int


class LocalExecutor:
    """A fixed number of slots; a slot holds one worker process at a time."""

    def __init__(self, slots: tuple[Slot, ...]) -> None:
        self._free = list(slots)
        self._workers = len(slots)
        self._running: dict[Path, tuple[subprocess.Popen[bytes], Slot]] = {}

    def has_room(self) -> bool:
        return bool(self._free)

    def running(self) -> tuple[Path, ...]:
        return tuple(self._running)

    def submit(self, folder: Path) -> None:
        slot = self._free.pop(0)
        environment = {**os.environ, "OMP_NUM_THREADS": str(slot.threads), "MKL_NUM_THREADS": str(slot.threads)}
        environment[WORKERS] = str(self._workers)
        if slot.gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = slot.gpu
        # The file, not `-m`: that would put the current folder first on the path, where another `methods` may lie.
        command = [sys.executable, str(ROOT / "mmbench" / "__main__.py"), "trial", str(folder), "--device", slot.device]
        with (folder / STDERR).open("wb") as stderr:
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,  # Ctrl-C reaches the sweep alone, which then asks its workers to stop
            )
        self._running[folder] = (process, slot)

    def collect(self) -> list[Finished]:
        """Workers that ended since the last call."""
        ended = []
        for folder, (process, slot) in list(self._running.items()):
            code = process.poll()
            if code is not None:
                del self._running[folder]
                self._free.append(slot)
                ended.append(Finished(folder, code, _tail(folder / STDERR)))
        return ended

    def stop(self) -> None:
        """End all workers: SIGTERM first, so that they give back their claims; SIGKILL after the grace."""
        for process, _ in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        for process, _ in self._running.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()


def _tail(path: Path, size: int = 2000) -> str:
    try:
        return path.read_bytes()[-size:].decode("utf-8", "replace")
    except OSError:
        return ""


def local_slots(device: str, workers: int | None, gpus: tuple[str, ...], cores: int) -> tuple[Slot, ...]:
    """One slot a GPU; on CPUs up to four slots that share the cores evenly."""
    if device == "cuda":
        count = workers or len(gpus)
        return tuple(Slot("cuda", gpus[i % len(gpus)], max(1, cores // count)) for i in range(count))
    count = workers or min(cores, 4)
    return tuple(Slot("cpu", None, max(1, cores // count)) for _ in range(count))
