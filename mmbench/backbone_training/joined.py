"""The processes of one training: one alone, or those that the user's `torchrun` started."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mmbench.ranks import ALONE, Ranks


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[tuple[Ranks, torch.device]]:
    """Inside a `torchrun`, the process's place in it and a GPU of its own; alone otherwise."""
    if not dist.is_torchelastic_launched():
        yield ALONE, device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size()), device
    finally:
        dist.destroy_process_group()


def averaging(net: nn.Module, ranks: Ranks) -> nn.Module:
    """The network with gradients averaged over the processes; all start from the weights of the first."""
    if ranks.world == 1:
        return net
    # Every block has norms of modalities that it never sees.
    return DistributedDataParallel(net, find_unused_parameters=True)
