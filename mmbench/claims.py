"""One worker per trial folder: a claim is a file created atomically, so it holds on network file systems too."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CLAIM = "claim.json"
HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 120.0
"""A claim of another host whose heart has not beaten for so long is taken over."""


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Hold the folder's claim while inside; yields False if another live process holds it."""
    mine = _take(folder)
    if mine is None:
        yield False
        return
    stop = threading.Event()
    heart = threading.Thread(target=_beat, args=(folder / CLAIM, stop), daemon=True)
    heart.start()
    try:
        yield True
    finally:
        stop.set()
        heart.join()
        if _owner(folder / CLAIM).get("token") == mine:
            (folder / CLAIM).unlink(missing_ok=True)


def is_claimed(folder: Path) -> bool:
    """Whether a live process holds the folder."""
    path = folder / CLAIM
    return path.exists() and not _is_stale(path)


def _take(folder: Path) -> str | None:
    path = folder / CLAIM
    for _ in range(2):  # the second try follows the removal of a stale claim
        token = uuid.uuid4().hex
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            if not _is_stale(path):
                return None
            _remove_stale(path)
            continue
        with os.fdopen(handle, "w") as file:
            json.dump(
                {"token": token, "host": socket.gethostname(), "pid": os.getpid(), "born": _born(os.getpid())}, file
            )
        return token
    return None


def _remove_stale(path: Path) -> None:
    """Remove a stale claim, one process at a time, and only if it is still stale once it is this one's turn."""
    turn = path.with_name(f".{CLAIM}.takeover")
    try:
        os.close(os.open(turn, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    except FileExistsError:
        with contextlib.suppress(OSError):  # left behind by a process that was killed in the few lines below
            if time.time() - turn.stat().st_mtime > HEARTBEAT_SECONDS:
                turn.unlink()
        return
    try:
        if _is_stale(path):
            path.unlink(missing_ok=True)
    finally:
        turn.unlink(missing_ok=True)


def _is_stale(path: Path) -> bool:
    owner = _owner(path)
    try:
        age_seconds = time.time() - path.stat().st_mtime
    except OSError:
        return False  # it is gone: nothing to take over, the next try creates it
    if not owner:  # killed between creating and writing
        return age_seconds > HEARTBEAT_SECONDS
    if owner.get("host") == socket.gethostname():
        return _born(int(owner["pid"])) != owner.get("born")
    return age_seconds > STALE_SECONDS


def _owner(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and "pid" in content else {}


def _born(pid: int) -> str | None:
    """Start time of a process, which tells it from a later one with the same id; None if it does not run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in ("Z", "X") else fields[19]
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(path)
