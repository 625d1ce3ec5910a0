"""Hands the trials of a sweep to an executor, and settles what each of them leaves behind."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from mmbench.claims import HEARTBEAT_SECONDS, claimed, is_claimed
from mmbench.environment import environment
from mmbench.errors import MMBenchError
from mmbench.executors.base import BUSY, INTERRUPTED, OUTSIDE, Executor, Finished
from mmbench.files import RecordError
from mmbench.records import RECORD, Failure, TrialRecord, is_done, load_record, save_record
from mmbench.resume import PROGRESS
from mmbench.run import facts
from mmbench.trials import read_trial

POLL_SECONDS = 0.1
LOOK_SECONDS = HEARTBEAT_SECONDS / 2
"""Between looks at other sweeps' trials, each of which asks the file system several times."""
STARTS = 2
"""How often a trial is started whose worker was ended before it left a record, unless it got further each time."""


@dataclass(frozen=True)
class Event:
    """Something a person watching a sweep wants to know."""

    kind: str
    """data, backbone, planned, started, finished, waiting, retried."""
    what: str
    status: str = ""
    done: int = 0
    total: int = 0
    seconds: float = 0.0


Listener = Callable[[Event], None]


class Dispatcher:
    """Starts workers while there is room, and settles what they leave behind. A trial waits for its base."""

    def __init__(self, executor: Executor, folders: list[Path], bases: Mapping[Path, Path], listen: Listener) -> None:
        self._executor, self._bases, self._listen = executor, bases, listen
        self._queue = deque(folders)
        self._elsewhere: list[Path] = []
        self._looked = time.monotonic()
        self._waiting: dict[Path, list[Path]] = {}  # base -> what starts once it is done
        self._ahead = set(folders)  # not yet counted
        self._starts: Counter[Path] = Counter()
        self._kept: dict[Path, int | None] = {}  # when the progress of a trial was last written
        self._done = self._total = 0

    def run(self, device: torch.device, done: int, total: int) -> None:
        """Until nothing is left; `done` of the sweep's `total` trials were finished before."""
        self._done, self._total = done, total
        while self._queue or self._elsewhere or self._executor.running():
            self._start()
            for finished in self._executor.collect():
                self._settle(finished, device)
            self._look_elsewhere()
            time.sleep(POLL_SECONDS)

    def _start(self) -> None:
        while self._queue and self._executor.has_room():
            folder = self._queue.popleft()
            if is_done(folder):
                self._count(folder)
            elif is_claimed(folder):
                self._elsewhere.append(folder)
                self._listen(Event("waiting", folder.name))
            elif not self._has_base(folder):
                self._wait_for_base(folder)
            else:
                self._executor.submit(folder)
                self._starts[folder] += 1
                self._listen(Event("started", folder.name, done=self._done, total=self._total))

    def _has_base(self, folder: Path) -> bool:
        return folder not in self._bases or is_done(self._bases[folder])

    def _wait_for_base(self, folder: Path) -> None:
        base = self._bases[folder]
        self._waiting.setdefault(base, []).append(folder)
        if base not in self._ahead:  # it was done when this sweep began, and another one has put its record aside
            self._ahead.add(base)
            self._queue.append(base)
            self._done -= 1

    def _settle(self, finished: Finished, device: torch.device) -> None:
        if is_done(finished.folder):
            self._count(finished.folder)
        elif finished.code == OUTSIDE:
            raise RecordError(f"trial {finished.folder.name} was stopped: {_last_words(finished)}")
        elif finished.code == BUSY:
            self._elsewhere.append(finished.folder)
        elif not self._has_base(finished.folder):
            self._queue.append(finished.folder)
        elif (finished.code < 0 or finished.code == INTERRUPTED) and self._may_go_on(finished.folder):
            self._queue.append(finished.folder)
            self._listen(Event("retried", finished.folder.name, f"its worker was ended (exit code {finished.code})"))
        else:
            with claimed(finished.folder) as mine:
                if mine and not is_done(finished.folder):
                    save_record(_crash(finished, device), finished.folder)
            self._queue.append(finished.folder)  # counted there, or waited for if another process has it by now

    def _may_go_on(self, folder: Path) -> bool:
        """Whether a trial whose worker was ended is worth another: a cluster may preempt a long one many times."""
        try:
            kept = (folder / PROGRESS).stat().st_mtime_ns
        except OSError:
            kept = None
        further = kept is not None and kept != self._kept.get(folder)
        self._kept[folder] = kept
        return further or self._starts[folder] < STARTS

    def _look_elsewhere(self) -> None:
        """Trials of another sweep: counted when they are done, taken over when their worker is gone."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        for folder in list(self._elsewhere):
            if is_done(folder) or not is_claimed(folder):
                self._elsewhere.remove(folder)
                self._queue.append(folder)

    def _count(self, folder: Path) -> None:
        self._done += 1
        self._ahead.discard(folder)
        self._queue.extend(self._waiting.pop(folder, ()))
        try:
            record = load_record(folder / RECORD)
        except MMBenchError as error:
            self._listen(Event("finished", folder.name, str(error), self._done, self._total))
            return
        seconds = record.costs.seconds.wall if record.costs else 0.0
        self._listen(Event("finished", folder.name, record.status, self._done, self._total, seconds))


def _last_words(finished: Finished) -> str:
    """What a worker said of a cause outside of its trial; on a full disk it may have had no room for that."""
    said = [line.partition("error: ")[2] for line in finished.stderr.splitlines() if line.startswith("error: ")]
    words = said[-1] if said else f"{finished.folder} cannot be written; free some space"
    return f"{words}; then the same command goes on"


def _crash(finished: Finished, device: torch.device) -> TrialRecord:
    """The record of a worker that could not write its own."""
    how = f"killed by signal {-finished.code}" if finished.code < 0 else f"exit code {finished.code}"
    if finished.code == -9:
        how += " (out of host memory, unless someone ended it)"
    failure = Failure(
        kind="WorkerDied", message=f"the worker ended without a record: {how}", traceback=finished.stderr or None
    )
    trial = read_trial(finished.folder)
    return TrialRecord(status="crashed", failure=failure, trial=facts(trial), environment=environment(device))
