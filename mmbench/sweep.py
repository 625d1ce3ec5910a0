"""A suite to the end: prepare data and backbones, then every trial that has no record yet, each in its own process.

The state of a sweep is the disk: a trial is done if its folder holds a record and the marker. So the same command
resumes after any interruption, and two sweeps on one folder share the work.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml

from mmbench.asset_checks import check_assets
from mmbench.assets import assets_digest, use_assets
from mmbench.config import Suite
from mmbench.dispatch import Dispatcher, Event, Listener
from mmbench.errors import ConfigError
from mmbench.executors.base import Executor
from mmbench.executors.choose import Choice, make_executor
from mmbench.executors.shared import SharedExecutor
from mmbench.files import RecordError, write_atomic
from mmbench.layout import SPEC, SUITE
from mmbench.mirror import pull_all, push_rest
from mmbench.prepare import Progress, prepare_data, reopen_data, with_frozen
from mmbench.records import FAILED, MARKER, RECORD, Status, is_done, load_record
from mmbench.remote import open_remote
from mmbench.retry import has_status, put_aside
from mmbench.run import sigterm_raises
from mmbench.source import prepare_backbone
from mmbench.trials import Digests, Row, Trial, make_trial, rows, suite_cases


@dataclass(frozen=True)
class SweepOptions:
    device: torch.device
    workers: int | None = None
    limit: int | None = None
    """Start at most so many trials."""
    retry: tuple[Status, ...] = ()
    """Statuses whose records are put aside and run again."""
    choice: Choice = field(default_factory=Choice)
    url: str | None = None
    """Where the results lie that the folder is a mirror of."""


@dataclass(frozen=True)
class SweepResult:
    """How a sweep ended."""

    statuses: Counter[str] = field(default_factory=Counter)
    left: int = 0
    """Trials without a record, because of a limit."""

    @property
    def failed(self) -> int:
        return sum(count for status, count in self.statuses.items() if status in FAILED)


def plan(suite: Suite, out: Path, device: torch.device, listen: Listener) -> list[tuple[Trial, Path]]:
    """Every trial of a suite with its folder; data and backbones are built where they are not cached."""
    use_assets(suite.assets)
    check_assets()
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
    written = _open_folder(out, suite)
    remote = open_remote(options.url) if options.url else None
    if remote is not None:
        pull_all(remote, out)
        push_rest(remote, out)
        remote.put(SUITE, written)
    executor = make_executor(options.choice, options.workers, options.device, out)  # what it lacks is told at the door
    if remote is not None:
        executor = SharedExecutor(executor, remote)
    try:
        planned = plan(suite, out, options.device, listen)
        folders = _write_specs(planned)
        bases = {folder: folder.parent / trial.base for trial, folder in planned if trial.base is not None}
        for folder in _again(folders, bases, options.retry):
            marker = (folder / MARKER).read_bytes() if is_done(folder) else b""
            put_aside(folder)
            if remote is not None:
                remote.put_aside(folder.name, marker)
        return _run_trials(folders, bases, executor, options, listen)
    finally:
        executor.stop()


def _run_trials(
    folders: list[Path], bases: dict[Path, Path], executor: Executor, options: SweepOptions, listen: Listener
) -> SweepResult:
    pending = [folder for folder in folders if not is_done(folder)]
    started = pending[: options.limit] if options.limit is not None else pending
    Dispatcher(executor, started, bases, listen).run(options.device, len(folders) - len(pending), len(folders))
    statuses = Counter(load_record(folder / RECORD).status for folder in folders if is_done(folder))
    return SweepResult(Counter(statuses), len(folders) - sum(statuses.values()))


def _open_folder(out: Path, suite: Suite) -> bytes:
    """Make the results folder, and leave the suite as it is run, which is returned."""
    content = yaml.safe_dump(suite.model_dump(mode="json"), sort_keys=False).encode()
    try:
        (out / "trials").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecordError(
            f"cannot write results to {out}: {error.strerror}; choose another folder with --out"
        ) from None
    write_atomic(out / SUITE, content)
    return content


def _write_specs(planned: Iterable[tuple[Trial, Path]]) -> list[Path]:
    folders = []
    for trial, folder in planned:
        if not is_done(folder) or not (folder / SPEC).exists():  # of a merged trial, which may be run again
            folder.mkdir(exist_ok=True)
            write_atomic(folder / SPEC, trial.model_dump_json(indent=1).encode())
        folders.append(folder)
    return folders


def _again(folders: list[Path], bases: dict[Path, Path], statuses: tuple[Status, ...]) -> list[Path]:
    """Trials of these statuses, and what adapts a state that is trained again."""
    again = {folder for folder in folders if has_status(folder, statuses)}
    return [folder for folder in folders if folder in again or bases.get(folder) in again]
