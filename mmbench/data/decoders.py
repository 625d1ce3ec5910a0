"""Processes that decode files of others: each may hang, crash or run out of memory without harm to the rest."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import connection, get_context, resource_tracker
from typing import Any, Generic, TypeVar

from mmbench.errors import DataError

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Died:
    """What a process ended of instead of giving a result."""

    reason: str


class Decoders(Generic[Job, Result]):
    """`workers` processes that call `work`; one that takes longer than `limit_s` over a job is ended by the system.

    `work` must be a function of a module, and return what can go wrong as a result. Jobs are taken one at a time as
    processes become free, so that a list of any length takes no memory here.
    """

    def __init__(self, work: Callable[[Job], Result], workers: int, limit_s: float) -> None:
        self._work, self._workers, self._limit_s = work, workers, limit_s

    def run(self, jobs: Iterator[Job]) -> Iterator[tuple[Job, Result | Died]]:
        """Results as they come, in any order; closing the iterator ends the processes.

        Raises DataError where processes cannot start.
        """
        free: list[_Process] = []
        busy: dict[Any, tuple[_Process, Job]] = {}
        try:
            while True:
                while len(busy) < self._workers and (job := next(jobs, None)) is not None:
                    process = self._give(job, free)
                    busy[process.pipe] = process, job
                if not busy:
                    return
                for pipe in connection.wait(list(busy)):
                    process, job = busy.pop(pipe)
                    try:
                        result: Result | Died = process.pipe.recv()
                        free.append(process)
                    except (EOFError, OSError):
                        result = Died(process.last_words(self._limit_s))
                    yield job, result
        finally:
            for process in (*free, *(process for process, _ in busy.values())):
                process.end()

    def _give(self, job: Job, free: list[_Process]) -> _Process:
        while free:
            process = free.pop()
            try:
                process.pipe.send(job)
                return process
            except OSError:  # it died while it had nothing to do
                process.end()
        process = _Process(self._work, self._limit_s)
        process.pipe.send(job)
        return process


class _Process:
    def __init__(self, work: Callable[[Any], Any], limit_s: float) -> None:
        # A fresh interpreter: a fork would copy the threads' locks of whoever shows the progress.
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, work, limit_s), daemon=True)
        # Ctrl-C goes to the whole terminal; the parent alone answers it. The mask is inherited, but starting the
        # tracker, which the first process would do, lifts it.
        resource_tracker.ensure_running()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()

    def last_words(self, limit_s: float) -> str:
        self._process.join()
        code = self._process.exitcode or 0
        self.pipe.close()
        if code == -signal.SIGALRM:
            return f"took longer than {limit_s:g} s"
        if code >= 0:  # not of a job, which gives a result or a signal, but of its beginning: all would end alike
            raise DataError(f"a decoding process could not start (exit code {code}); its own words stand above")
        return f"the decoder crashed ({signal.Signals(-code).name})"

    def end(self) -> None:
        self._process.kill()  # what it writes is written aside
        self._process.join()
        self.pipe.close()


def _serve(pipe: Any, work: Callable[[Any], Any], limit_s: float) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process even inside a decoder that never returns
    while True:
        try:
            job = pipe.recv()
        except EOFError:  # whoever asked is gone
            return
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        result = work(job)
        signal.setitimer(signal.ITIMER_REAL, 0)
        pipe.send(result)
