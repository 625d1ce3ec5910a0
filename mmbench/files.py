"""Writing files so that a reader never sees a part of one."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import uuid
from collections.abc import Iterable
from pathlib import Path

import platformdirs

from mmbench.errors import MMBenchError

MIB = 2**20


class RecordError(MMBenchError):
    """A record that cannot be read or written."""


class WriteError(RecordError):
    """A file that cannot be written: no space or quota is left, or the place is read-only.

    Nothing that was finished is lost by it, and it says nothing about the trial that met it.
    """


def no_room(error: BaseException) -> bool:
    """Whether an error says that nothing can be written where it was to be written."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    return isinstance(error, WriteError) or (isinstance(error, OSError) and error.errno in full)


def why_not_plain(path: Path, most_bytes: int | None = None, links: bool = False) -> str | None:
    """Why a path must not be opened: a device, a pipe, too large, or a link unless `links`; None if it may."""
    try:
        return _odd(path.stat() if links else path.lstat(), most_bytes)
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def read_plain(path: Path, most_bytes: int) -> bytes:
    """The content of a plain file that others may have put there, through links.

    Raises OSError for what has no end or is larger, as for what is not there.
    """
    reason = _odd(path.stat(), most_bytes)
    if reason is not None:
        raise OSError(errno.EINVAL, reason)
    with path.open("rb") as file:
        return file.read(most_bytes)


def _odd(found: os.stat_result, most_bytes: int | None) -> str | None:
    if stat.S_ISLNK(found.st_mode):
        return "a symbolic link; links are not followed"
    if not stat.S_ISREG(found.st_mode):
        return "no plain file"
    if most_bytes is not None and found.st_size > most_bytes:
        return f"{found.st_size / MIB:.0f} MiB; at most {most_bytes / MIB:g} MiB are read"
    return None


def write_atomic(path: Path, content: bytes) -> None:
    """Write aside, flush to the disk, rename: a reader sees the old file or the new one, never a part.

    Raises WriteError naming the file.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise WriteError(f"cannot write {path}: {error.strerror}; free some space or choose another folder") from None


def remove_remains(folder: Path, names: Iterable[str]) -> None:
    """Remove what writers that were killed left beside these files of a folder; no other may be at work there."""
    for name in names:
        for aside in folder.glob(f".{name}.????????"):
            aside.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """The folder and those above it, if they are not there; raises RecordError where a file is in the way."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecordError(f"cannot make the folder {path}: {error.strerror}; choose another") from None


def cache_folder() -> Path:
    """Where stores and backbones are kept: $MMBENCH_CACHE, else the user's cache folder."""
    return Path(os.environ.get("MMBENCH_CACHE") or platformdirs.user_cache_dir("mmbench"))
