"""One training step at base size on two CPU cores, beside a plain implementation: open softmax, Adam tensor by tensor.

`tox run -e ratios` prints seconds and ratios, all variants alternating in one run (a quarter of an
hour, 8 GB). Under pytest the backbone is the tiny one, unless benchmarks are enabled.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch.utils.flop_counter import FlopCounterMode

from mmbench import registry
from mmbench.backbone.blocks import Attention
from mmbench.backbone.cavmae import CAVMAEFT
from mmbench.backbone.config import preset
from mmbench.bench import Bench
from mmbench.ceilings import matmul_flops_per_second
from mmbench.config import Budget
from mmbench.ledger import Ledger
from mmbench.meter import Clock
from mmbench.method import Method, Recipe
from mmbench.profiling import random_batch
from mmbench.source import open_gates
from mmbench.steps import fitting_step, make_optimizer
from mmbench.strategy import Regimen

BATCH = 4
ROUNDS = 2
STEPS = 3
"""Timed steps in a round; the quickest of all rounds counts."""
CPU = torch.device("cpu")
Step = Callable[[], object]


@dataclass(frozen=True)
class Variant:
    method: str
    precision: str = "fp32"
    plain: bool = False
    encoded: bool = False
    """Whether the outputs of the frozen encoders are read and not made, as with `budget.views`."""

    @property
    def label(self) -> str:
        return f"{self.method} {'plain' if self.plain else self.precision}{' encoded' if self.encoded else ''}"


PLAIN = Variant("full-finetune", plain=True)
FULL = {precision: Variant("full-finetune", precision) for precision in ("fp32", "bf16")}
OTHERS = ("prompt-attention", "prompt-the-missing", "lora-qv", "adapter-pfeiffer")
ENCODED = tuple(Variant("prompt-attention", precision, encoded=True) for precision in FULL)
VARIANTS = (PLAIN, *FULL.values(), *(Variant(name, precision) for name in OTHERS for precision in FULL), *ENCODED)


pytestmark = pytest.mark.usefixtures("two_threads")


def method_on(backbone: str, name: str) -> Method:
    net = CAVMAEFT(preset(backbone, n_classes=10), torch.Generator().manual_seed(0))
    open_gates(net)
    method: Method = registry.methods().load(name)(net, Recipe(), {}, torch.Generator().manual_seed(0))
    method.begin(method.phases()[-1])
    return method


def step_of(variant: Variant, backbone: str) -> Step:
    method = method_on(backbone, variant.method)
    batch = random_batch(method.net.config, BATCH, CPU)
    if variant.plain:
        return plain_step(method, batch)
    if variant.encoded:
        with torch.no_grad():
            batch = replace(batch, encoded=method.net.encode(batch.audio, batch.image, method.hooks, batch))
    bench = Bench(CPU, Budget(batch_size=BATCH, precision=variant.precision), Clock(CPU))  # type: ignore[arg-type]
    optimizer = make_optimizer(method.groups(1e-4), bench.budget.optim)
    ledger = Ledger(micro_batch=BATCH)
    return lambda: fitting_step(Regimen(method), batch, optimizer, bench, ledger, (0, 1))


def plain_step(method: Method, batch: object) -> Step:
    """The same model as it would be written first: scores in the open, float32, an optimiser that loops."""
    for module in method.net.modules():
        if isinstance(module, Attention):
            module.explicit = True
    optimizer = torch.optim.Adam(method.groups(1e-4), foreach=False, fused=False)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        method.loss(batch).total.backward()  # type: ignore[arg-type,no-untyped-call]
        optimizer.step()

    return step


@pytest.mark.benchmark(group=f"training step, batch {BATCH}")
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.label)
def test_training_step(benchmark: BenchmarkFixture, variant: Variant) -> None:
    step = step_of(variant, "cavmae-base" if benchmark.enabled else "cavmae-tiny")
    benchmark.pedantic(step, rounds=ROUNDS, warmup_rounds=1)


def seconds(step: Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def linear_flops(backbone: str) -> float:
    """Of the linear layers in one step of full fine-tuning; attention is not counted."""
    step = step_of(FULL["fp32"], backbone)
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


def products_per_second(precision: str) -> float:
    matmul_flops_per_second.cache_clear()
    return matmul_flops_per_second(CPU, precision)


def main(backbone: str = "cavmae-base") -> None:
    torch.set_num_threads(2)
    full = {PLAIN.precision: FULL["fp32"]} | FULL
    best: dict[Variant, float] = {}
    rates = dict.fromkeys(FULL, 0.0)
    for _ in range(ROUNDS):
        for variant in VARIANTS:  # one in memory at a time
            step = step_of(variant, backbone)
            step()  # optimiser states are made in the first
            best[variant] = min(best.get(variant, float("inf")), *(seconds(step) for _ in range(STEPS)))
            rates = {precision: max(rate, products_per_second(precision)) for precision, rate in rates.items()}
    for variant, taken in best.items():
        own = taken / best[full[variant.precision]]
        print(f"{variant.label:32s} {taken:7.3f} s {taken / best[PLAIN]:6.2f}x plain {own:6.2f}x full fine-tuning")
    for precision, rate in rates.items():
        label, taken = f"linear layers {precision}", linear_flops(backbone) / rate
        print(f"{label:32s} {taken:7.3f} s {taken / best[PLAIN]:6.2f}x plain, alone: no full step can be quicker")


if __name__ == "__main__":
    main()
