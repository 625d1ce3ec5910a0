"""The contract of a method: what it adds to the frozen backbone, how it trains, what it predicts.

A method is one class in one file of `methods/` (or a plugin), decorated with `mmbench.registry.method`. Only `build`
must be written; every other hook has a default. The loop in train.py and evaluate.py calls hooks and knows no method.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmbench.backbone.cavmae import CAVMAEFT
from mmbench.backbone.hooks import PLAIN, Hooks
from mmbench.cards import MethodCard
from mmbench.data.batch import Batch
from mmbench.errors import ConfigError
from mmbench.method_options import resolve_options

State = dict[str, Tensor]
"""Tensors of a trained method by name, on the CPU; what `state.safetensors` holds."""


@dataclass(frozen=True)
class Phase:
    """A stretch of training with its share of the budget's samples."""

    name: str
    share: float


@dataclass(frozen=True)
class Recipe:
    """What the suite prescribes to every method alike."""

    train_head: bool = True
    multi_label: bool = False
    label_smoothing: float = 0.0
    bce: bool = False
    """Binary cross-entropy also for single-label data (the published prompt commands do that)."""
    head_lr_multiplier: float = 1.0


@dataclass(frozen=True)
class Loss:
    """Scalar to minimise, and the logits (B, C) it was computed from, for strategies that add terms of their own."""

    total: Tensor
    logits: Tensor


class Method:
    """Base of all methods. Subclasses override `build` and whatever hooks they need."""

    card: ClassVar[MethodCard]

    def __init__(self, net: CAVMAEFT, recipe: Recipe, options: Mapping[str, Any], rng: torch.Generator) -> None:
        """Freeze `net`, let the method build on it, then free the head if the suite trains heads.

        `net` is the method's own copy; `rng` (CPU) is the only source of randomness for new tensors.
        """
        self.net = net
        self.recipe = recipe
        self.options = resolve_options(self.card, options)
        self.hooks: Hooks = PLAIN
        self.extra = nn.ModuleDict()
        """Modules the method adds beside the backbone; their parameters train unless frozen in `build`."""
        net.requires_grad_(False)
        self.build(rng)
        if recipe.train_head and self.card.trains:
            net.mlp_head.requires_grad_(True)
        self.extra.to(next(net.parameters()).device)
        net.eval()  # only now: modules that `build` adds come in training mode
        self.extra.eval()

    # What a method is -------------------------------------------------------------------------------------------

    def build(self, rng: torch.Generator) -> None:
        """Add modules to `self.extra`, set `self.hooks`, or free tensors of `self.net`. The net comes frozen."""

    def trainable(self) -> dict[str, nn.Parameter]:
        """Every tensor that trains, by name; gradients must reach all of them and nothing else."""
        named = {n: p for n, p in self.net.named_parameters() if p.requires_grad}
        named.update({f"extra.{n}": p for n, p in self.extra.named_parameters() if p.requires_grad})
        return named

    def groups(self, lr: float) -> list[dict[str, Any]]:
        """Parameter groups for the optimiser: the head at its own multiple of `lr`, the rest at `lr`."""
        head = [p for n, p in self.trainable().items() if n.startswith("mlp_head.")]
        rest = [p for n, p in self.trainable().items() if not n.startswith("mlp_head.")]
        pairs = ((rest, lr), (head, lr * self.recipe.head_lr_multiplier))
        return [{"params": params, "lr": rate} for params, rate in pairs if params]

    # How it trains ----------------------------------------------------------------------------------------------

    def phases(self) -> tuple[Phase, ...]:
        """Stretches of training in order; shares sum to 1. Case-wise training repeats them for every case."""
        return (Phase("train", 1.0),)

    def begin(self, phase: Phase) -> None:
        """Called before each phase; may freeze and free tensors, as long as `trainable` names those of all phases."""

    def view(self, batch: Batch, rng: torch.Generator) -> Batch:
        """A training view of the batch (augmentation); the corruption has already happened."""
        return batch

    def loss(self, batch: Batch) -> Loss:
        """Training objective of one micro-batch, averaged over its samples."""
        logits = self.logits(batch)
        return Loss(self.criterion(logits, batch.label), logits)

    def after_backward(self, step: int, steps: int) -> None:
        """Called between backward and the optimiser step; `steps` are those of the phase."""

    def after_step(self, step: int, steps: int) -> None:
        """Called after the optimiser step, while its gradients are still there."""

    def finish(self) -> None:
        """Called once after the last phase, before the state is taken."""

    def stream(self, name: str) -> str | None:
        """ "a" or "v" for a trainable tensor that serves one modality's encoder alone, else None.

        Told by the name: blocks_a, patch_embed_v, and additions called ..._a, ..._v or ..._a3.
        """
        found = re.search(r"(?:^|[._])(?:blocks_|patch_embed_|pos_embed_|modality_)?([av])\d*(?:[._]|$)", name)
        return found.group(1) if found and not name.startswith(("blocks_fu.", "blocks_u.")) else None

    def criterion(self, logits: Tensor, label: Tensor | None) -> Tensor:
        """The suite's loss on logits (B, C): cross-entropy for labels (B,) or shares (B, C), binary for multi-hot."""
        assert label is not None  # the harness trains on labelled batches only
        smoothing = self.recipe.label_smoothing
        if not (self.recipe.multi_label or self.recipe.bce):
            return F.cross_entropy(logits, label, label_smoothing=smoothing)
        target = label if label.ndim == 2 else F.one_hot(label, logits.shape[1])
        # Positives are set to 1 - s, the rest to s / C, as in the CAV-MAE loader.
        target = target.to(logits.dtype)
        smooth = target * (1.0 - smoothing) + (1.0 - target) * smoothing / logits.shape[1]
        return F.binary_cross_entropy_with_logits(logits, smooth)

    # What it predicts -------------------------------------------------------------------------------------------

    def logits(self, batch: Batch) -> Tensor:
        """Differentiable forward pass: (B, C)."""
        return self.net(batch.audio, batch.image, hooks=self.hooks, batch=batch)  # type: ignore[no-any-return]

    def predict(self, batch: Batch) -> Tensor:
        """Logits (B, C) at test time; `batch.case` and `batch.available` hold what the track tells, else None."""
        with torch.no_grad():
            return self.logits(batch)

    def combine(self, states: Sequence[State]) -> State | None:
        """One state for use without knowing the case, made of the case-wise ones; None: average their probabilities."""
        return None

    # What it leaves ---------------------------------------------------------------------------------------------

    def kept(self) -> dict[str, Tensor]:
        """What a state holds: the tensors that train, and all that the method added beside the backbone."""
        added = {f"extra.{name}": tensor for name, tensor in self.extra.state_dict(keep_vars=True).items()}
        return {**self.trainable(), **added}

    def state(self) -> State:
        """A copy of everything that the backbone does not hold, frozen additions included."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.kept().items()}

    def load(self, state: State) -> None:
        """Take over a state of this method. Raises ConfigError if its tensors are not this method's."""
        mine = self.kept()
        if set(mine) != set(state):
            odd = sorted(set(mine) ^ set(state))
            raise ConfigError(f"state does not belong to {self.card.name}: {', '.join(odd[:5])} differ")
        for name, tensor in mine.items():
            tensor.data = state[name].detach().clone().to(tensor.device, tensor.dtype)

    def export(self) -> CAVMAEFT | None:
        """A plain backbone with the same predictions, or None if the method cannot be merged into one."""
        return None

    def exported_copy(self) -> CAVMAEFT:
        """For methods that only change tensors of the backbone: a copy of it."""
        return copy.deepcopy(self.net)
