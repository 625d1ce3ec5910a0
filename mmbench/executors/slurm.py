"""Trials as tasks of Slurm job arrays, handed over through submitit.

What became of a task is read from the queue and from the trial's folder, not from the scheduler's accounting, which
many clusters do not have.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmbench.errors import ConfigError
from mmbench.executors.base import Finished, Share, parse_options, tail
from mmbench.executors.there import EXIT_CODE, run_there
from mmbench.layout import STDERR
from mmbench.records import is_done

OPTIONS: dict[str, type] = {
    "partition": str,
    "account": str,
    "qos": str,
    "constraint": str,
    "exclude": str,
    "nodelist": str,
    "mem_gb": int,
    "cpus": int,
    "time_minutes": int,
    "max_parallel": int,
    "poll_seconds": int,
}
PORTION = 500
"""Tasks of one array; Slurm takes 1000 unless it is told otherwise. The next follows once fewer than `max_parallel` of
those that were handed over are left."""
LOST = -9
"""Exit code told of a task that left the queue without a word: cancelled, killed, or its node died."""
SETTLE_SECONDS = 30.0
"""How long a task that left the queue may take to become visible on a shared file system."""


class SlurmExecutor:
    """Submits what has gathered since the last look as one job array.

    Raises ConfigError where there is no Slurm or no submitit, or where sbatch refuses.
    """

    def __init__(self, logs: Path, share: Share, words: tuple[str, ...], settle_seconds: float = SETTLE_SECONDS):
        options = parse_options(words, OPTIONS, "slurm")
        self._share = replace(share, threads=int(options.get("cpus", share.threads)))
        self._poll_seconds = float(options.get("poll_seconds", 10))
        self._settle_seconds = settle_seconds
        self._parallel = int(options.setdefault("max_parallel", 256))
        self._submitit = _submitit_executor(logs, self._share, options)
        self._refused = ""
        self._tried = 0.0
        self._gathered: list[Path] = []
        self._jobs: dict[str, Path] = {}
        self._gone: dict[str, float] = {}  # job -> when it was first missed in the queue
        self._looked = 0.0

    def has_room(self) -> bool:
        return len(self._gathered) < PORTION and len(self._jobs) < self._parallel

    def running(self) -> tuple[Path, ...]:
        return (*self._gathered, *self._jobs.values())

    def submit(self, folder: Path) -> None:
        (folder / EXIT_CODE).unlink(missing_ok=True)
        self._gathered.append(folder)

    def collect(self) -> list[Finished]:
        if self._gathered and not (self._refused and time.monotonic() - self._tried < self._poll_seconds):
            self._hand_over()
        if not self._jobs or time.monotonic() - self._looked < self._poll_seconds:
            return []
        self._looked = time.monotonic()
        queued = _queue()
        if queued is None:  # the controller does not answer; its jobs go on
            return []
        return [self._finish(job) for job in list(self._jobs) if job not in queued and self._settled(job)]

    def _hand_over(self) -> None:
        folders = [str(folder.resolve()) for folder in self._gathered]
        device, threads = self._share.device, self._share.threads
        count = len(folders)
        try:
            jobs = self._submitit.map_array(run_there, folders, [device] * count, [threads] * count)
        except Exception as error:
            self._refuse(_last_line(error))
            return
        self._refused = ""
        self._jobs.update({job.job_id: folder for job, folder in zip(jobs, self._gathered, strict=True)})
        self._gathered = []

    def _refuse(self, why: str) -> None:
        """Tried again while other tasks run, which must not end for a full queue or a controller that restarts."""
        if not self._jobs:
            raise ConfigError(f"Slurm did not take the job: {why}; see --executor-option")
        if why != self._refused:
            warnings.warn(f"Slurm did not take {len(self._gathered)} trials, which wait: {why}", stacklevel=2)
        self._refused, self._tried = why, time.monotonic()

    def _settled(self, job: str) -> bool:
        """Whether nothing more is to be expected from a task that left the queue."""
        folder = self._jobs[job]
        if is_done(folder) or (folder / EXIT_CODE).is_file():
            return True
        missed = self._gone.setdefault(job, time.monotonic())
        return time.monotonic() - missed >= self._settle_seconds

    def _finish(self, job: str) -> Finished:
        folder = self._jobs.pop(job)
        self._gone.pop(job, None)
        try:
            return Finished(folder, int((folder / EXIT_CODE).read_text()), tail(folder / STDERR))
        except (OSError, ValueError):
            return Finished(folder, LOST, f"Slurm task {job} left the queue without telling how it ended")

    def stop(self) -> None:
        """Cancel every task; Slurm itself sends SIGTERM, and SIGKILL after its KillWait."""
        self._gathered = []
        if self._jobs:
            subprocess.run(["scancel", *{job.partition("_")[0] for job in self._jobs}], check=False, timeout=60)
        self._jobs = {}


def _submitit_executor(logs: Path, share: Share, options: dict[str, str | int]) -> Any:
    if shutil.which("sbatch") is None:
        raise ConfigError("there is no sbatch on this machine; start on a node that submits to Slurm")
    try:
        import submitit
    except ImportError:
        raise ConfigError('executor slurm needs submitit: pip install "mmbench[slurm]"') from None
    logs.mkdir(parents=True, exist_ok=True)
    executor = submitit.SlurmExecutor(folder=logs)
    parameters: dict[str, Any] = {
        "job_name": "mmbench",
        "cpus_per_task": share.cores,
        "time": int(options.get("time_minutes", 24 * 60)),
        "array_parallelism": int(options["max_parallel"]),
        "stderr_to_stdout": True,
    }
    if share.gpus:
        parameters["gpus_per_node"] = share.gpus
    if "mem_gb" in options:
        parameters["mem"] = f"{options['mem_gb']}GB"
    named = ("partition", "account", "qos", "constraint", "exclude", "nodelist")
    extra = {key: options[key] for key in named if key in options}
    parameters["additional_parameters"] = extra
    executor.update_parameters(**parameters)
    return executor


def _queue() -> frozenset[str] | None:
    """Ids of this user's tasks that wait or run; None if the controller cannot be asked."""
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--user={os.getuid()}"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return frozenset(found.stdout.split()) if found.returncode == 0 else None


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
