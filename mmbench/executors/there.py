"""One trial on the machine a cluster chose: a fresh process that leaves when its task is asked to."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from mmbench.executors.base import ENTRY, GRACE_SECONDS
from mmbench.files import write_atomic
from mmbench.layout import STDERR

EXIT_CODE = "exit-code"
"""File beside the record that tells how the trial's process ended, for executors that learn it from nowhere else."""


def run_there(folder: str, device: str, threads: int, variables: Mapping[str, str] | None = None) -> int:
    """Run the trial of a folder in a fresh process and return its exit code, which is also left beside the record."""
    place = Path(folder)
    environment = {**os.environ, **(variables or {})}
    environment.update(OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    (place / EXIT_CODE).unlink(missing_ok=True)
    with (place / STDERR).open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, str(ENTRY), "trial", folder, "--device", device],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
    with _forwarding(process):
        code = _wait(process)
    write_atomic(place / EXIT_CODE, str(code).encode())
    return code


def _wait(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait()
    except KeyboardInterrupt:  # how Ray cancels a task
        process.terminate()
        try:
            return process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


@contextlib.contextmanager
def _forwarding(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Pass SIGTERM on to the trial; this process stays to tell how it ended."""
    if threading.current_thread() is not threading.main_thread():
        yield  # a signal handler belongs to the main thread
        return
    old = signal.signal(signal.SIGTERM, lambda number, frame: process.terminate())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)
