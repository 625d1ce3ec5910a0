"""What a device can do at most, measured: the rates that a step's own are compared with."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch

from mmbench.meter import synchronize

REPEATS = 8
SECONDS = {"cpu": 0.0, "cuda": 0.5}
"""How long a product is repeated at least: a GPU that idled takes a while to reach its clock."""
SIDES = {"cpu": 1024, "cuda": 8192}
"""Rows and columns of the square matrices: large enough that the rate does not grow with them."""
COPIED_BYTES = {"cpu": 2**26, "cuda": 2**30}
"""More than a cache holds."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@cache
def matmul_flops_per_second(device: torch.device, precision: str) -> float:
    """The best of a few products of two square matrices; measured once a process.

    Their values are drawn: a GPU multiplies equal numbers faster than it ever does in a step, for it draws less power.
    """
    side = SIDES[device.type]
    rng = torch.Generator().manual_seed(0)
    one = torch.randn(side, side, generator=rng).to(device, DTYPES[precision])
    out = torch.empty_like(one)
    return 2.0 * side**3 / _best_seconds(lambda: torch.mm(one, one, out=out), device)


@cache
def copy_bytes_per_second(device: torch.device) -> float:
    """The best of a few copies within the device's memory, read and written bytes together; once a process."""
    size = COPIED_BYTES[device.type]
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2.0 * size / _best_seconds(lambda: target.copy_(source), device)


def _best_seconds(work: Callable[[], object], device: torch.device) -> float:
    """The shortest of REPEATS runs and of as many as SECONDS take."""
    best, runs, started = float("inf"), 0, time.perf_counter()
    while runs < REPEATS or time.perf_counter() - started < SECONDS[device.type]:
        synchronize(device)
        began = time.perf_counter()
        work()
        synchronize(device)
        best = min(best, time.perf_counter() - began)
        runs += 1
    return best
