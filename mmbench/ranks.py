"""The processes that run one trial together, each on a device of its own, as one of them sees the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist


@dataclass(frozen=True)
class Ranks:
    """One of `world` processes. A process alone is the first of one, to which every exchange gives back its own.

    All ranks call the same exchanges in the same order. Tensors on the CPU go through gloo, others through NCCL.
    """

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    @property
    def turns(self) -> slice:
        """Which of many batches, counted through, are this rank's."""
        return slice(self.rank, None, self.world)

    def rows(self, count: int) -> range:
        """This rank's part of `count` samples in order; parts differ by one sample at most, and may be empty."""
        return range(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def gather(self, tensor: Tensor) -> Tensor:
        """(...) of each rank, all of one shape, as (world, ...)."""
        if self.world == 1:
            return tensor.unsqueeze(0)
        found = [torch.empty_like(tensor) for _ in range(self.world)]
        dist.all_gather(found, tensor.contiguous())
        return torch.stack(found)

    def total(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks, the same bits on each."""
        if self.world == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag as soon as one rank has raised it."""
        return tuple(self.gather(torch.tensor(flags, dtype=torch.int32)).any(dim=0).tolist())

    def lost(self, error: Exception) -> bool:
        """Whether an error says no more than that another rank has gone."""
        told_by_gloo = type(error) is RuntimeError and "gloo" in str(error)  # it has no class of its own
        return self.world > 1 and (isinstance(error, dist.DistError) or told_by_gloo)


ALONE = Ranks()
