"""Meters: clocks that add up to the wall, activation counts that agree with a hand count, nothing left behind."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from beds import CPU, build, make_bench, make_job, memory_data
from torch import Tensor, nn

from mmbench.conformance_bed import Bed
from mmbench.ledger import WARMUP_STEPS, StepTimes
from mmbench.meter import (
    Clock,
    EnergyMeter,
    PeakMeter,
    SavedActivations,
    flop_counter,
    optimizer_bytes,
    probe_step,
)
from mmbench.steps import cap_memory
from mmbench.train import fit


class Watch:
    """Time that passes only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


def test_phases_are_exclusive_and_sum_to_the_wall() -> None:
    watch = Watch()
    clock = Clock(CPU, watch)
    watch.wait(1)
    with clock.phase("train"):
        watch.wait(2)
        with clock.phase("log"):
            watch.wait(4)
        watch.wait(8)
    watch.wait(16)
    found = clock.summary()
    assert (found.setup, found.train, found.log) == (17, 10, 4)
    assert found.wall == 31 == found.setup + found.data + found.train + found.tune + found.evaluate + found.log


def test_a_whole_phase_takes_everything_inside_and_gives_it_back_at_the_end() -> None:
    watch = Watch()
    clock = Clock(CPU, watch)
    with clock.phase("tune", whole=True):
        with clock.phase("train"):
            watch.wait(1)
            with clock.phase("log"):
                watch.wait(2)
        watch.wait(4)
    with clock.phase("train"):
        watch.wait(8)
    found = clock.summary()
    assert (found.tune, found.train, found.log) == (7, 8, 0)


def test_an_error_inside_a_phase_closes_it() -> None:
    watch = Watch()
    clock = Clock(CPU, watch)
    with pytest.raises(ValueError, match="inside"), clock.phase("tune", whole=True), clock.phase("train"):
        watch.wait(1)
        raise ValueError("inside")
    with clock.phase("train"):
        watch.wait(2)
    watch.wait(4)
    found = clock.summary()
    assert (found.tune, found.train, found.setup) == (1, 2, 4)


def test_real_time_adds_up() -> None:
    clock = Clock(CPU)
    for name in ("data", "train", "evaluate"):
        with clock.phase(name), clock.phase("log"):
            time.sleep(0.01)
    found = clock.summary()
    parts = found.setup + found.data + found.train + found.tune + found.evaluate + found.log
    assert parts == pytest.approx(found.wall, abs=1e-3)
    assert found.log >= 0.03


def test_waiting_in_evaluation_is_not_training_time() -> None:
    bench = make_bench()
    fitted = fit(build("linear-probe"), memory_data(), make_job(), bench)
    train_seconds = bench.clock.seconds("train")
    with bench.clock.phase("evaluate"):
        time.sleep(0.05)
    assert bench.clock.seconds("train") == train_seconds > 0
    assert bench.clock.seconds("evaluate") >= 0.05
    assert sum(fitted.ledger.times.seconds) <= train_seconds


def saved_bytes(module: nn.Module, x: Tensor) -> int:
    with SavedActivations(list(module.parameters())) as saved:
        module(x).sum()
    return saved.total_bytes


def test_a_linear_keeps_its_input_once_and_no_parameter() -> None:
    assert saved_bytes(nn.Linear(8, 3), torch.ones(5, 8)) == 5 * 8 * 4


def test_a_frozen_linear_keeps_nothing() -> None:
    frozen = nn.Linear(8, 3).requires_grad_(False)
    assert saved_bytes(frozen, torch.ones(5, 8)) == 0
    assert saved_bytes(frozen, torch.ones(5, 8, requires_grad=True)) == 0  # its weight is a parameter, not activation


def test_a_storage_shared_by_two_linears_counts_once() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.one(x) + self.two(x.view(5, 8))  # type: ignore[no-any-return]

    assert saved_bytes(Two(), torch.ones(5, 8)) == 5 * 8 * 4


def test_a_chain_keeps_each_input_of_a_trainable_layer() -> None:
    chain = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    # The input, and the ReLU's result, which the ReLU and the second layer share.
    assert saved_bytes(chain, torch.ones(5, 8)) == 5 * 8 * 4 + 5 * 16 * 4


def test_activations_are_counted_where_there_is_no_memory() -> None:
    assert saved_bytes(nn.Linear(8, 3, device="meta"), torch.ones(5, 8, device="meta")) == 5 * 8 * 4


def test_a_slice_counts_as_the_storage_it_keeps_alive() -> None:
    assert saved_bytes(nn.Linear(8, 3), torch.ones(50, 8)[:5]) == 50 * 8 * 4


def test_a_probe_counts_gradients_and_leaves_none() -> None:
    method, batch = build("lora-qv"), Bed().batch(samples=4)
    before = {name: p.detach().clone() for name, p in method.net.named_parameters()}
    probe = probe_step(lambda: method.loss(batch).total, method.trainable(), list(method.net.parameters()), 4)
    values = sum(p.numel() for p in method.trainable().values())
    assert probe.state.gradients_bytes == 4 * values
    assert probe.state.optimizer_bytes == 8 * values
    assert probe.state.parameters_bytes == 4 * sum(p.numel() for p in method.net.parameters())
    assert probe.trained == set(method.trainable())
    assert probe.flops_per_sample > 0
    assert all(p.grad is None for p in method.net.parameters())
    assert all(torch.equal(p, before[name]) for name, p in method.net.named_parameters())


def test_flops_of_a_linear_are_two_a_multiplication_and_backward_doubles_them() -> None:
    linear, x = nn.Linear(8, 3), torch.ones(5, 8)
    probe = probe_step(lambda: linear(x).sum(), dict(linear.named_parameters()), list(linear.parameters()), 5)
    # Forward, and the weight's gradient; the input needs none.
    assert probe.flops_per_sample == 2 * (2 * 8 * 3)


@pytest.mark.parametrize(("kind", "factor"), [(torch.optim.AdamW, 2), (torch.optim.Adam, 2), (torch.optim.SGD, 1)])
def test_optimiser_state_is_counted_without_step_counters(kind: type[torch.optim.Optimizer], factor: int) -> None:
    parameters = [nn.Parameter(torch.ones(10, 3)), nn.Parameter(torch.ones(7))]
    settings: dict[str, Any] = {"lr": 0.1, "momentum": 0.9} if kind is torch.optim.SGD else {"lr": 0.1}
    optimizer = kind(parameters, **settings)
    assert optimizer_bytes(optimizer) == 0
    sum(p.sum() for p in parameters).backward()  # type: ignore[union-attr]
    optimizer.step()
    assert optimizer_bytes(optimizer) == factor * 4 * (30 + 7)


def test_a_training_reports_its_optimisers_bytes() -> None:
    method = build("linear-probe")
    fitted = fit(method, memory_data(), make_job(), make_bench())
    assert fitted.ledger.optimizer_bytes == 8 * sum(p.numel() for p in method.trainable().values())


def test_step_times_leave_out_the_warm_up() -> None:
    times = StepTimes()
    assert times.epoch_seconds(100) is None and times.median() is None and times.std() is None
    for seconds in (9.0,) * WARMUP_STEPS + (1.0, 1.0, 4.0):
        times.add(seconds, 10)
    assert times.median() == 1.0
    assert times.epoch_seconds(100) == pytest.approx(6.0 / 30 * 100)
    assert times.std() == pytest.approx(3**0.5)


def test_a_training_shorter_than_the_warm_up_still_has_a_time() -> None:
    times = StepTimes()
    times.add(2.0, 10)
    assert times.epoch_seconds(20) == pytest.approx(4.0)
    assert times.std() is None


def test_uneven_steps_weigh_by_their_samples() -> None:
    times = StepTimes()
    for seconds, samples in itertools.chain([(9.0, 1)] * WARMUP_STEPS, [(1.0, 8), (1.0, 2)]):
        times.add(seconds, samples)
    assert times.epoch_seconds(10) == pytest.approx(2.0)


def test_peak_memory_is_none_where_the_platform_does_not_tell() -> None:
    meter = PeakMeter(CPU)
    meter.reset()
    found = meter.read()
    assert found.allocated_bytes is None and found.reserved_bytes is None
    assert found.rss_bytes is None or found.rss_bytes > 10 * 2**20
    assert EnergyMeter(CPU).read() is None


ALLOCATE = """
import torch
from mmbench.meter import PeakMeter

meter = PeakMeter(torch.device("cpu"))
meter.reset()
before = meter.read().rss_bytes
block = torch.ones(2**25)  # 128 MiB
print(None if before is None else (meter.read().rss_bytes - before) / block.nbytes)
"""


def test_the_resident_peak_sees_a_large_allocation() -> None:
    # In a process of its own: one that has freed gigabytes may be given them again without growing.
    said = subprocess.run([sys.executable, "-c", ALLOCATE], check=True, capture_output=True, text=True).stdout.strip()
    if said == "None":
        pytest.skip("this platform tells no resident size")
    assert 0.5 < float(said) < 2


def test_flops_of_attention_are_counted_on_the_cpu() -> None:
    query, key, value = (torch.randn(2, 4, tokens, 8, requires_grad=True) for tokens in (10, 6, 6))
    with flop_counter() as flops:
        torch.nn.functional.scaled_dot_product_attention(query, key, value).sum().backward()
    product = 2 * 2 * 4 * 10 * 6 * 8  # one of the two matrix products of the forward pass
    assert flops.get_total_flops() == 2 * product + 5 * product  # backward recomputes the scores


def test_a_cap_ends_with_the_trial_that_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[float, int]] = []
    card = SimpleNamespace(total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *share: told.append(share))
    for cap_gib in (24.0, None, 800.0):
        cap_memory(torch.device("cuda:3"), cap_gib)
    cap_memory(torch.device("cpu"), 24.0)
    assert told == [(0.3, 3), (1.0, 3), (1.0, 3)]
