"""What a sweep asks of an executor, and how a trial's process tells its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mmbench.errors import ConfigError, UnknownNameError
from mmbench.registry import ROOT

GRACE_SECONDS = 30.0
"""How long a trial may take to leave after SIGTERM before it is killed."""
BUSY = 75
"""Exit code of a worker that found its trial claimed by another process; a lost one may still hold its claim."""
INTERRUPTED = 130
"""Exit code of a worker that was asked to stop; its trial has no record and runs again."""
OUTSIDE = 74
"""Exit code of a worker stopped by what no trial can help: a full disk, a store that changed. There is no record."""
# The file, not `-m`: that would put the current folder first on the path, where another `methods` may lie.
ENTRY = ROOT / "mmbench" / "__main__.py"


@dataclass(frozen=True)
class Finished:
    """A worker process that ended."""

    folder: Path
    code: int
    """Exit code; negative is the signal that ended it."""
    stderr: str
    """The last lines it wrote."""


@dataclass(frozen=True)
class Share:
    """What each trial gets of the machine it runs on."""

    device: str
    """cpu or cuda."""
    threads: int
    """Of each of its devices."""
    devices: int = 1
    """GPUs, or processes on CPUs."""

    @property
    def gpus(self) -> int:
        return self.devices if self.device == "cuda" else 0

    @property
    def cores(self) -> int:
        return self.devices * self.threads


class Executor(Protocol):
    """Runs `mmbench trial FOLDER` for each folder it is given, every one in a fresh process, and tells what ended.

    The folders and what their specs name (stores, source models) must be readable where the trials run.
    """

    def has_room(self) -> bool:
        """Whether another trial may be submitted now."""

    def running(self) -> tuple[Path, ...]:
        """Submitted and not yet collected."""

    def submit(self, folder: Path) -> None:
        """Start the trial, or hand it to whatever will."""

    def collect(self) -> list[Finished]:
        """Trials that ended since the last call."""

    def stop(self) -> None:
        """End all that runs: SIGTERM first, so that claims are given back; returns once that is under way."""


def tail(path: Path, size: int = 2000) -> str:
    """The end of a worker's error output."""
    try:
        return path.read_bytes()[-size:].decode("utf-8", "replace")
    except OSError:
        return ""


def parse_options(given: tuple[str, ...], known: Mapping[str, type], executor: str) -> dict[str, str | int]:
    """KEY=VALUE words as options of an executor; raises ConfigError or UnknownNameError naming the word."""
    options: dict[str, str | int] = {}
    for word in given:
        key, equals, value = word.partition("=")
        if not equals or not value:
            raise ConfigError(f"executor option '{word}' is not KEY=VALUE")
        if key not in known:
            raise UnknownNameError(f"option of executor {executor}", key, tuple(known))
        if known[key] is int and not (value.isascii() and value.isdigit() and int(value) > 0):
            raise ConfigError(f"executor option {key} must be a positive whole number, got '{value}'")
        options[key] = int(value) if known[key] is int else value
    return options
