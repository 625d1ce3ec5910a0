"""Cost of every registered corruption on a batch of 64 at full size: samples a second, and share of a training step.

`python tests/bench/test_bench_corruptions.py [NAME ...]` prints samples a second and what a corrupted sample adds to
its part in a step of full fine-tuning, of cavmae-tiny and of cavmae-base. The tiny backbone reads smaller inputs than
the full size corrupted here, so its share is an upper bound.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from mmbench import registry
from mmbench.backbone.cavmae import CAVMAEFT
from mmbench.backbone.config import preset
from mmbench.bench import Bench
from mmbench.config import Budget
from mmbench.corruption import Stage, load_corruption
from mmbench.ledger import Ledger
from mmbench.meter import Clock
from mmbench.method import Recipe
from mmbench.profile_measure import random_batch
from mmbench.rng import StreamKey
from mmbench.steps import fitting_step, make_optimizer
from mmbench.strategy import Regimen

BATCH, SMALL_BATCH = 64, 1  # samples; the small one where nothing is measured
STEP_BATCH = {"cavmae-tiny": 16, "cavmae-base": 4}
ROUNDS = 3
CLIP_SAMPLES, FRAMES, MEL_BINS, SIDE = 160_000, 1024, 128, 224  # 10 s at 16 kHz; pixels
NAMES = registry.corruptions().names()
CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("two_threads")


def corrupting(name: str, size: int) -> Callable[[], Tensor]:
    """The corruption on `size` samples, at the middle of its severities."""
    severities = registry.corruptions().card(name).severities
    corruption = load_corruption(f"{name}@{severities[len(severities) // 2]}" if severities != (0,) else name)
    x, length = samples(corruption.card.modality, corruption.stage)
    ids = tuple(f"clip-{i}" for i in range(size))
    batch = x.repeat(size, *(1,) * (x.dim() - 1))
    draws = corruption.draws(StreamKey("bench", "test", 0), ids, torch.full((size,), length))
    return lambda: corruption.apply(batch, draws)


def samples(modality: str, stage: Stage) -> tuple[Tensor, int]:
    """One sample as the stage has it, and its valid length."""
    generator = torch.Generator().manual_seed(0)
    if modality == "vision" and stage == Stage.SAMPLE:
        return torch.tensor([5]), 10  # the picture shown, of ten
    raw = stage in (Stage.SAMPLE, Stage.WAVEFORM, Stage.IMAGE)
    if modality == "vision":
        levels = torch.randint(0, 256, (1, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
        return (levels if raw else levels / 64 - 2), SIDE
    if raw:
        return (torch.rand(1, CLIP_SAMPLES, generator=generator) - 0.5) / 4, CLIP_SAMPLES
    return torch.randn(1, FRAMES, MEL_BINS, generator=generator), FRAMES - 26


@lru_cache(maxsize=2)
def step_seconds_per_sample(backbone: str) -> float:
    """Of one step of full fine-tuning, after one that is not counted."""
    size = STEP_BATCH[backbone]
    net = CAVMAEFT(preset(backbone), torch.Generator().manual_seed(0))
    method = registry.methods().load("full-finetune")(net, Recipe(), {}, torch.Generator().manual_seed(0))
    method.begin(method.phases()[-1])
    bench = Bench(CPU, Budget(batch_size=size), Clock(CPU))
    batch = random_batch(net.config, size, CPU)
    optimizer = make_optimizer(method.groups(1e-4), bench.budget.optim)
    ledger = Ledger(micro_batch=size)
    return fastest(lambda: fitting_step(Regimen(method), batch, optimizer, bench, ledger, (0, 1)), 1) / size


def fastest(run: Callable[[], object], rounds: int) -> float:
    """Seconds of the fastest of some rounds, after one that is not counted."""
    run()
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return min(taken)


@pytest.mark.parametrize("name", NAMES)
def test_corruption(benchmark: BenchmarkFixture, name: str) -> None:
    family, size = name.split("/")[0], SMALL_BATCH if benchmark.disabled else BATCH
    benchmark.group = f"corruption {family}, batch {size}"
    out = benchmark(corrupting(name, size))
    assert len(out) == size
    if benchmark.stats is not None:
        seconds = benchmark.stats.stats.min / size
        benchmark.extra_info["samples_per_second"] = 1 / seconds
        benchmark.extra_info["share_of_tiny_step"] = seconds / step_seconds_per_sample("cavmae-tiny")


@pytest.mark.parametrize("modality", ["audio", "vision"])
def test_clone_at_full_size(benchmark: BenchmarkFixture, modality: str) -> None:
    """The part of the seed's noise that no implementation can avoid."""
    benchmark.group = "corruption seed, batch 64"
    sample, _ = samples(modality, Stage.NORMALISED)
    benchmark(sample.repeat(BATCH, *(1,) * (sample.dim() - 1)).clone)


def main() -> None:
    torch.set_num_threads(2)
    steps = {backbone: step_seconds_per_sample(backbone) for backbone in STEP_BATCH}
    for name in sys.argv[1:] or NAMES:
        seconds = fastest(corrupting(name, BATCH), ROUNDS) / BATCH
        shares = "  ".join(f"{seconds / step:8.1%} of a {backbone} step" for backbone, step in steps.items())
        print(f"{name:36s} {1 / seconds:9.0f} samples/s  {shares}", flush=True)


if __name__ == "__main__":
    main()
