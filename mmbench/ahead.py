"""Work done ahead of its use, so that loading does not hold up a device that computes on its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(jobs: Iterable[Callable[[], T]], depth: int) -> Generator[T, None, None]:
    """Results in the jobs' order; up to `depth` of them are made in a thread while the caller works.

    With 0 each job runs when its result is asked for. An error comes where its result would have come. Closing the
    iterator drops what has not begun.
    """
    if depth == 0:
        for job in jobs:
            yield job()
        return
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(1) as thread:
        try:
            for job in jobs:
                waiting.append(thread.submit(job))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
