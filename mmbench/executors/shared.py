"""Any executor, working at results that lie at a URL: what others have finished is fetched, not run."""

from __future__ import annotations

import time
from collections.abc import Container
from pathlib import Path

from mmbench.executors.base import Executor, Finished
from mmbench.records import is_done
from mmbench.remote import Remote

LOOK_SECONDS = 10.0
"""Between looks at trials that other machines work at."""


class SharedExecutor:
    """Claims each trial at the URL before the inner executor gets it, and sends it there once it is done."""

    def __init__(self, inner: Executor, remote: Remote, look_seconds: float = LOOK_SECONDS) -> None:
        self._inner, self._remote = inner, remote
        self._look_seconds, self._looked = look_seconds, 0.0
        self._elsewhere: list[Path] = []
        self._ended: list[Path] = []

    def has_room(self) -> bool:
        return self._inner.has_room()

    def running(self) -> tuple[Path, ...]:
        return (*self._inner.running(), *self._elsewhere)

    def submit(self, folder: Path) -> None:
        self._elsewhere.append(folder)
        self._looked = 0.0

    def collect(self) -> list[Finished]:
        self._hand_back()
        finished = self._inner.collect()
        self._ended = [entry.folder for entry in finished]
        if finished:
            self._looked = 0.0  # there is room now
        return [*finished, *self._look()]

    def _hand_back(self) -> None:
        """Send what ended before the last call, and give back its claims: the sweep has settled by now what was left.

        That may be a record of the sweep's own, of a worker that died, or a trial that starts again.
        """
        for folder in self._ended:
            if is_done(folder):
                self._remote.push(folder)
            if folder not in self._elsewhere:
                self._remote.release(folder.name)
        self._ended = []

    def _look(self) -> list[Finished]:
        if not self._elsewhere or time.monotonic() - self._looked < self._look_seconds:
            return []
        done = self._remote.trials()
        found = [folder for folder in list(self._elsewhere) if self._fetch_or_start(folder, done)]
        self._looked = time.monotonic()
        return [Finished(folder, 0, "") for folder in found]

    def _fetch_or_start(self, folder: Path, done: Container[str]) -> bool:
        """Whether the trial was fetched; else it is started if nobody is at it and there is room."""
        fetched = folder.name in done and self._remote.pull(folder.name, folder)
        if not fetched:
            if not self._inner.has_room() or not self._remote.claim(folder.name):
                return False
            fetched = self._remote.pull(folder.name, folder)  # it may have been finished since the list was made
            if not fetched:
                self._inner.submit(folder)
            else:
                self._remote.release(folder.name)
        self._elsewhere.remove(folder)
        return fetched

    def stop(self) -> None:
        """What this sweep was at goes up if it is done."""
        self._ended += self._inner.running()
        self._inner.stop()
        try:
            self._hand_back()
        finally:
            self._remote.close()
