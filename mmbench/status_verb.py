"""What `status` tells: a results folder at a glance, once or again and again."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mmbench import registry
from mmbench.cli_common import FAILED, OK, UNFINISHED, fetched
from mmbench.executors.shared import LOOK_SECONDS
from mmbench.layout import SUITE
from mmbench.remote import url_of
from mmbench.status import Standing, groups, standing
from mmbench.status_files import one_line

WATCH_SECONDS = 2.0
MOST_RUNNING = 16
"""Running trials that are told one by one."""
MOST_NAMED = 3
"""Trials that are named beside a reason."""


def status_command(folder: Path, watch: bool, as_json: bool) -> int:
    """Tell how a folder or URL stands and return the exit code; with `watch` until all is done, or Ctrl-C."""
    console = Console()
    if as_json:
        return _follow(folder, watch, lambda now: print(json.dumps(facts(now)), flush=True))
    if not watch:
        return _follow(folder, watch, lambda now: console.print(page(now), crop=False))
    if not console.is_terminal:
        return _follow(folder, watch, _Lines())
    with Live(console=console, auto_refresh=False) as live:
        return _follow(folder, watch, lambda now: live.update(page(now), refresh=True))


def _follow(folder: Path, watch: bool, tell: Callable[[Standing], None]) -> int:
    now = look(folder)
    try:
        tell(now)
        while watch and now.unfinished:
            time.sleep(WATCH_SECONDS if url_of(folder) is None else LOOK_SECONDS)
            now = look(folder)
            tell(now)
    except KeyboardInterrupt:  # the usual way to stop watching
        pass
    return exit_code(now)


def look(folder: Path) -> Standing:
    """How a folder stands, or the mirror of a URL once it is up to date."""
    return replace(standing(fetched(folder)), typed=url_of(folder) or "")


class _Lines:
    """One line for a log whenever something has changed."""

    def __init__(self) -> None:
        self._counts = ""

    def __call__(self, now: Standing) -> None:
        if counts(now) != self._counts:
            self._counts = counts(now)
            print(f"{headline(now)}: {self._counts}", flush=True)


def exit_code(now: Standing) -> int:
    """0: all is done and nothing failed; 1: all is done, something failed; 3: something is unfinished."""
    return UNFINISHED if now.unfinished else FAILED if now.failed else OK


def facts(now: Standing) -> dict[str, Any]:
    """Everything as JSON data; seconds are estimates, null where nothing is known."""
    return {
        "folder": now.place,
        "suite": now.suite,
        "trials": now.total,
        "done": len(now.ended),
        "failed": now.failed,
        "running": len(now.running),
        "waiting": len(now.waiting) + now.unplanned,
        "statuses": dict(now.statuses),
        "reasons": [{"status": g.status, "reason": g.reason, "trials": g.trials} for g in groups(now.ended)],
        "now": [{"trial": r.id, "host": r.host, "since": r.since, "doing": r.doing} for r in now.running],
        "left_behind": [entry.id for entry in now.waiting if entry.left_behind],
        "foreign": now.foreign,
        "seconds_left": now.seconds_left,
        "note": now.note,
    }


def headline(now: Standing) -> str:
    """`tiny: 3 of 8 done, about 2 min left`."""
    words = f"{now.suite or now.place}: {len(now.ended)} of {now.total} done"
    if now.unfinished and now.seconds_left is not None:
        words += f", about {duration(now.seconds_left)} {'left' if now.running else 'of work left'}"
    return words


def counts(now: Standing) -> str:
    """`2 ok, 1 crashed, 1 running, 4 waiting`."""
    parts = [f"{count} {status}" for status, count in sorted(now.statuses.items(), key=lambda part: part[0] != "ok")]
    parts += [f"{len(now.running)} running"] if now.running else []
    parts += [f"{len(now.waiting) + now.unplanned} waiting"] if now.waiting or now.unplanned else []
    return ", ".join(parts) or "no trial yet"


def duration(seconds: float) -> str:
    """Two units at most: 45 s, 12 min, 3 h 20 min, 2 d 4 h."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def page(now: Standing) -> Group:
    """The whole folder for a terminal."""
    parts: list[Table | Text] = [Text(headline(now), style="bold"), Text(f"  {counts(now)}")]
    parts += _running_table(now) + _reasons(now) + [Text(line) for line in notes(now)]
    parts += [Text(line, no_wrap=True, overflow="ignore") for line in next_steps(now)]  # whole, to be copied
    return Group(*parts)


def _running_table(now: Standing) -> list[Table | Text]:
    if not now.running:
        return []
    table = _table("running", "where", "for", "training")
    shown = now.running[:MOST_RUNNING]
    for entry in shown:
        age = duration(max(0.0, time.time() - entry.since)) if entry.since is not None else "-"
        table.add_row(*map(Text, (one_line(entry.id), entry.host or "-", age, entry.doing or "-")))
    more = len(now.running) - len(shown)
    return [Text(), table, *([Text(f"  and {more} more")] if more else [])]


def _reasons(now: Standing) -> list[Table | Text]:
    found = groups(now.ended)
    if not found:
        return []
    table = _table("status", "trials", "why")
    for group in found:
        more = len(group.trials) - MOST_NAMED
        named = _names(group.trials) + (f" and {more} more" if more > 0 else "")
        table.add_row(group.status, str(len(group.trials)), Text(f"{group.reason}\n").append(f"in {named}", "dim"))
    return [Text(), table]


def _names(trials: Sequence[str]) -> str:
    return ", ".join(one_line(name) for name in trials[:MOST_NAMED])


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column == "trials" else "left")
    return table


def notes(now: Standing) -> Iterable[str]:
    """What a person would else wonder about."""
    if now.note:
        yield f"note: {now.note}"
    if now.foreign:
        yield f"note: {len(now.foreign)} unfinished trials are none of this suite's, as {_names(now.foreign)}"
    broken_off = sum(entry.left_behind for entry in now.waiting)
    if broken_off:
        yield f"note: broken off, and waiting to run again: {broken_off}"


def next_steps(now: Standing) -> Iterable[str]:
    """The command that goes on from here."""
    folder = shlex.quote(now.place)
    plugins = "".join(f" --plugin {shlex.quote(str(path))}" for path in registry.plugins())
    if now.unfinished and not now.running:
        suite = shlex.quote(str(now.folder / SUITE))
        yield from ("nothing is running; go on with", f"  mmbench run {suite} --out {folder}{plugins}")
    if now.failed and not now.unfinished:
        yield from ("to run what failed again", f"  mmbench retry {folder} --failed{plugins}")
