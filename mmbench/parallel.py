"""Samples of a batch side by side on the cores of the CPU, one thread each.

Small tensors gain more from this than from threads inside each operation: an image stays in the cache of its core, and
no core waits for another after every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")


def side_by_side(work: Callable[[Item], object], items: Iterable[Item]) -> None:
    """Call `work` on every item, as many at once as PyTorch may use threads; raises the first item's error.

    The work must not depend on the order. In a worker process of a loader, which has one thread, this is a plain loop.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        for item in items:
            work(item)
        return
    try:
        # A pool of its own for each call: threads kept for the next one would not survive a fork.
        with ThreadPoolExecutor(threads, "mmbench-sample", torch.set_num_threads, (1,)) as pool:
            for _ in pool.map(work, items):
                pass
    finally:
        torch.set_num_threads(threads)  # the last setting is also that of threads yet to come
