"""Worker processes as a sweep sees them: started on their own, or forked from a template that has done the imports."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from mmbench.executors import template
from mmbench.executors.base import BUSY

POLL_SECONDS = 0.02


class Worker(Protocol):
    """A process that runs one trial; `subprocess.Popen` is one."""

    def poll(self) -> int | None:
        """Exit code, negative for the signal that ended it; None while it runs."""

    def send_signal(self, sig: int) -> None:
        """Nothing happens if it has ended."""

    def wait(self, timeout: float | None = None) -> int:
        """Exit code; raises subprocess.TimeoutExpired after `timeout` seconds."""


def execute(argv: Sequence[str], stderr: Path, environment: Mapping[str, str]) -> Worker:
    """Run a script in an interpreter of its own."""
    with stderr.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, *argv],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=file,
            start_new_session=True,  # Ctrl-C reaches the sweep alone, which then asks its workers to stop
        )


class Template:
    """The sweep's end of `template.py`: forks workers that find `modules` imported, in the environment given here."""

    def __init__(self, modules: Sequence[str], environment: Mapping[str, str]) -> None:
        self._modules = ", ".join(modules)
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the template
        self._process = subprocess.Popen(
            [sys.executable, str(template.__file__), *modules],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            start_new_session=True,
            bufsize=0,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._events = self._process.stdin, self._process.stdout
        os.set_blocking(self._events.fileno(), False)
        self._rest = b""
        self._started = 0
        self._codes: dict[int, int] = {}
        self._gone = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self, argv: Sequence[str], stderr: Path) -> Forked:
        self._started += 1
        self._send([self._started, str(stderr), list(argv)])
        return Forked(self, self._started)

    def alive(self) -> bool:
        """Whether it still takes orders; warns when it is first seen to have died."""
        self._read()
        return not self._gone

    def code(self, number: int) -> int | None:
        """Its exit code, if it ended. What became of it once the template died, its claim and record tell."""
        self._read()
        return self._codes.get(number, BUSY if self._gone else None)

    def signal(self, number: int, sig: int) -> None:
        self._read()
        if 0 in self._codes or self._gone:
            self._send([number, sig])
        else:  # still importing, so nothing runs in it that could be asked to leave
            self.close()

    def close(self) -> None:
        """End the template; workers that still run are left to themselves."""
        if not self._gone:
            self._leave()

    def _leave(self) -> str:
        """End it and return how it ended."""
        self._gone = True
        self._process.kill()  # does nothing to one that died
        code = self._process.wait()
        self._said.seek(0)
        said = self._said.read()[-1000:].decode("utf-8", "replace").strip()
        for file in (self._requests, self._events, self._said):
            file.close()
        return f"exit code {code}, last words: {said or 'none'}"

    def _send(self, request: list[object]) -> None:
        with contextlib.suppress(OSError, ValueError):  # it died; `_read` will see that
            self._requests.write(json.dumps(request).encode() + b"\n")

    def _read(self) -> None:
        while not self._gone:
            chunk = self._events.read(65536)
            if chunk is None:  # nothing new
                return
            if not chunk:
                warnings.warn(
                    f"the process that imports {self._modules} once for all trials died; each trial now imports them "
                    "itself, which costs seconds, and maps the libraries itself, which counts as its resident memory "
                    f"({self._leave()})",
                    RuntimeWarning,
                    stacklevel=2,
                )
                return
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            self._codes.update(json.loads(line) for line in lines)


class Forked:
    """A worker forked from a template."""

    def __init__(self, parent: Template, number: int) -> None:
        self._parent, self._number = parent, number

    def poll(self) -> int | None:
        return self._parent.code(self._number)

    def send_signal(self, sig: int) -> None:
        self._parent.signal(self._number, sig)

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("a forked worker", timeout or 0.0)
            time.sleep(POLL_SECONDS)
        return code


def end(workers: Sequence[Worker], grace_seconds: float) -> None:
    """SIGTERM to all, so that they can leave in order; SIGKILL after the grace."""
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            worker.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    for worker in workers:
        try:
            worker.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.send_signal(signal.SIGKILL)
            worker.wait()
