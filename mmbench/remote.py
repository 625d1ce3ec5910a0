"""Results at a URL (s3://, gs://, ...): a local mirror in which trials run, and one copy that all machines share.

A trial is claimed there by an exclusive write, its files go up once it is done, and its marker goes up last, so that
the rules of a results folder hold for the URL: what has a marker is complete, and one process works at a trial.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import threading
import time
import uuid
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from mmbench.claims import HEARTBEAT_SECONDS, STALE_SECONDS, WATCH_SECONDS
from mmbench.errors import ConfigError
from mmbench.files import RecordError, make_folder, write_atomic
from mmbench.layout import PREDICTIONS, STATES
from mmbench.records import MARKER, RECORD

CLAIM = "claim.json"
TURN = ".claim.json.takeover"
OUTPUTS = (PREDICTIONS, STATES)
"""Files of a trial that a run may end without; those of a run before must not lie beside its record."""
LEFT_HERE = frozenset({CLAIM, "exit-code"})
"""Files of a trial's folder that concern one machine only."""
SENT = "sent"
"""Beside a mirror's trials: the marker of the record of each trial that the URL is known to have had."""
_FOLDED = re.compile(r"^([a-z][a-z0-9+.-]+):/+(?=[^/])")
_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,200}")


def url_of(out: Path) -> str | None:
    """The URL that a path of the command line stands for (a path folds its two slashes), or None for a folder."""
    text = out.as_posix()
    return _FOLDED.sub(r"\1://", text) if _FOLDED.match(text) else None


@dataclass
class Remote:
    """The shared copy of a results folder. Every call raises RecordError where the store cannot be reached."""

    url: str
    _files: Any
    _root: str
    _held: dict[str, str] = field(default_factory=dict)
    """Trial -> the token of this process's claim."""
    _stop: threading.Event = field(default_factory=threading.Event)
    _heart: threading.Thread | None = None

    def trials(self) -> frozenset[str]:
        """Ids of the trials that have a marker."""
        with self._named():
            self._files.invalidate_cache()
            found = self._files.glob(f"{self._root}/trials/*/{MARKER}")
        names = (path.split("/")[-2] for path in found)
        return frozenset(name for name in names if _SAFE.fullmatch(name))

    def markers(self) -> dict[str, bytes]:
        """Trial -> its marker."""
        paths = {self._place(trial, MARKER): trial for trial in sorted(self.trials())}
        if not paths:
            return {}
        with self._named():
            found = self._files.cat(list(paths), on_error="return")
            for content in found.values():
                if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                    raise content
        return {paths[path]: content for path, content in found.items() if isinstance(content, bytes)}

    def finished_record(self, trial: str) -> bytes | None:
        """The record of a trial that is done; None where it is missing or not the one of its marker."""
        with self._named(), contextlib.suppress(FileNotFoundError):
            self._files.invalidate_cache()
            marker, content = (self._files.cat_file(self._place(trial, name)) for name in (MARKER, RECORD))
            if _marker_of(content) == marker:
                return bytes(content)
        return None

    def pull(self, trial: str, folder: Path) -> bool:
        """Fetch a finished trial, its marker last; False if there is none, which leaves the folder as it is."""
        record = self.finished_record(trial)
        if record is None:
            return False
        make_folder(folder)
        (folder / MARKER).unlink(missing_ok=True)
        with self._named():
            names = [path.split("/")[-1] for path in self._files.ls(self._place(trial), detail=False)]
            for name in names:
                if _SAFE.fullmatch(name) and name not in (MARKER, RECORD, *LEFT_HERE):
                    write_atomic(folder / name, self._files.cat_file(self._place(trial, name)))
        for name in set(OUTPUTS).difference(names):
            (folder / name).unlink(missing_ok=True)
        write_atomic(folder / RECORD, record)
        note_sent(folder, _marker_of(record))
        write_atomic(folder / MARKER, _marker_of(record))
        return True

    def push(self, folder: Path) -> None:
        """Send a finished trial, its marker last. What is finished there stays; what is half there is replaced."""
        if self.finished_record(folder.name) is not None:
            return
        names = sorted(p.name for p in folder.iterdir() if p.is_file() and _SAFE.fullmatch(p.name))
        for name in set(OUTPUTS).difference(names):
            self._remove(self._place(folder.name, name))
        with self._named():
            for name in (*(n for n in names if n not in (MARKER, RECORD, *LEFT_HERE)), RECORD, MARKER):
                self._files.pipe_file(self._place(folder.name, name), (folder / name).read_bytes())
        note_sent(folder, (folder / MARKER).read_bytes())

    def put_aside(self, trial: str, marker: bytes) -> None:
        """Take this marker of a trial that is to run again; its record stays until the new one is written."""
        if self.get(f"trials/{trial}/{MARKER}") == marker:  # else another machine has run it again by now
            self._remove(self._place(trial, MARKER))

    def put(self, name: str, content: bytes) -> None:
        """A file beside the trials, like the suite."""
        with self._named():
            self._files.pipe_file(f"{self._root}/{name}", content)

    def get(self, name: str) -> bytes | None:
        with self._named():
            self._files.invalidate_cache()
            path = f"{self._root}/{name}"
            return self._files.cat_file(path) if self._files.exists(path) else None

    def claim(self, trial: str) -> bool:
        """Take a trial for this process; False if another one's heart still beats on it. Watches a doubted claim."""
        token = uuid.uuid4().hex
        for _ in range(2):  # the second try follows the removal of a dead claim
            if self._create(self._place(trial, CLAIM), _words(token)):
                self._held[trial] = token
                self._beat()
                return True
            owner = self._token(trial)
            if owner is not None and owner == self._held.get(trial):
                return True
            if not self._is_dead(trial):
                return False
            self._remove_dead(trial, owner)
        return False

    def release(self, trial: str) -> None:
        """Give a claim back, if it is still this process's."""
        token = self._held.pop(trial, None)
        if token is None:
            return
        if self._token(trial) == token:
            self._remove(self._place(trial, CLAIM))

    def close(self) -> None:
        """Give back all claims."""
        self._stop.set()
        if self._heart is not None:
            self._heart.join()
        for trial in list(self._held):
            self.release(trial)

    def _token(self, trial: str) -> str | None:
        """Whose claim it is now; another process may have taken it over while this one slept."""
        with self._named(), contextlib.suppress(FileNotFoundError, ValueError):
            self._files.invalidate_cache()
            content = json.loads(self._files.cat_file(self._place(trial, CLAIM)))
            return content.get("token") if isinstance(content, dict) else None
        return None

    def _create(self, path: str, content: bytes) -> bool:
        with self._named():
            try:
                self._files.pipe_file(path, content, mode="create")
            except FileExistsError:
                return False
            except OSError:
                self._files.invalidate_cache()
                if not self._files.exists(path):
                    raise
                return False
        return True

    def _is_dead(self, trial: str) -> bool:
        """Whether a claim has not been written anew for long, by the store's own clock, nor is while it is watched."""
        seen = self._written(self._place(trial, CLAIM))
        now = self._now()
        if seen is None or now is None:
            return seen is None
        if -HEARTBEAT_SECONDS <= (now - seen).total_seconds() <= STALE_SECONDS:
            return False
        deadline = time.monotonic() + WATCH_SECONDS
        while time.monotonic() < deadline:
            time.sleep(min(1.0, WATCH_SECONDS / 10))
            if self._written(self._place(trial, CLAIM)) != seen:
                return False
        return True

    def _remove_dead(self, trial: str, owner: str | None) -> None:
        """Remove a dead claim, one process at a time, and only if no other has taken it over by now."""
        turn = self._place(trial, TURN)
        if not self._create(turn, b""):
            taken, now = self._written(turn), self._now()
            if taken and now and (now - taken).total_seconds() > STALE_SECONDS:  # by one killed in the lines below
                self._remove(turn)
            return
        try:
            if self._token(trial) == owner:
                self._remove(self._place(trial, CLAIM))
        finally:
            self._remove(turn)

    def _remove(self, path: str) -> None:
        with self._named(), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(path)

    def _now(self) -> datetime | None:
        """By the store's clock."""
        probe = f"{self._root}/.clock-{uuid.uuid4().hex[:8]}"
        with self._named():
            self._files.pipe_file(probe, b"")
            now = self._written(probe)
            self._files.rm_file(probe)
        return now

    def _written(self, path: str) -> datetime | None:
        with self._named():
            try:
                self._files.invalidate_cache()
                found: datetime = self._files.modified(path)
            except FileNotFoundError:
                return None
        return found

    def _beat(self) -> None:
        if self._heart is None:
            self._heart = threading.Thread(target=self._beats, daemon=True)
            self._heart.start()

    def _beats(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            for trial, token in list(self._held.items()):
                # A store that does not answer now may at the next beat.
                with contextlib.suppress(RecordError), self._named():
                    if self._token(trial) == token:
                        self._files.pipe_file(self._place(trial, CLAIM), _words(token))

    def _place(self, trial: str, *names: str) -> str:
        return "/".join((self._root, "trials", trial, *names))

    @contextlib.contextmanager
    def _named(self) -> Any:
        try:
            yield
        except (FileNotFoundError, FileExistsError, RecordError):
            raise
        except Exception as error:  # each store has errors of its own
            said = " ".join(str(error).split())[:200] or type(error).__name__
            raise RecordError(f"results at {self.url} cannot be read or written: {said}") from None


def _marker_of(record: bytes) -> bytes:
    return hashlib.sha256(record).hexdigest().encode()


def note_sent(folder: Path, marker: bytes) -> None:
    """Remember that the URL had the record of this marker; without the note, a record has yet to go there."""
    make_folder(folder.parent.parent / SENT)
    write_atomic(folder.parent.parent / SENT / folder.name, marker)


def was_sent(folder: Path, marker: bytes) -> bool:
    try:
        return (folder.parent.parent / SENT / folder.name).read_bytes() == marker
    except OSError:
        return False


def _words(token: str) -> bytes:
    return json.dumps({"token": token, "host": socket.gethostname(), "pid": os.getpid()}).encode()


def open_remote(url: str) -> Remote:
    """Raises ConfigError for a protocol that is unknown or whose package is not installed."""
    import fsspec

    scheme = url.partition("://")[0]
    if scheme in ("http", "https"):
        raise ConfigError(f"results cannot be written to {url}: a claim needs a store with exclusive writes (s3, gs)")
    try:
        files, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise ConfigError(f"{url} needs a package that is not installed: {error}") from None
    except ValueError as error:
        raise ConfigError(f"no store of this kind: {url} ({error})") from None
    return Remote(url, files, root.rstrip("/"))
