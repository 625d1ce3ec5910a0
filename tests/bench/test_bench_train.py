"""One optimiser step and one prediction of each method on the tiny backbone, side by side in one run."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from mmbench import registry
from mmbench.backbone.cavmae import CAVMAEFT
from mmbench.backbone.config import preset
from mmbench.bench import Bench
from mmbench.config import Budget
from mmbench.ledger import Ledger
from mmbench.meter import Clock
from mmbench.method import Method, Recipe
from mmbench.profiling import random_batch
from mmbench.source import open_gates
from mmbench.steps import fitting_step, make_optimizer
from mmbench.strategy import Regimen

BATCH = 16
CPU = torch.device("cpu")
TRAINED = [name for name in registry.methods().names() if registry.methods().card(name).trains]


def method_on_tiny(name: str) -> Method:
    net = CAVMAEFT(preset("cavmae-tiny"), torch.Generator().manual_seed(0))
    open_gates(net)
    method: Method = registry.methods().load(name)(net, Recipe(), {}, torch.Generator().manual_seed(0))
    method.begin(method.phases()[-1])
    return method


@pytest.mark.benchmark(group="training step, batch 16")
@pytest.mark.parametrize("name", TRAINED)
def test_training_step(benchmark: BenchmarkFixture, name: str) -> None:
    method = method_on_tiny(name)
    bench = Bench(CPU, Budget(batch_size=BATCH), Clock(CPU))
    batch = random_batch(method.net.config, BATCH, CPU)
    optimizer = make_optimizer(method.groups(1e-4), bench.budget.optim)
    ledger = Ledger(micro_batch=BATCH)
    loss = benchmark(lambda: fitting_step(Regimen(method), batch, optimizer, bench, ledger, (0, 1)))
    assert torch.isfinite(loss)


@pytest.mark.benchmark(group="prediction, batch 16")
@pytest.mark.parametrize("name", TRAINED)
def test_prediction(benchmark: BenchmarkFixture, name: str) -> None:
    method = method_on_tiny(name)
    batch = random_batch(method.net.config, BATCH, CPU)
    logits = benchmark(lambda: method.predict(batch))
    assert logits.shape == (BATCH, method.net.config.n_classes)
