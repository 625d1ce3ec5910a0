"""`profile` counts and measures every method that trains, and refuses what it cannot measure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmbench import profiling, registry
from mmbench.backbone.config import preset
from mmbench.bench import Bench
from mmbench.config import Budget
from mmbench.errors import ConfigError, DivergedError, DoesNotFitError
from mmbench.meter import Clock
from mmbench.profile_measure import Measuring, largest, random_batch
from mmbench.profile_rows import Counts, Measured, Plan, Setting
from mmbench.profiling import build_method, profile

CPU, META = torch.device("cpu"), torch.device("meta")
ONE = Plan(steps=1)
TRAINED = [
    name
    for name in registry.methods().names()
    if registry.methods().card(name).trains and registry.methods().entry(name).origin.label == "mmbench"
]
DEFECTIVE = """
import torch
from mmbench.method import Method
from mmbench.registry import method

FACTS = {"family": "f", "reference": "r", "year": 2026, "memory": "M2"}


class Plain(Method):
    def build(self, rng):
        self.steps = 0


@method("sound", title="S", **FACTS)
class Sound(Plain):
    pass


@method("leaks", title="L", **FACTS)
class Leaks(Plain):
    def build(self, rng):
        self.hoard = []

    def loss(self, batch):
        loss = super().loss(batch)
        self.hoard.append(torch.zeros(1000, device=loss.total.device))
        return loss


@method("keeps-graphs", title="K", **FACTS)
class KeepsGraphs(Plain):
    def build(self, rng):
        self.net.blocks_u.requires_grad_(True)
        self.hoard = []

    def loss(self, batch):
        loss = super().loss(batch)
        self.hoard.append(loss.total.clone())
        return loss


@method("hides", title="H", **FACTS)
class Hides(Plain):
    def build(self, rng):
        self.secret = [torch.zeros(4, 10, device=next(self.net.parameters()).device).requires_grad_()]

    def logits(self, batch):
        return super().logits(batch) + self.secret[0].sum(0)


@method("is-no-number", title="N", **FACTS)
class IsNoNumber(Plain):
    def logits(self, batch):
        return super().logits(batch) * float("nan")


@method("waits", title="W", **FACTS)
class Waits(Plain):
    def loss(self, batch):
        loss = super().loss(batch)
        assert float(loss.total) == loss.total.item()
        return loss
"""


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """One block an encoder: what holds of a method does not depend on how often a block is repeated."""
    small = replace(preset("cavmae-tiny"), depth=1)
    monkeypatch.setattr(profiling, "preset", lambda name, **sizes: replace(small, **sizes))


def on_cpu(name: str, **changes: object) -> tuple[Counts, Measured]:
    counts, measured = profile(Setting(method=name, **{"batch": 2, **changes}), ONE, CPU)
    assert measured is not None
    return counts, measured


def on_meta(name: str, plan: Plan = ONE, **changes: object) -> Counts:
    counts, measured = profile(Setting(method=name, **changes), plan, META)
    assert measured is None
    return counts


def one_a_file_quickly(names: list[str]) -> list[Any]:
    """All of them; those after the first of a file differ from it in little and are marked slow."""
    seen: set[str] = set()
    marked = []
    for name in names:
        module = registry.methods().entry(name).origin.module
        marked.append(pytest.param(name, marks=[pytest.mark.slow] if module in seen else []))
        seen.add(module)
    return marked


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("name", one_a_file_quickly(TRAINED))
def test_every_method_that_trains_has_its_counts_without_a_device(name: str) -> None:
    counts = on_meta(name)
    assert 0 < counts.head_parameters <= counts.trainable_parameters <= counts.total_parameters
    assert counts.hidden_parameters == counts.kept_bytes_per_step == 0
    assert counts.state.activations_bytes > 0 and counts.stored_bytes > 0
    assert counts.train_flops_per_sample > counts.eval_flops_per_sample > 0


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("name", ["full-finetune", "lora-qv", "prompt-attention"])
def test_a_method_is_measured_and_counted_alike_on_a_device(name: str) -> None:
    counts, measured = on_cpu(name)
    elsewhere = on_meta(name, batch=2)
    assert measured.step_seconds_median > 0 and measured.single_seconds_median > 0
    assert measured.epoch_samples == ONE.epoch_samples
    assert measured.samples_per_second == pytest.approx(2 / measured.step_seconds_median)
    assert measured.achieved_share > 0 and measured.matmul_flops_per_second > 1e8
    assert measured.copy_bytes_per_second is not None and measured.copy_bytes_per_second > 1e8
    assert measured.energy_joules_per_step is None and measured.largest_batch is None
    assert counts.state.activations_bytes == pytest.approx(elsewhere.state.activations_bytes, rel=0.05)
    assert counts.train_flops_per_sample == pytest.approx(elsewhere.train_flops_per_sample, rel=0.02)
    assert counts.state.total_bytes - counts.state.activations_bytes == (
        elsewhere.state.total_bytes - elsewhere.state.activations_bytes
    )


@pytest.mark.usefixtures("shallow")
def test_half_precision_counts_smaller_activations_as_on_a_device() -> None:
    full, half = on_meta("full-finetune", batch=4), on_meta("full-finetune", batch=4, precision="bf16")
    counts, _ = on_cpu("full-finetune", batch=4, precision="bf16")
    assert half.state.activations_bytes < full.state.activations_bytes
    assert counts.state.activations_bytes == pytest.approx(half.state.activations_bytes, rel=0.2)


def test_the_training_state_of_the_whole_model_is_that_of_a_hand_count() -> None:
    counts = on_meta("full-finetune", batch=8)
    net = build_method(Setting(method="full-finetune"), META).net
    alive = net.live_parameter_names()
    values = sum(p.numel() for name, p in net.named_parameters() if name in alive)
    c = preset("cavmae-tiny")
    assert counts.trainable_parameters == values
    assert counts.state.gradients_bytes == 4 * values
    assert counts.state.optimizer_bytes == 8 * values
    # A block saves per token and value: the input of each norm and of each linear, q, k, v, the attention's result
    # and the MLP before and after GELU: 2 + 1 + 3 + 1 + 1 + 4 + 4 widths, and a few statistics.
    tokens = c.audio_tokens + c.vision_tokens
    blocks = 4 * 16 * c.embed_dim * tokens * (c.depth + c.joint_depth)
    per_sample = counts.state.activations_bytes / 8
    assert blocks < per_sample < 1.7 * blocks  # the rest is fusion, two cross-attentions and two MLPs


@pytest.mark.usefixtures("shallow")
def test_the_largest_batch_is_the_last_whose_state_fits() -> None:
    cap = 0.05
    counts = on_meta("full-finetune", Plan(memory_cap_gib=cap))
    assert counts.largest_batch is not None and counts.largest_batch > 1
    fits = on_meta("full-finetune", batch=counts.largest_batch).state.total_bytes
    beyond = on_meta("full-finetune", batch=counts.largest_batch + 1).state.total_bytes
    assert fits <= cap * 2**30 < beyond


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 7, 8, 100])
def test_the_search_ends_on_the_largest_that_fits(limit: int) -> None:
    assert largest(lambda size: size <= limit, most=64) == min(limit, 64)


@pytest.mark.parametrize("fitting", [0, 1, 2])
def test_a_batch_runs_if_its_second_step_fits_too(fitting: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter([True] * fitting + [False] * (2 - fitting))

    def step(*args: object) -> None:
        if not next(calls):
            raise DoesNotFitError("memory")

    monkeypatch.setattr(Measuring, "_step", step)
    setting = Setting(method="linear-probe")
    bench = Bench(CPU, Budget(), Clock(CPU))
    measuring = Measuring(build_method(setting, CPU), setting, ONE, bench)
    batch = random_batch(measuring.method.net.config, 1, CPU)
    assert measuring._runs(batch, 2) is (fitting == 2)


def test_energy_is_that_of_steps_enough_for_a_coarse_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    took: list[float] = []

    class Coarse:
        """Ten watts, told in whole joules."""

        def __init__(self, device: torch.device) -> None:
            pass

        def read(self) -> float:
            return float(int(10 * sum(took)))

    def timed(measuring: Measuring, work: Callable[[], object]) -> float:
        took.append(0.01)
        return took[-1]

    monkeypatch.setattr("mmbench.profile_measure.EnergyMeter", Coarse)
    monkeypatch.setattr(Measuring, "_timed", timed)
    _, measured = on_cpu("linear-probe")
    assert measured.energy_joules_per_step == pytest.approx(0.1, rel=0.1)


@pytest.mark.usefixtures("shallow")
def test_defects_of_a_plugin_show_in_its_figures(use_plugin: Callable[[str], Path]) -> None:
    use_plugin(DEFECTIVE)
    sound, leaks, hides, graphs = (on_meta(name) for name in ("sound", "leaks", "hides", "keeps-graphs"))
    assert (sound.kept_bytes_per_step, sound.hidden_parameters) == (0, 0)
    assert leaks.kept_bytes_per_step == 4000
    assert hides.hidden_parameters == 40
    assert hides.trainable_parameters == sound.trainable_parameters + 40
    assert hides.state.gradients_bytes == sound.state.gradients_bytes + 160
    assert graphs.kept_bytes_per_step > 0
    # A value read inside the step makes it wait; without a device there is no value to read.
    assert on_cpu("sound")[0].waits_per_step == 0
    assert on_cpu("waits")[0].waits_per_step == 2
    assert sound.waits_per_step is None
    with pytest.raises(DivergedError, match="the loss of step 1 is nan"):
        on_cpu("is-no-number")


def test_a_method_without_training_is_refused() -> None:
    with pytest.raises(ConfigError, match="source does not train"):
        profile(Setting(method="source"), ONE, CPU)
