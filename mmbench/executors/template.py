"""A process that imports the engine once and forks a child for each trial: a fresh process without seconds of imports.

It is run as a script: `template.py MODULE...`. Its sweep writes JSON lines to its stdin, `[number, stderr, argv]` to
start a script or `[number, signal]` to signal one, and reads `[number, exit code]` from its stdout, first `[0, 0]` once
the modules are imported. When the sweep goes, it goes; children that still run end on their own.
"""

from __future__ import annotations

import sys

if not __package__:
    sys.path.pop(0)  # this folder, whose modules must not be importable as top-level names

import gc
import importlib
import json
import os
import runpy
import select
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Order:
    """A script to run in a child."""

    stderr: str
    argv: list[str]
    """The script's file and its arguments."""


def main() -> None:
    order = serve(sys.argv[1:])
    if order is not None:
        become(order)


def serve(modules: list[str]) -> Order | None:
    """Returns once in each child, with its order, and in the template with None when its sweep has gone.

    So a child leaves through the interpreter's own exit, as a process started on its own does.
    """
    events = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # an import that prints must not disturb the events
    for module in modules:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a child's collector would otherwise copy every page of what is shared
    # The threads that libraries started on import, OpenBLAS's and jemalloc's, are stopped or made anew around a fork.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    _tell(events, 0, 0)
    running: dict[int, int] = {}  # process id -> number
    for request in _requests(events, running):
        number, *rest = request
        if len(rest) == 1:
            for pid in (pid for pid, known in running.items() if known == number):
                os.kill(pid, rest[0])  # not reaped yet, so the id is still the child's
            continue
        pid = os.fork()
        if pid == 0:
            os.close(events)
            return Order(*rest)
        running[pid] = number
    return None


def _requests(events: int, running: dict[int, int]) -> Iterator[list[Any]]:
    """Requests as they come, until stdin ends; tells the children that end in between."""
    rest = b""
    while True:
        if select.select([0], [], [], POLL_SECONDS)[0]:
            chunk = os.read(0, 65536)
            if not chunk:
                return
            *lines, rest = (rest + chunk).split(b"\n")
            yield from map(json.loads, lines)
        for pid in list(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                _tell(events, running.pop(pid), os.waitstatus_to_exitcode(status))


def _tell(events: int, number: int, code: int) -> None:
    os.write(events, json.dumps([number, code]).encode() + b"\n")


def become(order: Order) -> None:
    """Run the order's script in this process as the interpreter would."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    stderr = os.open(order.stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for source, target in ((null, 0), (null, 1), (stderr, 2)):
        os.dup2(source, target)
    os.close(null)
    os.close(stderr)
    sys.argv = order.argv
    sys.path.insert(0, str(Path(order.argv[0]).parent))
    runpy.run_path(order.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
