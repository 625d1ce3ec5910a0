"""The bed on which online adapters are checked: over a trained method, along a short stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from mmbench import registry
from mmbench.conformance_bed import Bed, Subject, blanked, tensors
from mmbench.data.batch import Batch
from mmbench.method import Method, State
from mmbench.online import Online

STREAM = (6, 6, 2)
"""Samples of the batches of a short stream; the last one is smaller, as at the end of a test set."""
SOURCE_SAMPLES = 12
"""At most so many source samples, whatever an adapter asks for."""


@dataclass(frozen=True)
class OnlineSubject:
    """The adapter under test, over one trained method."""

    name: str
    base: Subject
    options: Mapping[str, Any]

    def method(self) -> Method:
        method = self.base.make()
        method.load(_trained_state(registry.methods().load(self.base.name), self.base.name, self.base.bed))
        return method

    def adapter(self, method: Method | None = None) -> Online:
        """A fresh adapter at the start of a stream."""
        method = method or self.method()
        kind: type[Online] = registry.onlines().load(self.name)
        count = min(kind.card.source_samples, SOURCE_SAMPLES)
        source = blanked(method, self.base.bed.batch(50, count)) if count else None
        adapter = kind(method, self.options, source, torch.Generator().manual_seed(0))
        adapter.reset(len(STREAM))
        return adapter

    def stream(self, adapter: Online) -> list[Batch]:
        """Batches as the harness hands them out."""
        return [blanked(adapter.method, self.base.bed.batch(seed, size)) for seed, size in enumerate(STREAM)]


@lru_cache(maxsize=32)
def _trained_state(kind: type[Method], name: str, bed: Bed) -> State:
    return Subject(name, bed, {}).trained().state()


@dataclass
class Trace:
    """What happened along a stream."""

    logits: list[Tensor] = field(default_factory=list)
    """Before and after each update, (B, C) each."""
    used: list[int] = field(default_factory=list)


def follow(adapter: Online, batches: Sequence[Batch]) -> Trace:
    trace = Trace()
    for batch in batches:
        trace.logits.append(adapter.predict(batch))
        trace.used.append(adapter.adapt(batch))
        trace.logits.append(adapter.predict(batch))
    return trace


def agree(one: Trace, other: Trace) -> bool:
    return one.used == other.used and all(map(torch.equal, one.logits, other.logits))


def copies(method: Method) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors(method).items()}


def changed(method: Method, before: Mapping[str, Tensor]) -> set[str]:
    """Tensors that differ from the copies, or appeared since."""
    return {n for n, tensor in tensors(method).items() if n not in before or not torch.equal(tensor, before[n])}


@contextmanager
def counted_forwards(method: Method) -> Iterator[list[int]]:
    """Samples of every pass through the encoders inside the `with`, whichever way the model is called."""
    samples: list[int] = []
    pooled: Callable[..., Any] = method.net.__class__.pooled
    encode: Callable[..., Any] = method.net.__class__.encode
    inside: list[int] = []

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(audio: Tensor | None, image: Tensor | None, *args: Any, **settings: Any) -> Any:
            given = audio if audio is not None else image
            if not inside and given is not None:
                samples.append(len(given))
            inside.append(1)
            try:
                return function(method.net, audio, image, *args, **settings)
            finally:
                inside.pop()

        return call

    object.__setattr__(method.net, "pooled", counting(pooled))
    object.__setattr__(method.net, "encode", counting(encode))
    try:
        yield samples
    finally:
        object.__delattr__(method.net, "pooled")
        object.__delattr__(method.net, "encode")
