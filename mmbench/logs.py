"""Logs that cannot fill a disk: of one that outgrows its limit the beginning and the end are kept."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path

STDERR_BYTES = 2**20
EVENTS_BYTES = 2**24
"""More than a hundred thousand epochs."""
LOOK_SECONDS = 0.5


def shorten(path: Path, limit_bytes: int, words: str) -> None:
    """Cut the middle out of a file beyond its limit: up to a quarter of the limit stays at each end, in whole lines.

    In place, so that it needs no space and whoever appends to the file goes on; `words` stand where lines are missing.
    """
    quarter = limit_bytes // 4
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        if size <= limit_bytes:
            return
        file.seek(0)
        head = file.read(quarter)
        head = head[: head.rfind(b"\n") + 1] or head
        file.seek(size - quarter)
        tail = file.read(quarter)
        file.seek(len(head))
        cut = words.encode() if head.endswith(b"\n") else b"\n" + words.encode()
        file.write(cut + b"\n" + tail[tail.find(b"\n") + 1 :])
        file.truncate()


@contextlib.contextmanager
def bounded_stderr(path: Path, limit_bytes: int = STDERR_BYTES) -> Iterator[None]:
    """Keep what this process and its children write to stderr within bounds, if it goes to this file."""
    if not _goes_to(path):
        yield
        return
    # Without this, whoever writes next would write where the file ended before, and leave a hole.
    fcntl.fcntl(2, fcntl.F_SETFL, fcntl.fcntl(2, fcntl.F_GETFL) | os.O_APPEND)
    stop = threading.Event()
    watch = threading.Thread(target=_watch, args=(path, limit_bytes, stop), daemon=True)
    watch.start()
    try:
        yield
    finally:
        stop.set()
        watch.join()
        _look(path, limit_bytes)


def _goes_to(path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(2), path.stat())
    except OSError:
        return False


def _watch(path: Path, limit_bytes: int, stop: threading.Event) -> None:
    while not stop.wait(LOOK_SECONDS):
        _look(path, limit_bytes)


def _look(path: Path, limit_bytes: int) -> None:
    with contextlib.suppress(OSError):
        shorten(path, limit_bytes, f"[lines are left out here: this log grew beyond {limit_bytes} bytes]")
