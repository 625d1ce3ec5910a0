"""The epochs of a backbone's training: kept after each one, so that the same command goes on where it was stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from mmbench.ahead import ahead
from mmbench.backbone.checkpoint import backbone_digest
from mmbench.backbone_training.joined import averaging
from mmbench.backbone_training.objectives import LOSS, Objective
from mmbench.backbone_training.recipes import OPTIM
from mmbench.backbone_training.views import Staged, ViewFeed
from mmbench.errors import CheckpointError, DivergedError, DoesNotFitError
from mmbench.files import WriteError, make_folder, remove_remains, write_atomic
from mmbench.resume import PROGRESS, read_kept, save_kept
from mmbench.steps import make_optimizer, out_of_memory
from mmbench.train import LOAD_AHEAD

EPOCHS = "epochs.jsonl"


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to."""

    epoch: int
    """Counted from 1."""
    lr: float
    losses: Mapping[str, float]
    """Means over steps and processes, by name."""
    epoch_seconds: float


@dataclass
class Course:
    """A training in a folder of its own."""

    objective: Objective
    feed: ViewFeed
    folder: Path
    device: torch.device
    average_from: int | None = None
    """Epoch, counted from 1, from which on weights are averaged."""
    tell: Callable[[Epoch], None] = lambda row: None
    history: list[Epoch] = field(default_factory=list)
    _sum: dict[str, Tensor] = field(default_factory=dict)
    """Of the trained weights after each epoch that is averaged."""

    def __post_init__(self) -> None:
        recipe = json.dumps(self.objective.recipe.model_dump(), sort_keys=True)
        self.keys = {
            "recipe": hashlib.sha256(recipe.encode()).hexdigest(),
            "set of training samples": self.feed.data.store.digest + _digest(self.feed.data.splits.train),
            "start": backbone_digest(self.objective.net),
            "number of processes": str(self.feed.ranks.world),
        }

    def run(self) -> None:
        """Train all epochs that are not done; afterwards the network holds the result.

        Raises CheckpointError where the folder holds the progress of another training, DivergedError, DoesNotFitError.
        """
        net, recipe, ranks = self.objective.net.to(self.device), self.objective.recipe, self.feed.ranks
        groups = [{"params": held, "lr": recipe.lr * factor} for factor, held in self.objective.groups()]
        optimizer = make_optimizer(groups, OPTIM)
        self._take_up(optimizer)
        wrapped = averaging(net, ranks)
        net.train()
        for epoch in range(len(self.history), recipe.epochs):
            for group, (factor, _) in zip(optimizer.param_groups, self.objective.groups(), strict=True):
                group["lr"] = recipe.lr_in(epoch) * factor
            began = time.perf_counter()
            losses = self._epoch(epoch, wrapped, optimizer)
            self._average(epoch)
            self.history.append(Epoch(epoch + 1, recipe.lr_in(epoch), losses, time.perf_counter() - began))
            if ranks.first:
                self._keep(optimizer)
                self.tell(self.history[-1])
        if self._sum:
            count = recipe.epochs - (self.average_from or 1) + 1
            averaged = {name: self._sum[name] / count for name in self._trained()}
            net.load_state_dict({**net.state_dict(), **averaged})
        net.eval()
        if ranks.first:
            self._list_epochs()

    def finish(self) -> None:
        """Remove what only a training that is not done needs."""
        (self.folder / PROGRESS).unlink(missing_ok=True)

    def _epoch(self, epoch: int, net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        order, sums, names = self.feed.order(epoch), torch.zeros(0, device=self.device), []
        depth = LOAD_AHEAD if self.device.type == "cuda" else 0
        staged = ahead((partial(self.feed.stage, epoch, order, step) for step in range(self.feed.steps)), depth)
        with contextlib.closing(staged):
            for batch in staged:
                found = self._step(batch, net, optimizer)
                names = list(found)
                values = torch.stack([value.detach().float() for value in found.values()])
                sums = sums + values if len(sums) else values
        means = self.feed.ranks.total(sums) / (self.feed.steps * self.feed.ranks.world)
        weights = torch.stack([p.detach().abs().max() for p in self.objective.net.parameters()])
        if not bool(torch.isfinite(means).all() and torch.isfinite(weights).all()):
            raise DivergedError(f"epoch {epoch + 1} ended in numbers that are not finite; lower --lr")
        return dict(zip(names, means.tolist(), strict=True))

    def _step(self, batch: Staged, net: nn.Module, optimizer: torch.optim.Optimizer) -> Mapping[str, Tensor]:
        optimizer.zero_grad(set_to_none=True)
        lower = self.objective.recipe.precision == "bf16"
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=lower):
                losses = self.objective.losses(net, batch.to(self.device))
            losses[LOSS].backward()  # type: ignore[no-untyped-call]
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            words = f"a batch of {len(batch.places)} samples a process does not fit in memory"
            raise DoesNotFitError(f"{words}; lower --batch-size or use more processes") from None
        optimizer.step()
        return losses

    def _average(self, epoch: int) -> None:
        if self.average_from is not None and epoch + 1 >= self.average_from:
            trained = self._trained()
            self._sum = {name: self._sum[name] + p if self._sum else p.clone() for name, p in trained.items()}

    def _trained(self) -> dict[str, Tensor]:
        """Frozen tensors are not averaged: a mean of equal numbers may differ from them in the last bit."""
        return {name: p.detach() for name, p in self.objective.net.named_parameters() if p.requires_grad}

    def _take_up(self, optimizer: torch.optim.Optimizer) -> None:
        path = self.folder / PROGRESS
        make_folder(self.folder)
        if not path.exists():
            return
        try:
            found = read_kept(path, self.keys, self.device)
            self.objective.net.load_state_dict(found["net"])
            optimizer.load_state_dict(found["optimizer"])
            self._sum = found["sum"]
            self.history = [Epoch(**row) for row in found["history"]]
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"cannot go on in {self.folder}: {error}; use the options it began with, or delete {PROGRESS}"
            ) from None

    def _keep(self, optimizer: torch.optim.Optimizer) -> None:
        content: dict[str, Any] = {
            "net": dict(self.objective.net.state_dict()),
            "optimizer": optimizer.state_dict(),
            "sum": self._sum,
            "history": [asdict(row) for row in self.history],
        }
        remove_remains(self.folder, (PROGRESS,))
        try:
            save_kept(content, self.keys, self.folder / PROGRESS)
        except (OSError, SafetensorError) as error:
            raise WriteError(f"cannot write {self.folder / PROGRESS}: {error}; free some space") from None
        self._list_epochs()

    def _list_epochs(self) -> None:
        lines = "".join(json.dumps(asdict(row)) + "\n" for row in self.history)
        write_atomic(self.folder / EPOCHS, lines.encode())


def _digest(ids: tuple[str, ...]) -> str:
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()
