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

from mmbench.files import read_plain
from mmbench.layout import MARKER_BYTES

CLAIM = "claim.json"
HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 120.0
"""A claim of another host whose heart has not beaten for so long is doubted."""
WATCH_SECONDS = 25.0
"""How long a doubted claim is watched for a beat before it is taken over: clocks jump, and differ between hosts."""


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Hold the folder's claim while inside; yields False if another live process holds it."""
    mine = _take(folder)
    if mine is None:
        yield False
        return
    stop = threading.Event()
    heart = threading.Thread(target=_beat, args=(folder / CLAIM, mine, stop), daemon=True)
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
    return path.exists() and not _is_stale(path, 0.0)


def is_own(folder: Path) -> bool:
    """Whether this process holds the folder; one that slept for long may have lost it to another."""
    owner = _owner(folder / CLAIM)
    return bool(owner) and all(owner.get(name) == value for name, value in _identity().items())


def _take(folder: Path) -> str | None:
    path = folder / CLAIM
    for _ in range(2):  # the second try follows the removal of a stale claim
        token = uuid.uuid4().hex
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            if not _is_stale(path, WATCH_SECONDS):
                return None
            _remove_stale(path)
            continue
        try:
            with os.fdopen(handle, "w") as file:
                json.dump({"token": token, **_identity()}, file)
        except OSError:  # a full disk: an empty claim would hold the others up
            path.unlink(missing_ok=True)
            raise
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
        if _is_stale(path, 0.0):
            path.unlink(missing_ok=True)
    finally:
        turn.unlink(missing_ok=True)


def _is_stale(path: Path, watch_seconds: float) -> bool:
    """Whether the claim's process is gone; one of another host is watched before that is believed."""
    owner = _owner(path)
    if all(owner.get(name) == value for name, value in _place().items()):
        return _born(int(owner["pid"])) != owner.get("born")
    try:
        beat = path.stat().st_mtime
        age_seconds = _clock(path.parent) - beat
    except OSError:
        return False  # it is gone, or the folder takes no files: nothing to take over, the next try tells which
    if not owner:  # killed between creating and writing
        return age_seconds > HEARTBEAT_SECONDS
    if -HEARTBEAT_SECONDS <= age_seconds <= STALE_SECONDS:
        return False
    return not _beats(path, beat, watch_seconds)


def _clock(folder: Path) -> float:
    """Now, on the clock of the folder's file system, which sets the times of all hosts' claims."""
    probe = folder / f".{CLAIM}.{uuid.uuid4().hex[:8]}"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _beats(path: Path, beat: float, seconds: float) -> bool:
    """Whether the claim is touched, or given back, within so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(min(1.0, seconds / 10))
        try:
            if path.stat().st_mtime != beat:
                return True
        except OSError:
            return True
    return False


def _owner(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_plain(path, MARKER_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    pid = content.get("pid") if isinstance(content, dict) else None
    return content if isinstance(pid, int) and 0 < pid < 2**31 else {}


def _identity() -> dict[str, Any]:
    """What tells this process from all others."""
    return {**_place(), "pid": os.getpid(), "born": _born(os.getpid())}


def _place() -> dict[str, str]:
    """Where process ids mean the same: containers may share a host's name, and hosts of two clusters theirs."""
    place = {"host": socket.gethostname()}
    with contextlib.suppress(OSError):  # not on every system
        place["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with contextlib.suppress(OSError):
        place["pids"] = str(Path("/proc/self/ns/pid").readlink())
    return place


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


def _beat(path: Path, token: str, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS) and _owner(path).get("token") in (token, None):
        with contextlib.suppress(OSError):
            os.utime(path)
