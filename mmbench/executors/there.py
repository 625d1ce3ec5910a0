"""One trial on the machine a cluster chose: a fresh process that leaves when its task is asked to."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from mmbench.executors.base import ENTRY, GRACE_SECONDS
from mmbench.files import write_atomic
from mmbench.layout import STDERR

EXIT_CODE = "exit-code"
"""File beside the record that tells how the trial's process ended, for executors that learn it from nowhere else."""

ASKS = (signal.SIGTERM, signal.SIGUSR2)
"""What asks a task to leave: the second is sent by Slurm some time before a task's limit, as submitit orders."""


def run_there(folder: str, device: str, threads: int, variables: Mapping[str, str] | None = None) -> int:
    """Run the trial of a folder in a fresh process and return its exit code, which is also left beside the record."""
    place = Path(folder)
    environment = {**os.environ, **(variables or {})}
    environment.update(OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    (place / EXIT_CODE).unlink(missing_ok=True)

    def start() -> subprocess.Popen[bytes]:
        with (place / STDERR).open("wb") as stderr:
            return subprocess.Popen(
                [sys.executable, str(ENTRY), "trial", folder, "--device", device],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )

    with _forwarding(start) as process:
        code = _wait(process)
    write_atomic(place / EXIT_CODE, str(code).encode())
    return code


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Exit code; whatever ends the task ends the trial too, which may leave in order first."""
    try:
        return process.wait()
    except BaseException as error:
        process.terminate()
        try:
            code = process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if isinstance(error, KeyboardInterrupt):  # how Ray cancels a task
            return code
        raise


@contextlib.contextmanager
def _forwarding(start: Callable[[], subprocess.Popen[bytes]]) -> Iterator[subprocess.Popen[bytes]]:
    """The trial's process, which is told when this one is asked to leave; this one stays to tell how it ended."""
    if threading.current_thread() is not threading.main_thread():
        yield start()  # a signal handler belongs to the main thread
        return
    old = {number: signal.getsignal(number) for number in ASKS}
    try:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # inherited by the trial, which Slurm may signal by itself
        process = start()
        for number in ASKS:
            signal.signal(number, lambda number, frame: process.terminate())
        yield process
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
