"""One optimiser step on one batch: micro-batches, gradients, and the optimiser with its schedule."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmbench.bench import Bench
from mmbench.config import OptimConfig
from mmbench.data.batch import Batch
from mmbench.errors import DoesNotFitError
from mmbench.ledger import Ledger
from mmbench.strategy import Regimen

NO_MEMORY = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""In the words of what is no class of its own: the host's allocator, the driver, and cuBLAS with its own memory."""


def fitting_step(
    regimen: Regimen,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    bench: Bench,
    ledger: Ledger,
    place: tuple[int, int],
) -> Tensor:
    """One optimiser step; halves the micro-batch when the device is out of memory, never the effective batch.

    The loss returned is that of all ranks. A step that is shared among them cannot begin anew on one.
    """
    while True:
        try:
            return _step(regimen, batch, optimizer, bench, ledger.micro_batch, place)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            if bench.ranks.world > 1:
                raise DoesNotFitError(
                    f"{min(ledger.micro_batch, len(batch))} samples at once do not fit on a device; "
                    "set a smaller budget.micro_batch, which several devices do not halve by themselves"
                ) from None
            if ledger.micro_batch <= 1:
                raise DoesNotFitError(f"one sample does not fit: {str(error).splitlines()[0][:200]}") from None
        optimizer.zero_grad(set_to_none=True)
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
        ledger.micro_batch = max(1, ledger.micro_batch // 2)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on the GPU or on the host."""
    told = any(words in str(error) for words in NO_MEMORY)
    return told or isinstance(error, (torch.OutOfMemoryError, MemoryError))


def cap_memory(device: torch.device, cap_gib: float | None) -> None:
    """Let torch's allocator hold no more of a GPU than this; None: all of it, whatever an earlier trial had set."""
    if device.type == "cuda":
        total_bytes = torch.cuda.get_device_properties(device).total_memory
        share = 1.0 if cap_gib is None else min(1.0, cap_gib * 2**30 / total_bytes)
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.set_per_process_memory_fraction(share, index)


def _step(
    regimen: Regimen,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    bench: Bench,
    micro_batch: int,
    place: tuple[int, int],
) -> Tensor:
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=bench.device)
    for start in range(0, len(batch), micro_batch):
        part = batch if micro_batch >= len(batch) else batch.select(range(start, min(start + micro_batch, len(batch))))
        with regimen.micro_batch(last=start + micro_batch >= len(batch)):
            with bench.autocast():
                loss = regimen.loss(part).total * (len(part) / len(batch))
            loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    regimen.after_backward(*place)
    if bench.budget.optim.clip_norm is not None:
        nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], bench.budget.optim.clip_norm)
    optimizer.step()
    regimen.method.after_step(*place)
    return bench.ranks.total(total) / bench.ranks.world


def make_optimizer(groups: list[dict[str, object]], config: OptimConfig) -> torch.optim.Optimizer:
    """The suite's optimiser over a method's groups; biases and norms decay like the rest, for every method alike."""
    if config.name == "sgd":
        return torch.optim.SGD(groups, momentum=config.betas[0], weight_decay=config.weight_decay, fused=True)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(groups, betas=config.betas, weight_decay=config.weight_decay, fused=True)


def moments(config: OptimConfig) -> int:
    """Values that the optimiser keeps for each that it trains."""
    return int(config.betas[0] > 0) if config.name == "sgd" else 2


def lr_factor(step: int, steps: int, config: OptimConfig) -> float:
    """Linear warm-up over the first share of the steps, then constant or half a cosine down to zero."""
    warmup = round(config.warmup_share * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
