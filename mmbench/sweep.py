"""A suite to the end: prepare data and backbones, then every trial that has no record yet, each in its own process.

The state of a sweep is the disk: a trial is done if its folder holds a record and the marker. So the same command
resumes after any interruption, and two sweeps on one folder share the work.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml

from mmbench.assets import assets_digest, use_assets
from mmbench.claims import claimed, is_claimed
from mmbench.config import Suite
from mmbench.environment import environment
from mmbench.errors import ConfigError, MMBenchError
from mmbench.executors.local import BUSY, INTERRUPTED, Finished, LocalExecutor, local_slots
from mmbench.files import RecordError, write_atomic
from mmbench.prepare import Progress, prepare_data, reopen_data, with_frozen
from mmbench.records import MARKER, RECORD, Failure, Status, TrialRecord, is_done, load_record, save_record
from mmbench.run import facts, sigterm_raises
from mmbench.source import prepare_backbone
from mmbench.trials import Digests, Row, Trial, make_trial, read_trial, rows, suite_cases

POLL_SECONDS = 0.1
STARTS = 2
"""How often a trial is started whose worker was killed before it could leave a record."""


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


@dataclass(frozen=True)
class SweepOptions:
    device: torch.device
    workers: int | None = None
    limit: int | None = None
    """Start at most so many trials."""
    retry: tuple[Status, ...] = ()
    """Statuses whose records are put aside and run again."""


@dataclass(frozen=True)
class SweepResult:
    """How a sweep ended."""

    statuses: Counter[str] = field(default_factory=Counter)
    left: int = 0
    """Trials without a record, because of a limit."""

    @property
    def failed(self) -> int:
        return sum(count for status, count in self.statuses.items() if status not in ("ok", "refused"))


def plan(suite: Suite, out: Path, device: torch.device, listen: Listener) -> list[tuple[Trial, Path]]:
    """Every trial of a suite with its folder; data and backbones are built where they are not cached."""
    use_assets(suite.assets)
    planned: list[tuple[Trial, Path]] = []
    prepared: dict[tuple[str, str], tuple[Digests, dict[str, Path]]] = {}
    for row in rows(suite):
        key = (row.dataset.model_dump_json(), row.backbone.model_dump_json())
        if key not in prepared:
            prepared[key] = _prepare(row, device, listen)
            _check_frozen(suite, row, prepared[key][1]["store"])
        trial = make_trial(row, suite, *prepared[key])
        if trial.id in (other.id for other, _ in planned):
            raise ConfigError(f"two rows of suite {suite.name} are the same trial {trial.id}; leave one of them out")
        planned.append((trial, out / "trials" / trial.id))
    listen(Event("planned", suite.name, total=len(planned), done=sum(is_done(folder) for _, folder in planned)))
    return planned


def _prepare(row: Row, device: torch.device, listen: Listener) -> tuple[Digests, dict[str, Path]]:
    title = row.dataset.title
    began = time.monotonic()
    data = prepare_data(row.dataset, row.backbone, reading(listen, title))
    listen(Event("data", title, "ready", len(data.store), len(data.store), time.monotonic() - began))
    began = time.monotonic()
    listen(Event("backbone", row.backbone.title, "preparing"))
    place = prepare_backbone(row.backbone, row.dataset, data, device)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the trials' own processes need it
    listen(Event("backbone", row.backbone.title, "ready", seconds=time.monotonic() - began))
    digests = Digests(data.store.digest, place.meta.sha256, assets_digest())
    return digests, {"store": data.store.folder, "backbone": place.folder}


def _check_frozen(suite: Suite, row: Row, store_folder: Path) -> None:
    """Raises DataError at the door, rather than in every trial."""
    if suite.frozen is not None:
        with_frozen(reopen_data(row.dataset, store_folder), suite.frozen, suite_cases(suite)[0])


def reading(listen: Listener, title: str) -> Progress:
    """A data set's progress as events."""
    return lambda done, total: listen(Event("data", title, done=done, total=total))


def run_suite(suite: Suite, out: Path, options: SweepOptions, listen: Listener = lambda event: None) -> SweepResult:
    """Run what is missing; raises MMBenchError if the folder cannot be used or the data cannot be prepared."""
    with sigterm_raises(KeyboardInterrupt):
        return _run_suite(suite, out, options, listen)


def _run_suite(suite: Suite, out: Path, options: SweepOptions, listen: Listener) -> SweepResult:
    _open_folder(out, suite)
    planned = plan(suite, out, options.device, listen)
    folders = _write_specs(planned)
    bases = {folder: folder.parent / trial.base for trial, folder in planned if trial.base is not None}
    again = {folder for folder in folders if _has_status(folder, options.retry)}
    for folder in folders:
        if folder in again or bases.get(folder) in again:  # what adapts a state that is trained again runs again
            _put_aside(folder)
    pending = [folder for folder in folders if not is_done(folder)]
    started = pending[: options.limit] if options.limit is not None else pending
    slots = local_slots(options.device.type, options.workers, _gpus(options.device), _cores())
    loop = _Loop(LocalExecutor(slots), started, bases, listen)
    loop.run(options.device, len(folders) - len(pending), len(folders))
    statuses = Counter(load_record(folder / RECORD).status for folder in folders if is_done(folder))
    return SweepResult(Counter(statuses), len(folders) - sum(statuses.values()))


def _open_folder(out: Path, suite: Suite) -> None:
    try:
        (out / "trials").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecordError(
            f"cannot write results to {out}: {error.strerror}; choose another folder with --out"
        ) from None
    write_atomic(out / "suite.yaml", yaml.safe_dump(suite.model_dump(mode="json"), sort_keys=False).encode())


def _write_specs(planned: Iterable[tuple[Trial, Path]]) -> list[Path]:
    folders = []
    for trial, folder in planned:
        if not is_done(folder):
            folder.mkdir(exist_ok=True)
            write_atomic(folder / "spec.json", trial.model_dump_json(indent=1).encode())
        folders.append(folder)
    return folders


def _has_status(folder: Path, statuses: tuple[Status, ...]) -> bool:
    return bool(statuses) and is_done(folder) and load_record(folder / RECORD).status in statuses


def _put_aside(folder: Path) -> None:
    """A record that is to be run again stays as `trial.json.old`."""
    with contextlib.suppress(FileNotFoundError):  # there is none, or another sweep was quicker
        (folder / MARKER).unlink()
        (folder / RECORD).replace(folder / f"{RECORD}.old")


def _gpus(device: torch.device) -> tuple[str, ...]:
    """The GPU that was asked for by number, else all that are visible."""
    if device.index is not None:
        return (str(device.index),)
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(named.split(",")) if named else tuple(str(i) for i in range(torch.cuda.device_count()))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Loop:
    """Starts workers while there is room, and settles what they leave behind. A trial waits for its base."""

    def __init__(
        self, executor: LocalExecutor, folders: list[Path], bases: Mapping[Path, Path], listen: Listener
    ) -> None:
        self._executor, self._bases, self._listen = executor, bases, listen
        self._queue = deque(folders)
        self._elsewhere: list[Path] = []
        self._waiting: dict[Path, list[Path]] = {}  # base -> what starts once it is done
        self._ahead = set(folders)  # not yet counted
        self._starts: Counter[Path] = Counter()
        self._done = self._total = 0

    def run(self, device: torch.device, done: int, total: int) -> None:
        """Until nothing is left; `done` of the sweep's `total` trials were finished before."""
        self._done, self._total = done, total
        try:
            while self._queue or self._elsewhere or self._executor.running():
                self._start()
                for finished in self._executor.collect():
                    self._settle(finished, device)
                self._look_elsewhere()
                time.sleep(POLL_SECONDS)
        finally:
            self._executor.stop()

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
        elif finished.code == BUSY:
            self._elsewhere.append(finished.folder)
        elif not self._has_base(finished.folder):
            self._queue.append(finished.folder)
        elif (finished.code < 0 or finished.code == INTERRUPTED) and self._starts[finished.folder] < STARTS:
            self._queue.append(finished.folder)
            self._listen(Event("retried", finished.folder.name, f"its worker was ended (exit code {finished.code})"))
        else:
            with claimed(finished.folder) as mine:
                if mine and not is_done(finished.folder):
                    save_record(_crash(finished, device), finished.folder)
            self._queue.append(finished.folder)  # counted there, or waited for if another process has it by now

    def _look_elsewhere(self) -> None:
        """Trials of another sweep: counted when they are done, taken over when their worker is gone."""
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
