"""Any executor, working at results that lie at a URL: what others have finished is fetched, not run."""

from __future__ import annotations

import time
from pathlib import Path

from mmbench.executors.base import Executor, Finished
from mmbench.records import is_done
from mmbench.remote import Remote

LOOK_SECONDS = 10.0
"""Between looks at trials that other machines work at."""


class SharedExecutor:
    """Claims each trial at the URL before the inner executor gets it, and sends it there once it is done."""

    def __init__(self, inner: Executor, remote: Remote, mirror: Path, look_seconds: float = LOOK_SECONDS) -> None:
        self._inner, self._remote, self._trials = inner, remote, mirror / "trials"
        self._look_seconds, self._looked = look_seconds, 0.0
        self._elsewhere: list[Path] = []

    def has_room(self) -> bool:
        return self._inner.has_room()

    def running(self) -> tuple[Path, ...]:
        return (*self._inner.running(), *self._elsewhere)

    def submit(self, folder: Path) -> None:
        self._elsewhere.append(folder)
        self._looked = 0.0

    def collect(self) -> list[Finished]:
        finished = self._inner.collect()
        for entry in finished:
            if is_done(entry.folder):
                self._remote.push(entry.folder)
            self._remote.release(entry.folder.name)
            self._looked = 0.0  # there is room now
        return [*finished, *self._look()]

    def _look(self) -> list[Finished]:
        if not self._elsewhere or time.monotonic() - self._looked < self._look_seconds:
            return []
        found = []
        done = self._remote.trials()
        for folder in list(self._elsewhere):
            if folder.name in done and self._remote.pull(folder.name, folder):
                self._elsewhere.remove(folder)
                found.append(Finished(folder, 0, ""))
            elif self._inner.has_room() and self._remote.claim(folder.name):
                self._elsewhere.remove(folder)
                self._inner.submit(folder)
        self._looked = time.monotonic()
        return found

    def stop(self) -> None:
        """Records that the sweep itself wrote, of workers that died, go up here."""
        self._inner.stop()
        for folder in sorted(self._trials.glob("*")):
            if is_done(folder):
                self._remote.push(folder)
        self._remote.close()
