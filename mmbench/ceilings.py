"""What a device can do at most, measured: the rate that a step's own is compared with."""

from __future__ import annotations

import time
from functools import cache

import torch

from mmbench.meter import synchronize

REPEATS = 8
SIDES = {"cpu": 1024, "cuda": 8192}
"""Rows and columns of the square matrices: large enough that the rate does not grow with them."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@cache
def matmul_flops_per_second(device: torch.device, precision: str) -> float:
    """The best of a few products of two square matrices; measured once a process."""
    side = SIDES[device.type]
    one = torch.ones(side, side, device=device, dtype=DTYPES[precision])
    best = float("inf")
    for _ in range(REPEATS):
        synchronize(device)
        began = time.perf_counter()
        one @ one
        synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2.0 * side**3 / best
