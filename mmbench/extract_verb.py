"""What `data extract` does: reads the command line and the list, shows the progress, tells what was left out."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from mmbench.data.clip_list import ClipList, Videos, list_folder, read_list, with_labels
from mmbench.data.extract import LABELS, LEFT_OUT, MANIFEST, Order, Progress, Report, extract
from mmbench.data.extract_ledger import Settings
from mmbench.data.manifest_files import Labels, labels_of, read_labels
from mmbench.errors import ConfigError

LINE_EVERY_S = 60.0  # in a log
WORDS = {
    "unusable": "not usable as listed",
    "missing": "without a video",
    "broken": "broken",
    "short": "short, but kept",
}


@dataclass(frozen=True)
class ExtractRequest:
    """A command line, read."""

    what: Path
    """A list of clips, or a folder of videos by class."""
    out: Path
    settings: Settings
    videos: Path | None = None
    labels: Path | None = None
    workers: int | None = None
    limit_s: float = 120.0
    verify: bool = False


def extract_command(request: ExtractRequest, quiet: bool) -> bool:
    """Extract, tell, and say whether every clip of the list is whole."""
    if importlib.util.find_spec("av") is None:
        raise ConfigError('videos are decoded by PyAV: pip install "mmbench[video]"')
    if (request.videos is None) != request.what.is_dir():
        raise ConfigError("a list of clips needs --videos DIR, a folder of videos takes none")
    videos = Videos(request.videos or request.what)
    listed = list_folder(videos) if request.videos is None else read_list(request.what)
    labels = _labels(listed, request.labels)
    listed = with_labels(listed, labels)
    workers = request.workers or len(os.sched_getaffinity(0))
    order = Order(request.out, request.settings, workers, request.limit_s, request.verify)
    with _shown(len(listed.clips), quiet) as progress:
        report = extract(listed, videos, labels, order, progress)
    _tell(report, request)
    print("\n".join(["in a suite:", "datasets:", "  - name: cavmae-manifest", *_keys(request, listed)]))
    return not report.left_out


def _labels(listed: ClipList, path: Path | None) -> Labels:
    if path is not None:
        return read_labels(path)
    return labels_of(sorted({label for clip in listed.clips for label in clip.labels}))


def _keys(request: ExtractRequest, listed: ClipList) -> Iterator[str]:
    """What reads the folder."""
    yield f"    manifest: {request.out / MANIFEST}"
    yield f"    label_csv: {request.out / LABELS}"
    if request.settings.frames > 1:
        yield f"    frames: {request.settings.frames}"
    if any(len(clip.labels) > 1 for clip in listed.clips):
        yield "    multi_label: true"
    if {"train", "test"} <= {clip.split for clip in listed.clips}:
        yield "    split: {kind: listed}"


def _tell(report: Report, request: ExtractRequest) -> None:
    before = f" ({report.before} by an earlier run)" if report.before else ""
    print(f"{report.extracted} of {report.listed} clips extracted{before}")
    for kind, count in sorted(Counter(entry.kind for entry in report.left_out).items()):
        print(f"  {count} {WORDS[kind]}")
    if report.left_out:
        print(f"  {request.out / LEFT_OUT} says which and why")


@contextmanager
def _shown(total: int, quiet: bool) -> Iterator[Progress]:
    """A bar on a terminal, a line a minute in a log."""
    console = Console(stderr=True)
    if quiet:
        yield lambda done, lost: None
    elif not console.is_terminal:
        yield _lines(total)
    else:
        words = TextColumn("{task.description}")
        columns = (words, BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(compact=True))
        with Bars(*columns, console=console, transient=True) as bars:
            task = bars.add_task("clips", total=total)
            yield lambda done, lost: bars.update(task, completed=done, description=f"clips, {lost} lost")


def _lines(total: int) -> Progress:
    told_s = began_s = time.monotonic()

    def tell(done: int, lost: int) -> None:
        nonlocal told_s
        now_s = time.monotonic()
        if now_s - told_s >= LINE_EVERY_S:
            told_s = now_s
            minutes = (now_s - began_s) / 60
            print(f"{done}/{total} clips, {lost} lost, {minutes:.0f} min", file=sys.stderr, flush=True)

    return tell
