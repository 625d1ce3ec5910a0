"""Cost of ImageNet-C at 224x224 and severity 3, per corruption, beside a plain per-image version of each formula.

`tox run -e ratios` prints both side by side, alternating, and the ratio of the whole set.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from imagenet_c_image import golden_image
from imagenet_c_reference import REFERENCE
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from mmbench.corruption import load_corruption
from mmbench.rng import StreamKey

BATCH = 16
SEVERITY = 3
ROUNDS = 5


pytestmark = pytest.mark.usefixtures("two_threads")


def batched(name: str) -> Callable[[], Tensor]:
    """The library's version on a batch of BATCH images."""
    corruption = load_corruption(f"imagenet_c/{name}@{SEVERITY}")
    x = torch.from_numpy(golden_image()).permute(2, 0, 1).repeat(BATCH, 1, 1, 1).contiguous()
    ids = tuple(f"image-{i}" for i in range(BATCH))
    draws = corruption.draws(StreamKey("bench", "test", 0), ids, torch.full((BATCH,), 224))
    return lambda: corruption.apply(x, draws)


def plain(name: str) -> Callable[[], object]:
    """The plain version on one image."""
    image, rng = golden_image(), np.random.default_rng(0)
    return lambda: REFERENCE[name](image, SEVERITY, rng)


@pytest.mark.parametrize("name", REFERENCE)
def test_batch(benchmark: BenchmarkFixture, name: str) -> None:
    assert benchmark(batched(name)) is not None


@pytest.mark.parametrize("name", REFERENCE)
def test_plain_image(benchmark: BenchmarkFixture, name: str) -> None:
    assert benchmark(plain(name)) is not None


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    torch.set_num_threads(2)
    total_own = total_plain = 0.0
    for name in REFERENCE:
        own, reference = batched(name), plain(name)
        own(), reference()
        pairs = [(seconds(own) / BATCH, seconds(reference)) for _ in range(ROUNDS)]
        own_seconds, plain_seconds = (min(column) for column in zip(*pairs, strict=True))
        total_own, total_plain = total_own + own_seconds, total_plain + plain_seconds
        ratio = plain_seconds / own_seconds
        print(f"{name:20s} {1e3 * own_seconds:8.2f} ms {1e3 * plain_seconds:8.2f} ms {ratio:7.1f}x")
    print(f"{'whole set':20s} {1e3 * total_own:8.2f} ms {1e3 * total_plain:8.2f} ms {total_plain / total_own:7.1f}x")


if __name__ == "__main__":
    main()
