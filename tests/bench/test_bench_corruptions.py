"""Cost of the paper's noise on a batch of 64 at full size; the clone is the part no implementation can avoid."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from mmbench.corruption import load_corruption
from mmbench.rng import StreamKey

BATCH = 64
SHAPES = {"audio": (BATCH, 1024, 128), "vision": (BATCH, 3, 224, 224)}
NAMES = ["audio-alone", "audio-both", "audio-alone-as-shipped", "vision-alone", "vision-both"]


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("modality", SHAPES)
def test_clone(benchmark: BenchmarkFixture, modality: str) -> None:
    benchmark(torch.zeros(SHAPES[modality]).clone)


@pytest.mark.parametrize("name", NAMES)
def test_seed_noise(benchmark: BenchmarkFixture, name: str) -> None:
    corruption = load_corruption(f"seed/{name}")
    shape = SHAPES[name.split("-")[0]]
    x = torch.zeros(shape)
    ids = tuple(f"clip-{i}" for i in range(BATCH))
    draws = corruption.draws(StreamKey("vggsound", "test", 0), ids, torch.full((BATCH,), min(shape[1], 998)))
    assert benchmark(corruption.apply, x, draws).shape == shape
