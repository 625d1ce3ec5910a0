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
from mmbench.files import RecordError, cache_folder, make_folder, write_atomic
from mmbench.layout import SUITE
from mmbench.records import MARKER, RECORD, is_done

CLAIM = "claim.json"
LEFT_HERE = frozenset({CLAIM, "exit-code"})
"""Files of a trial's folder that concern one machine only."""
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

    def is_done(self, trial: str) -> bool:
        with self._named():
            self._files.invalidate_cache()
            return bool(self._files.exists(self._place(trial, MARKER)))

    def pull(self, trial: str, folder: Path) -> bool:
        """Fetch a finished trial, its marker last; False if its record is not the one its marker was written for."""
        make_folder(folder)
        with self._named():
            self._files.invalidate_cache()
            names = [path.split("/")[-1] for path in self._files.ls(self._place(trial), detail=False)]
            wanted = [name for name in names if _SAFE.fullmatch(name) and name not in (MARKER, *LEFT_HERE)]
            for name in (*wanted, MARKER):
                write_atomic(folder / name, self._files.cat_file(self._place(trial, name)))
        if not is_done(folder):
            (folder / MARKER).unlink(missing_ok=True)
            return False
        return True

    def push(self, folder: Path) -> None:
        """Send a finished trial, its marker last. What is there already stays."""
        if self.is_done(folder.name):
            return
        names = sorted(p.name for p in folder.iterdir() if p.is_file() and _SAFE.fullmatch(p.name))
        with self._named():
            for name in (*(n for n in names if n not in (MARKER, RECORD, *LEFT_HERE)), RECORD, MARKER):
                self._files.pipe_file(self._place(folder.name, name), (folder / name).read_bytes())

    def put_aside(self, trial: str) -> None:
        """Take the marker of a trial that is to run again; its record stays until the new one is written."""
        with self._named(), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self._place(trial, MARKER))

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
            if self._create(trial, token):
                self._held[trial] = token
                self._beat()
                return True
            if not self._is_dead(trial):
                return False
            with self._named(), contextlib.suppress(FileNotFoundError):
                self._files.rm_file(self._place(trial, CLAIM))
        return False

    def release(self, trial: str) -> None:
        """Give a claim back, if it is still this process's."""
        token = self._held.pop(trial, None)
        if token is None:
            return
        with self._named(), contextlib.suppress(FileNotFoundError):
            if self._token(trial) == token:
                self._files.rm_file(self._place(trial, CLAIM))

    def close(self) -> None:
        """Give back all claims."""
        self._stop.set()
        if self._heart is not None:
            self._heart.join()
        for trial in list(self._held):
            self.release(trial)

    def _token(self, trial: str) -> str | None:
        """Whose claim it is now; another process may have taken it over while this one slept."""
        self._files.invalidate_cache()
        try:
            content = json.loads(self._files.cat_file(self._place(trial, CLAIM)))
        except ValueError:
            return None
        return content.get("token") if isinstance(content, dict) else None

    def _create(self, trial: str, token: str) -> bool:
        with self._named():
            try:
                self._files.pipe_file(self._place(trial, CLAIM), _words(token), mode="create")
            except FileExistsError:
                return False
            except OSError:
                self._files.invalidate_cache()
                if not self._files.exists(self._place(trial, CLAIM)):
                    raise
                return False
        return True

    def _is_dead(self, trial: str) -> bool:
        """Whether a claim has not been written anew for long, by the store's own clock, nor is while it is watched."""
        seen = self._written(self._place(trial, CLAIM))
        probe = f"{self._root}/.clock-{uuid.uuid4().hex[:8]}"
        with self._named():
            self._files.pipe_file(probe, b"")
            now = self._written(probe)
            self._files.rm_file(probe)
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
                with contextlib.suppress(RecordError, FileNotFoundError), self._named():
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


def mirror_folder(url: str, cache: Path) -> Path:
    """Where the trials of a URL run and its records are read."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", url.partition("://")[2]).strip(".-")[-60:]
    return cache / "results" / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"


def mirror_of(folder: Path) -> Path:
    """The folder itself, or for the URL it stands for its mirror with all that is finished there."""
    url = url_of(folder)
    if url is None:
        return folder
    mirror = mirror_folder(url, cache_folder())
    pull_all(open_remote(url), mirror)
    return mirror


def pull_all(remote: Remote, folder: Path) -> None:
    """Bring every finished trial of the URL into its mirror, and the suite."""
    for trial in sorted(remote.trials()):
        if not is_done(folder / "trials" / trial):
            remote.pull(trial, folder / "trials" / trial)
    suite = remote.get(SUITE)
    if suite is not None:
        write_atomic(folder / SUITE, suite)
