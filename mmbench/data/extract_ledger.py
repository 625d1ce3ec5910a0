"""What an extraction has finished: a line a clip, written after the clip's files, read again by the next run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from mmbench.errors import ConfigError, DataError
from mmbench.files import WriteError
from mmbench.strict_json import read_events

try:
    import fcntl
except ImportError:  # no advisory locks on this system: two runs at once would do the same work twice
    fcntl = None  # type: ignore[assignment]

LEDGER = "extracted.jsonl"
SCHEMA = 1


@dataclass(frozen=True)
class Settings:
    """What all clips of a folder have in common."""

    frames: int
    seconds: float
    size: int


@dataclass(frozen=True, slots=True)
class Extracted:
    """A finished clip, and the video it came from."""

    id: str
    video: str
    stamp: tuple[int, int]
    """The video's size in bytes and time of change in nanoseconds."""
    start_s: float | None
    seconds: float
    """As listed: the names of the files tell less, and what is listed may be corrected."""
    bytes: int
    """Of all its files."""
    sha256: str
    """Of all its files, the sound first."""
    note: str


def files_of(id: str, frames: int) -> Iterator[str]:
    """The sound and the pictures of a clip, relative to the folder."""
    yield f"audio/{id}.wav"
    for number in range(frames):
        yield f"frames/frame_{number}/{id}.jpg"


class Ledger:
    """The file and what stands in it, for one process at a time.

    Raises DataError while another one holds it, ConfigError where the folder was begun with other settings.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._folder, self._settings = folder, settings
        self.done: dict[str, Extracted] = {}

    def __enter__(self) -> Ledger:
        path = self._folder / LEDGER
        self._file: IO[bytes] = path.open("a+b")
        try:
            self._lock(path)
            self._file.seek(0)
            content = self._file.read()
            events = read_events(content)
            begun = next(events, None)
            header = {"schema": SCHEMA, **asdict(self._settings)}
            if begun is None:
                self._append(header)
            elif begun != header:
                words = ", ".join(f"{key} {begun.get(key)}" for key in header)
                raise ConfigError(f"{self._folder} was begun with {words}; use the same, or choose another folder")
            elif not content.endswith(b"\n"):  # the end of a run that was killed
                self._file.write(b"\n")
            self.done = {entry.id: entry for entry in map(_entry, events) if entry is not None}
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *details: object) -> None:
        self._file.close()

    def _lock(self, path: Path) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gone with this process
        except BlockingIOError:
            raise DataError(f"another process is extracting into {path.parent}; wait for it to end") from None
        except OSError:  # some network file systems have no locks
            return

    def add(self, entry: Extracted) -> None:
        """Note a clip whose files are in place."""
        self._append(asdict(entry))
        self.done[entry.id] = entry

    def _append(self, event: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(event).encode("ascii") + b"\n")
            self._file.flush()
        except OSError as error:
            way_out = "free some space or choose another folder"
            raise WriteError(f"cannot write {self._folder / LEDGER}: {error.strerror}; {way_out}") from None

    def whole(self, entry: Extracted, every_byte: bool) -> bool:
        """Whether a clip's files are those that were noted, by their sizes or by all of their bytes."""
        paths = [self._folder / name for name in files_of(entry.id, self._settings.frames)]
        try:
            if every_byte:
                return sha256_of(path.read_bytes() for path in paths) == entry.sha256
            return sum(path.stat().st_size for path in paths) == entry.bytes
        except OSError:
            return False


def sha256_of(parts: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _entry(event: dict[str, Any]) -> Extracted | None:
    """None for a line of another kind: then the clip is made anew."""
    try:
        size, time = event["stamp"]
        return Extracted(**{**event, "stamp": (size, time)})
    except (TypeError, ValueError, KeyError):
        return None
