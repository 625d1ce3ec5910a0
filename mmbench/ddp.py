"""Training steps whose batch is shared among ranks: each computes a part, and gradients are those of the whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmbench.data.batch import Batch
from mmbench.errors import RefusedError
from mmbench.method import Loss
from mmbench.plain import remembered_digest
from mmbench.ranks import Ranks
from mmbench.strategy import Regimen

Place = tuple[int, tuple[str, ...]]
"""An epoch and the ids of one of its batches."""


class Objective(nn.Module):
    """A regimen's loss as a module of nothing but what trains now: what is frozen is no matter of the ranks."""

    def __init__(self, regimen: Regimen) -> None:
        super().__init__()
        self._regimen = regimen
        free = [parameter for parameter in regimen.method.trainable().values() if parameter.requires_grad]
        self.free = nn.ParameterList(free)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Scalar loss and logits (B, C)."""
        loss = self._regimen.loss(batch)
        return loss.total, loss.logits


@dataclass(frozen=True)
class Shared(Regimen):
    """A regimen whose gradients, after the last micro-batch of a step, are means over the ranks."""

    objective: DistributedDataParallel | None = None
    weight: float = 1.0
    """Of this rank's part in that mean, so that samples count alike however many a rank has."""

    def loss(self, batch: Batch) -> Loss:
        assert self.objective is not None  # `Split` sets it
        total, logits = self.objective(batch)
        return Loss(total * self.weight, logits)

    @contextlib.contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        assert self.objective is not None
        with contextlib.nullcontext() if last else self.objective.no_sync():
            yield


@dataclass(frozen=True)
class Portion:
    """What one rank computes of a step."""

    batch: Batch
    regimen: Regimen
    """Weighs the batch's loss."""
    of: int
    """Samples of all ranks."""


class Split:
    """Which part of each batch of a phase this rank loads and computes."""

    def __init__(self, regimen: Regimen, ranks: Ranks) -> None:
        self._ranks, self._regimen = ranks, regimen
        if ranks.world > 1:
            # Not every step reaches every tensor: a prompt of another case has no gradient in it.
            objective = DistributedDataParallel(
                Objective(regimen), find_unused_parameters=True, broadcast_buffers=False
            )
            self._regimen = Shared(regimen.method, regimen.strategies, objective)

    def loads(self, order: Sequence[Place]) -> list[Place]:
        """What to load of each batch: all of it where views are drawn for the whole or mix its samples."""
        if self._ranks.world == 1 or self._regimen.views:
            return list(order)
        return [(epoch, tuple(ids[row] for row in self._rows(len(ids)))) for epoch, ids in order]

    def part(self, loaded: Batch, of: int, rng: torch.Generator) -> Portion:
        """The view of this rank's part of a batch of so many samples."""
        batch = self._regimen.view(loaded, rng)
        if not isinstance(self._regimen, Shared):
            return Portion(batch, self._regimen, of)
        if self._regimen.views:
            batch = batch.select(self._rows(of))
        weight = self._ranks.world * len(self._ranks.rows(of)) / of
        return Portion(batch, replace(self._regimen, weight=weight), of)

    def check_same(self) -> None:
        """Raises RefusedError, on all ranks, where they do not hold the same method: only gradients are shared."""
        if self._ranks.world == 1:
            return
        found = self._ranks.gather(torch.tensor(list(remembered_digest(self._regimen)), dtype=torch.uint8))
        if (found != found[0]).any():
            raise RefusedError(
                f"{self._regimen.method.card.name} holds other values on each of {self._ranks.world} devices, which "
                "share gradients and not what a loss keeps of its samples; set budget.devices: 1, and let the card "
                "declare needs batch_dependent"
            )

    def _rows(self, count: int) -> range:
        """The last batch of an epoch may be too small for all; a rank without a part computes one that weighs 0."""
        return self._ranks.rows(count) or range(1)
