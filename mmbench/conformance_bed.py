"""The bed on which methods are checked: a very small source model, random batches, and a few steps of training."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from mmbench import registry
from mmbench.backbone.cavmae import CAVMAEFT
from mmbench.backbone.config import BackboneConfig
from mmbench.cards import Track
from mmbench.config import OptimConfig
from mmbench.data.batch import Batch
from mmbench.feed import blank
from mmbench.method import Method, Recipe
from mmbench.steps import make_optimizer

STEPS = 3
"""Training steps of a phase; zero-initialised factors hold back the gradient of their partners in the first one."""
SIZES = BackboneConfig(
    name="bed", embed_dim=32, heads=2, depth=2, frames=32, image_size=32, n_classes=4, decoder_dim=32, decoder_heads=2
)
KNOWLEDGE = ("case", "available", "affected", "label")
CASES = ("complete", "missing-audio", "missing-vision")


@dataclass(frozen=True)
class Bed:
    """A very small source model and random batches, all functions of seeds."""

    config: BackboneConfig = SIZES
    samples: int = 6

    def net(self) -> CAVMAEFT:
        """A source model in which no tensor has a special value: its gates are open, its biases are not zero."""
        rng = torch.Generator().manual_seed(1)
        net = CAVMAEFT(self.config, rng)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=0.1)
        return net

    def batch(self, seed: int = 0, samples: int | None = None) -> Batch:
        """Labelled samples with full knowledge; every third lacks audio, every third vision."""
        count = samples or self.samples
        rng = torch.Generator().manual_seed(100 + seed)
        available = torch.tensor([[i % 3 != 1, i % 3 != 2] for i in range(count)])  # (B, 2) bool
        audio = torch.randn(count, self.config.frames, self.config.mel_bins, generator=rng)
        image = torch.randn(count, 3, self.config.image_size, self.config.image_size, generator=rng)
        return Batch(
            audio=audio * available[:, :1, None],
            image=image * available[:, 1, None, None, None],
            label=torch.randint(self.config.n_classes, (count,), generator=rng),
            ids=tuple(f"bed/{seed}-{i}" for i in range(count)),
            case=tuple(CASES[i % 3] for i in range(count)),
            available=available,
            affected=~available,
        )


@dataclass(frozen=True)
class Watched(Batch):
    """A batch that notes which of its forbidden fields a method reads; copies made of it are watched too."""

    forbidden: frozenset[str] = frozenset()
    reads: list[str] = field(default_factory=list)

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name in KNOWLEDGE and name in self.forbidden:
            # dataclasses.replace and Batch.select copy every field; that is not yet use.
            caller = sys._getframe(1).f_globals.get("__name__")
            self.reads.extend([] if caller in ("dataclasses", "mmbench.data.batch") else [name])
        return value

    def select(self, index: Any) -> Watched:
        return watch(super().select(index), self.forbidden, self.reads)


def watch(batch: Batch, forbidden: frozenset[str], reads: list[str]) -> Watched:
    return Watched(**{f.name: getattr(batch, f.name) for f in fields(Batch)}, forbidden=forbidden, reads=reads)


@dataclass
class Training:
    """What a few steps did."""

    reached: set[str] = field(default_factory=set)
    """Declared tensors that received a gradient other than zero."""
    strays: set[str] = field(default_factory=set)
    """Tensors that received a gradient without being declared."""


@dataclass(frozen=True)
class Subject:
    """The method under test."""

    name: str
    bed: Bed
    options: Mapping[str, Any]

    def make(self, seed: int = 0, net: CAVMAEFT | None = None) -> Method:
        """A fresh method on its own source model."""
        kind: type[Method] = registry.methods().load(self.name)
        rng = torch.Generator().manual_seed(seed)
        return kind(net if net is not None else self.bed.net(), Recipe(), self.options, rng)

    def trained(self) -> Method:
        method = self.make()
        train(method, self.bed)
        return method


def train(method: Method, bed: Bed, steps: int = STEPS) -> Training:
    """A few steps of every phase, as the training loop does them; does nothing for rows that do not train."""
    seen = Training()
    if not method.card.trains:
        return seen
    rng = torch.Generator().manual_seed(0)
    low, high = method.card.lr_range
    for phase in method.phases():
        method.begin(phase)
        optimizer = make_optimizer(method.groups((low * high) ** 0.5), OptimConfig())
        mode(method, True)
        for step in range(steps):
            optimizer.zero_grad(set_to_none=True)
            method.loss(method.view(bed.batch(step), rng)).total.backward()  # type: ignore[no-untyped-call]
            method.after_backward(step, steps)
            note_gradients(method, seen)
            optimizer.step()
            method.after_step(step, steps)
    method.finish()
    for tensor in parameters(method).values():
        tensor.grad = None
    mode(method, False)
    return seen


def note_gradients(method: Method, seen: Training) -> None:
    declared = {id(p): name for name, p in method.trainable().items()}
    for name, parameter in parameters(method).items():
        if parameter.grad is None:
            continue
        if id(parameter) not in declared:
            seen.strays.add(name)
        elif bool(parameter.grad.any()):
            seen.reached.add(declared[id(parameter)])


def mode(method: Method, training: bool) -> None:
    method.net.train(training)
    method.extra.train(training)


def parameters(method: Method) -> dict[str, nn.Parameter]:
    """Every parameter of the method by name, frozen ones included."""
    found = dict(method.net.named_parameters())
    return found | {f"extra.{name}": p for name, p in method.extra.named_parameters()}


def tensors(method: Method) -> dict[str, Tensor]:
    """Every parameter and buffer by name."""
    buffers = {**dict(method.net.named_buffers()), **{f"extra.{n}": b for n, b in method.extra.named_buffers()}}
    return {**parameters(method), **buffers}


def blanked(method: Method, batch: Batch) -> Batch:
    """The batch as the harness hands it to this method on the track that tells the least."""
    tracks: tuple[Track, ...] = ("blind", "avail", "informed")
    return blank(batch, next(track for track in tracks if method.card.needs.allowed_on(track)))
