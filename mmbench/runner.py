"""What `run`, `data prepare` and `data check` do, and what they tell on the way."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast, get_args

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from mmbench import registry
from mmbench.config import Suite
from mmbench.errors import ConfigError
from mmbench.records import Status
from mmbench.suite_file import load_suite, suite_of
from mmbench.suites.shipped import shipped_suite
from mmbench.trials import rows, suite_cases

# torch is imported inside the functions that need it: a dry run should answer at once


@dataclass(frozen=True)
class RunRequest:
    """A command line, read."""

    suite: Path
    out: Path | None = None
    overrides: tuple[str, ...] = ()
    device: str | None = None
    workers: int | None = None
    limit: int | None = None
    retry: tuple[str, ...] = ()
    executor: str = "local"
    executor_options: tuple[str, ...] = ()

    def statuses(self) -> tuple[Status, ...]:
        for status in self.retry:
            if status not in get_args(Status):
                raise ConfigError(f"no status '{status}'; choose from {', '.join(get_args(Status))}")
        return cast("tuple[Status, ...]", self.retry)


def read_suite(path: Path, overrides: tuple[str, ...] = ()) -> Suite:
    """A suite file, a shipped suite by its name, or a folder of pairs as a suite of its own."""
    if path.is_dir():
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.resolve().name).strip(".-") or "folder"
        pairs = {"name": "folder-pairs", "label": path.resolve().name, "root": str(path.resolve())}
        return suite_of({"name": name, "datasets": [pairs], "methods": ["source"]}, overrides)
    if path.is_file() and path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{path} is no suite: a suite's file ends in .yaml")
    return load_suite(path if path.suffix in (".yaml", ".yml") else shipped_suite(str(path)), overrides)


def read_data(what: Path, overrides: tuple[str, ...] = ()) -> Suite:
    """As `read_suite`, or a registered data set that needs no files, by its name."""
    name = str(what)
    if name in registry.datasets().names() and not what.exists():
        return suite_of({"name": name, "datasets": [{"name": name}], "methods": ["source"]}, overrides)
    return read_suite(what, overrides)


def run_command(request: RunRequest, quiet: bool, as_json: bool) -> Any:
    """Run a suite with progress; returns the SweepResult."""
    suite = read_suite(request.suite, request.overrides)
    retry = request.statuses()
    rows(suite)  # unknown names end here, before anything heavy is imported or built
    from mmbench.bench import pick_device
    from mmbench.executors.choose import Choice
    from mmbench.files import cache_folder
    from mmbench.mirror import mirror_folder
    from mmbench.remote import url_of
    from mmbench.sweep import SweepOptions, run_suite

    choice = Choice(request.executor, request.executor_options, request.device, suite.budget.devices)
    here = request.device if choice.name == "local" else None  # a login node need not have what the trials run on
    out = request.out or Path("runs") / suite.name
    url = url_of(out)
    options = SweepOptions(pick_device(here), request.workers, request.limit, retry, choice, url)
    if url is not None:
        out = mirror_folder(url, cache_folder())
    with make_listener(quiet, as_json) as listener:
        result = run_suite(suite, out, options, listener)
    if not quiet and not as_json:
        words = ", ".join(f"{count} {status}" for status, count in sorted(result.statuses.items()))
        left = f", {result.left} not run" if result.left else ""
        told = f"{suite.name}: {words or 'nothing run'}{left}; records in {url or out}"
        Console(stderr=True).print(told, soft_wrap=True)
    return result


def dry_run_suite(request: RunRequest, as_json: bool) -> None:
    """Print the grid and what it will cost in samples; nothing is built or run."""
    suite = read_suite(request.suite, request.overrides)
    grid = rows(suite)
    cases, train_cases = suite_cases(suite)
    counted = Counter((row.dataset.title, row.backbone.title, row.method.title, row.regime or "-") for row in grid)
    if as_json:
        entries = [
            {"dataset": d, "backbone": b, "method": m, "regime": r, "trials": n} for (d, b, m, r), n in counted.items()
        ]
        print(json.dumps({"suite": suite.name, "trials": len(grid), "cases": [c.name for c in cases], "grid": entries}))
        return
    table = Table(title=f"{suite.name}: {len(grid)} trials", title_justify="left")
    for column in ("data", "backbone", "method", "regime", "trials"):
        table.add_column(column, justify="right" if column == "trials" else "left")
    for names, count in counted.items():
        table.add_row(*names, str(count))
    console = Console()
    console.print(table)
    console.print(f"tested under: {', '.join(case.name for case in cases)}")
    console.print(f"mixed and casewise training see: {', '.join(case.name for case in train_cases)}")
    console.print(_cost_words(suite, sum(1 for row in grid if row.card.trains)))


def _cost_words(suite: Suite, trained: int) -> str:
    budget = suite.budget
    tuning = budget.tuning_trials * budget.tuning_share if budget.tuning_trials > 1 else 0.0
    each = f"{budget.samples} samples" if budget.samples else f"{budget.epochs:g} epochs"
    search = f", plus {tuning:.2g} times that for tuning" if tuning else ""
    several = f", {budget.devices} devices a trial" if budget.devices > 1 else ""
    return f"cost: {trained} trained trials x {each}{search}; batch {budget.batch_size}, {budget.precision}{several}"


def prepare_command(suite_path: Path, overrides: tuple[str, ...], quiet: bool) -> None:
    """Build every store of a suite and describe it."""
    suite = read_suite(suite_path, overrides)
    from mmbench.prepare import data_facts, prepare_data
    from mmbench.sweep import reading

    for dataset in suite.datasets:
        for backbone in suite.backbones:
            with make_listener(quiet, False) as listen:
                data = prepare_data(dataset, backbone, reading(listen, dataset.title))
            facts = data_facts(dataset, data)
            print(f"{facts.name}: {len(data.store)} samples, {len(facts.classes)} classes, digest {facts.digest[:12]}")
            print(f"  split {facts.split}: {facts.train} train, {facts.val} val, {facts.test} test; {facts.note}")
            for line in facts.skipped:
                print(f"  left out: {line}")


def check_command(suite_path: Path, overrides: tuple[str, ...]) -> None:
    """Read every byte of a suite's stores again; raises DataError naming a file that changed."""
    suite = read_suite(suite_path, overrides)
    from mmbench.prepare import prepare_data

    for dataset in suite.datasets:
        for backbone in suite.backbones:
            store = prepare_data(dataset, backbone).store
            store.verify()
            print(f"{dataset.title}: {len(store)} samples, checksums agree, digest {store.digest[:12]}")


class Listener:
    """Tells events: bars on a terminal, plain lines in a log, JSON lines for programs, nothing when quiet."""

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *details: object) -> None:
        """Nothing to close."""

    def __call__(self, event: Any) -> None:
        """Quiet."""


class JsonListener(Listener):
    def __call__(self, event: Any) -> None:
        print(json.dumps(asdict(event)), flush=True)


class LineListener(Listener):
    """One line an event; of a store's progress only the end."""

    def __call__(self, event: Any) -> None:
        if event.kind != "data" or event.status:
            print(event_words(event), file=sys.stderr, flush=True)


class BarListener(Listener):
    """A bar for the data set that is read, and one for the trials."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, transient=True)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Listener:
        self._progress.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._progress.stop()

    def __call__(self, event: Any) -> None:
        if event.kind == "data" and not event.status:
            self._show("data", f"reading {event.what}", event)
            return
        if event.kind in ("planned", "finished"):
            self._show("trials", "trials", event)
        if event.kind not in ("started", "waiting"):
            self._progress.console.print(event_words(event), soft_wrap=True, highlight=False, markup=False)

    def _show(self, key: str, words: str, event: Any) -> None:
        if key not in self._tasks:
            self._tasks[key] = self._progress.add_task(words, total=event.total)
        self._progress.update(self._tasks[key], completed=event.done, total=event.total, description=words)


def make_listener(quiet: bool, as_json: bool) -> Listener:
    console = Console(stderr=True)
    if as_json:
        return JsonListener()
    if quiet:
        return Listener()
    return BarListener(console) if console.is_terminal else LineListener()


def event_words(event: Any) -> str:
    """An event as one line."""
    seconds = f" ({event.seconds:.1f} s)" if event.seconds else ""
    if event.kind == "planned":
        return f"{event.what}: {event.total} trials, {event.done} done already"
    if event.kind == "finished":
        return f"[{event.done}/{event.total}] {event.what}: {event.status}{seconds}"
    if event.kind == "waiting":
        return f"{event.what}: another process is at it"
    return f"{event.kind} {event.what} {event.status}{seconds}".strip()
