"""Online adapters: what happens to a trained method at test time. They see the stream unlabelled, batch after batch.

An adapter is one class decorated with `mmbench.registry.online`. The harness scores `predict` before `adapt` on the
same batch (the headline) and once more after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmbench.cards import OnlineCard
from mmbench.data.batch import Batch
from mmbench.method import Method
from mmbench.method_options import resolve_options


class Online:
    """Base of all online adapters. Subclasses write `updated` and `adapt`."""

    card: ClassVar[OnlineCard]

    def __init__(
        self,
        method: Method,
        options: Mapping[str, Any],
        source: Batch | None = None,
        rng: torch.Generator | None = None,
    ) -> None:
        """Take a trained method over; everything in it is frozen except what `updated` names.

        `source` holds `card.source_samples` clean training samples without labels, or None if none are asked for.
        """
        self.method = method
        self.options = resolve_options(self.card, options)
        self.source = source
        self.rng = rng or torch.Generator().manual_seed(0)
        self.steps: int | None = None
        method.net.requires_grad_(False)
        method.extra.requires_grad_(False)
        method.net.eval()
        method.extra.eval()
        self.build()
        for parameter in self.updated().values():
            parameter.requires_grad_(True)
        self._start = {name: p.detach().clone() for name, p in self.updated().items()}
        self._rng_start = self.rng.get_state()
        self.begin()

    @property
    def n_classes(self) -> int:
        return self.method.net.config.n_classes

    def build(self) -> None:
        """Once, before the first stream: choose what is updated, look at the source samples."""

    def updated(self) -> dict[str, nn.Parameter]:
        """What gradient steps change, by name; other state (prototypes, averages) is made anew in `begin`."""
        return {}

    def begin(self) -> None:
        """Before every stream: a fresh optimiser, fresh averages. `self.steps` is told if the card asks for it."""

    def predict(self, batch: Batch) -> Tensor:
        """Logits (B, C); changes nothing."""
        return self.method.predict(batch)

    def adapt(self, batch: Batch) -> int:
        """Update on an unlabelled batch; the number of samples that entered the update."""
        raise NotImplementedError

    def reset(self, steps: int | None = None) -> None:
        """As before the first stream, bit for bit; `steps` is the length of the next one in batches."""
        with torch.no_grad():
            for name, parameter in self.updated().items():
                parameter.copy_(self._start[name])
                parameter.grad = None
        self.rng.set_state(self._rng_start)
        self.steps = steps if self.card.stream_length else None
        self.begin()
