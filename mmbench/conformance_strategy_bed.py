"""The bed on which training strategies are checked: a small model that trains all of itself, and a companion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmbench import registry
from mmbench.cards import MethodCard, StrategyCard
from mmbench.config import OptimConfig
from mmbench.conformance_bed import SIZES, Bed, mode, parameters
from mmbench.data.batch import Batch
from mmbench.method import Method, Recipe
from mmbench.steps import make_optimizer
from mmbench.strategy import Regimen, Strategy

ONE_BLOCK = Bed(replace(SIZES, depth=1))  # depth is a matter of methods


class Everything(Method):
    """The plainest method that reaches into both encoders: every live tensor trains."""

    card = MethodCard("bed", "Bed", "bed", "none", 2026, "M3")

    def build(self, rng: torch.Generator) -> None:
        alive = self.net.live_parameter_names()
        for name, parameter in self.net.named_parameters():
            parameter.requires_grad_(name in alive)


class Companion(Strategy):
    """Another strategy to combine with: it moves the audio and turns labels into shares."""

    card = StrategyCard("companion", "Companion", "none", 2026)

    def view(self, method: Method, batch: Batch, rng: torch.Generator) -> Batch:
        assert batch.label is not None
        classes = method.net.config.n_classes
        hot = batch.label if batch.label.ndim == 2 else F.one_hot(batch.label, classes)
        return replace(batch, audio=batch.audio.roll(1, dims=1), label=0.9 * hot.float() + 0.1 * hot.float().roll(1, 0))


@dataclass(frozen=True)
class StrategySubject:
    """The strategy under test."""

    name: str
    bed: Bed = ONE_BLOCK
    options: Mapping[str, Any] = field(default_factory=dict)

    def make(self) -> Strategy:
        made: Strategy = registry.strategies().load(self.name)(self.options)
        return made

    def regimen(self, *others: Strategy, multi_label: bool = False) -> Regimen:
        """A fresh method under this strategy and, outside of it, others."""
        recipe = Recipe(multi_label=multi_label)
        method = Everything(self.bed.net(), recipe, {}, torch.Generator().manual_seed(0))
        mode(method, True)
        return Regimen(method, (self.make(), *others))

    def batch(self, multi_label: bool = False) -> Batch:
        batch = self.bed.batch()
        assert batch.label is not None
        hot = F.one_hot(batch.label, self.bed.config.n_classes)
        return replace(batch, label=(hot | hot.roll(1, 0)).float()) if multi_label else batch


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def knowledge(batch: Batch) -> dict[str, Tensor]:
    """Every tensor of a batch, those of a subclass included."""
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def gradients(method: Method) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in method.trainable().items() if p.grad is not None}


def forwarded(regimen: Regimen, batch: Batch) -> int:
    """Samples that a loss sends through the encoder that sees more of them."""
    rows = {"audio": 0, "image": 0}
    net = regimen.method.net

    def counter(key: str) -> Callable[..., None]:
        def count(module: nn.Module, args: Any, out: Tensor) -> None:
            rows[key] += len(out)

        return count

    modules = {"audio": net.patch_embed_a, "image": net.patch_embed_v}
    handles = [module.register_forward_hook(counter(key)) for key, module in modules.items()]
    regimen.loss(batch)
    for handle in handles:
        handle.remove()
    return max(rows.values())


def hook_count(method: Method) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in method.net.modules())


def train(regimen: Regimen, subject: StrategySubject, steps: int, lr: float = 1e-3) -> None:
    """A few steps as the training loop does them."""
    method, rng = regimen.method, generator(0)
    optimizer = make_optimizer(method.groups(lr), OptimConfig())
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        batch = regimen.view(subject.bed.batch(step), rng)
        regimen.loss(batch).total.backward()  # type: ignore[no-untyped-call]
        regimen.after_backward(step, steps)
        optimizer.step()
        method.after_step(step, steps)
    for tensor in parameters(method).values():
        tensor.grad = None
