"""What online adapters share: which tensors they update, one gradient step, and small functions of predictions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mmbench.backbone.cavmae import CAVMAEFT
from mmbench.data.batch import Batch
from mmbench.errors import ConfigError, RefusedError
from mmbench.method import Method
from mmbench.online import Online

_JOINT_QKV = re.compile(r"blocks_u\.\d+\.attn\.qkv\.(base_layer\.)*(weight|bias)")
_NO_SCALE = 1e-12


@dataclass(frozen=True)
class Goal:
    """What a step minimises, and how many samples of the batch speak for it; without any there is no step."""

    loss: Tensor
    samples: int


class GradientOnline(Online):
    """A selection of tensors, and an objective on the samples that pass a filter; one Adam step a batch."""

    def select(self) -> dict[str, nn.Parameter]:
        """The tensors that are updated, by name."""
        raise NotImplementedError

    def objective(self, batch: Batch) -> Goal:
        """Loss of the samples worth learning from; called with gradients enabled."""
        raise NotImplementedError

    def build(self) -> None:
        self._selected = self.select()
        if not self._selected:
            raise RefusedError(f"{self.card.name} finds nothing to update in {self.method.card.name}")
        for parameter in self._selected.values():
            parameter.requires_grad_(True)

    def updated(self) -> dict[str, nn.Parameter]:
        return self._selected

    def begin(self) -> None:
        self.optimizer = torch.optim.Adam(list(self._selected.values()), lr=self.options["lr"])

    def adapt(self, batch: Batch) -> int:
        with torch.enable_grad():
            goal = self.objective(batch)
            if goal.samples:
                self.backward(goal.loss)
        if goal.samples:
            self.step()
        return goal.samples

    def backward(self, loss: Tensor) -> None:
        """Gradients of the loss. Raises RefusedError if none of the selected tensors took part in it."""
        if not loss.requires_grad:
            raise RefusedError(
                f"{self.card.name} updates {self.card.updates}, but no gradient reaches these through "
                f"{self.method.card.name}; use another adapter with it"
            )
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self) -> None:
        self.optimizer.step()
        self.clear()

    def clear(self) -> None:
        for parameter in self._selected.values():
            parameter.grad = None


class NormOnline(GradientOnline):
    """Updates scales and shifts of the LayerNorms that the multimodal pass uses, that of the head apart."""

    def spares(self, module: str) -> bool:
        """Whether the LayerNorm of this name stays as it is."""
        return False

    def select(self) -> dict[str, nn.Parameter]:
        return live_norms(self.method.net, self.spares)


class JointOnline(GradientOnline):
    """Updates the query, key and value projections of the joint blocks, one fused tensor each."""

    def select(self) -> dict[str, nn.Parameter]:
        """By the name of the frozen tensor itself: wrappers such as LoRA add to it and keep it."""
        return {n: p for n, p in self.method.net.named_parameters() if _JOINT_QKV.fullmatch(n)}


def live_norms(net: CAVMAEFT, spares: Callable[[str], bool]) -> dict[str, nn.Parameter]:
    """Scales and shifts of LayerNorms; each block also carries norms that the multimodal pass never uses."""
    alive = net.live_parameter_names()
    return {
        name: parameter
        for module_name, module in net.named_modules()
        if isinstance(module, nn.LayerNorm) and not module_name.startswith("mlp_head") and not spares(module_name)
        for name, parameter in module.named_parameters(module_name)
        if name in alive
    }


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of each softmax, (B, C) to (B,)."""
    log_p = logits.log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


def balance(logits: Tensor) -> Tensor:
    """Entropy of the batch's mean probabilities; zero for one sample, which has nothing to be balanced against."""
    if len(logits) < 2:
        return logits.new_zeros(())
    mean = logits.softmax(dim=1).mean(dim=0)  # (C,)
    return -(mean * mean.clamp_min(_NO_SCALE).log()).sum()


@contextmanager
def outputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what the module returns inside the `with`."""
    seen: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(output)

    handle = module.register_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what the module is given inside the `with`."""
    seen: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0])

    handle = module.register_forward_pre_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


def classifier(method: Method) -> nn.Linear:
    """The last layer of the head, whose input is the sample's feature."""
    last = method.net.mlp_head[-1]
    assert isinstance(last, nn.Linear)
    return last


def with_patches(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with both inputs changed by a function of images (B, channels, rows, columns)."""
    return replace(batch, audio=change(batch.audio.unsqueeze(1)).squeeze(1), image=change(batch.image))


def shuffle_pieces(x: Tensor, pieces: int, rng: torch.Generator) -> Tensor:
    """Images (B, channels, R, S) cut into pieces x pieces, which change places within each sample.

    Raises ConfigError if the pieces do not fit.
    """
    count, channels, rows, columns = x.shape
    if rows % pieces or columns % pieces:
        raise ConfigError(f"option pieces must divide the sides {rows} and {columns} of the input, got {pieces}")
    high, wide = rows // pieces, columns // pieces
    cells = x.reshape(count, channels, pieces, high, pieces, wide).permute(0, 2, 4, 1, 3, 5)
    cells = cells.reshape(count, pieces**2, channels, high, wide)
    order = torch.rand(count, pieces**2, generator=rng).argsort(dim=1).to(x.device)
    moved = cells[torch.arange(count, device=x.device)[:, None], order]
    moved = moved.reshape(count, pieces, pieces, channels, high, wide).permute(0, 3, 1, 4, 2, 5)
    return moved.reshape(x.shape)


def mask_patches(x: Tensor, patch: int, share: float, rng: torch.Generator) -> Tensor:
    """Images (B, channels, R, S) with this share of each sample's patches set to 0, the mean of a normalised input."""
    count, _, rows, columns = x.shape
    high, wide = rows // patch, columns // patch
    ranks = torch.rand(count, high * wide, generator=rng).argsort(dim=1).argsort(dim=1)
    kept = (ranks >= round(share * high * wide)).reshape(count, 1, high, wide).to(x.device)
    return x * kept.repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3)
