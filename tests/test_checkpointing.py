"""Activation checkpointing: the same gradients from less memory, for every method alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from beds import build

from mmbench import registry
from mmbench.bench import Bench
from mmbench.config import Budget
from mmbench.costs import count_batch
from mmbench.meter import Clock
from mmbench.method import Method
from mmbench.profiling import random_batch
from mmbench.strategy import Regimen

CPU = torch.device("cpu")
TRAINED = [name for name in registry.methods().names() if registry.methods().card(name).trains]


def gradients(method: Method, on: bool) -> tuple[float, dict[str, Any]]:
    method.net.recompute_blocks(on)
    torch.manual_seed(0)  # dropout of library layers
    loss = method.loss(random_batch(method.net.config, 4, CPU)).total
    loss.backward()
    found = {name: p.grad for name, p in method.trainable().items()}
    for parameter in method.trainable().values():
        parameter.grad = None
    return float(loss.detach()), found


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_are_the_same(name: str) -> None:
    method = build(name)
    method.begin(method.phases()[-1])
    (plain_loss, plain), (loss, again) = gradients(method, False), gradients(method, True)
    assert loss == pytest.approx(plain_loss, rel=1e-6)
    for parameter, expected in plain.items():
        if expected is None:
            assert again[parameter] is None, parameter
        else:
            torch.testing.assert_close(again[parameter], expected, rtol=1e-5, atol=1e-7, msg=parameter)


@pytest.mark.parametrize("name", ["full-finetune", "lora-qv", "prompt-the-missing"])
def test_activations_shrink_and_the_count_sees_it(name: str) -> None:
    method = build(name)
    bench, batch = Bench(CPU, Budget(), Clock(CPU)), random_batch(method.net.config, 4, CPU)
    kept = count_batch(Regimen(method), batch, bench).probe.state.activations_bytes
    method.net.recompute_blocks(True)
    made_again = count_batch(Regimen(method), batch, bench).probe.state.activations_bytes
    assert 0 < made_again < 0.7 * kept
