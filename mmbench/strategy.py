"""Training strategies: what a method sees in training beside the regime. They wrap the method's own hooks.

A strategy is one class decorated with `mmbench.registry.strategy`; every hook has a default.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from mmbench.cards import StrategyCard
from mmbench.data.batch import Batch
from mmbench.method import Loss, Method
from mmbench.method_options import resolve_options

Inner = Callable[[Batch], Loss]
"""The objective that a strategy wraps: the method's own, or that of the strategies before it."""


class Strategy:
    """Base of all training strategies."""

    card: ClassVar[StrategyCard]

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = resolve_options(self.card, options)

    def view(self, method: Method, batch: Batch, rng: torch.Generator) -> Batch:
        """Another view of a training batch, drawn from `rng` alone; labels may become shares (B, C)."""
        return batch

    def loss(self, method: Method, batch: Batch, inner: Inner) -> Loss:
        """The objective of a micro-batch, averaged over its samples."""
        return inner(batch)

    def after_backward(self, method: Method, step: int, steps: int) -> None:
        """Called between backward and the optimiser step; may change gradients."""


@dataclass(frozen=True)
class Regimen:
    """A method as it trains: its own hooks inside those of the strategies."""

    method: Method
    strategies: Sequence[Strategy] = ()

    @property
    def extra_forwards(self) -> float:
        """Forward passes per training sample beyond the first."""
        return self.method.card.needs.extra_forwards + sum(s.card.extra_forwards for s in self.strategies)

    @property
    def views(self) -> bool:
        """Whether anything changes a training batch before its loss."""
        own = any(type(strategy).view is not Strategy.view for strategy in self.strategies)
        return own or type(self.method).view is not Method.view

    def view(self, batch: Batch, rng: torch.Generator) -> Batch:
        batch = self.method.view(batch, rng)
        for strategy in self.strategies:
            batch = strategy.view(self.method, batch, rng)
        return batch

    def loss(self, batch: Batch) -> Loss:
        inner: Inner = self.method.loss
        for strategy in self.strategies:
            inner = _wrapped(strategy, self.method, inner)
        return inner(batch)

    def micro_batch(self, last: bool) -> AbstractContextManager[None]:
        """For around the loss and the backward pass of a micro-batch; `last` of its step."""
        return contextlib.nullcontext()

    def after_backward(self, step: int, steps: int) -> None:
        self.method.after_backward(step, steps)
        for strategy in self.strategies:
            strategy.after_backward(self.method, step, steps)


def _wrapped(strategy: Strategy, method: Method, inner: Inner) -> Inner:
    return lambda batch: strategy.loss(method, batch, inner)
