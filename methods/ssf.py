"""Scaling and shifting of features: a factor and an offset for every channel, one set for all or one for each case."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from methods.branch import blocks, unhooked_copy
from mmbench.backbone.cavmae import CAVMAEFT
from mmbench.backbone.hooks import Hooks
from mmbench.method import Method
from mmbench.registry import method

START_STD = 0.02


class ScaleShift(nn.Module):
    """y * scale + shift, with `sets` pairs to choose from."""

    def __init__(self, sets: int, dim: int, rng: torch.Generator) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(sets, dim).normal_(1.0, START_STD, generator=rng))
        self.shift = nn.Parameter(torch.empty(sets, dim).normal_(0.0, START_STD, generator=rng))

    def forward(self, y: Tensor, chosen: Tensor | None) -> Tensor:
        """(B, N, D) to the same; `chosen` (B,) names the set of each sample, None the only one."""
        if chosen is None:
            return y * self.scale[0] + self.shift[0]
        return y * self.scale[chosen].unsqueeze(1) + self.shift[chosen].unsqueeze(1)

    def fold_into(self, layer: nn.Linear | nn.LayerNorm) -> None:
        """Make the layer in front do the work of both."""
        scale = self.scale[0]
        layer.weight.mul_(scale.unsqueeze(1) if layer.weight.ndim == 2 else scale)
        layer.bias.mul_(scale).add_(self.shift[0])


class Choice(Hooks):
    """Notes at the start of each forward pass which set every sample takes; a single set needs no choice."""

    def __init__(self, sets: int) -> None:
        self.sets = sets
        self.chosen: Tensor | None = None  # (B,) int64

    def tokens(self, modality: str, x: Tensor, batch: Any) -> tuple[Tensor, int]:
        if self.sets > 1:
            self.chosen = batch.affected[:, 0].long() + 2 * batch.affected[:, 1].long()
        return x, 0


class AfterLayer:
    """A forward hook: the layer keeps its name and its tensors."""

    def __init__(self, added: ScaleShift, choice: Choice) -> None:
        self._added = added
        self._choice = choice

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...], y: Tensor) -> Tensor:
        return self._added(y, self._choice.chosen)  # type: ignore[no-any-return]


def places(net: CAVMAEFT) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """A name for each place, and the layers that stand there: the norms of a place take turns by mode."""
    for place, block in blocks(net):
        yield f"norm1_{place}", (block.norm1, block.norm1_a, block.norm1_v)
        yield f"qkv_{place}", (block.attn.qkv,)
        yield f"proj_{place}", (block.attn.proj,)
        yield f"norm2_{place}", (block.norm2, block.norm2_a, block.norm2_v)
        yield f"fc1_{place}", (block.mlp.fc1,)
        yield f"fc2_{place}", (block.mlp.fc2,)
    yield "norm", (net.norm, net.norm_a, net.norm_v)


SHARED = {"family": "scaling", "memory": "M3", "lr_range": (1e-4, 1e-2), "identity_at_start": False}


@method(
    "ssf",
    **SHARED,
    title="SSF",
    reference="Lian et al., Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning, NeurIPS 2022",
    year=2022,
    bibtex="lian2022ssf",
    parameters="22*d*N + 2*d",
    note="the patch embedding stays as it is",
)
class SSF(Method):
    """After every norm and linear layer of the blocks, and after the last norm; folds into them on export."""

    sets: ClassVar[int] = 1

    def build(self, rng: torch.Generator) -> None:
        choice = Choice(self.sets)
        for name, layers in places(self.net):
            added = ScaleShift(self.sets, layers[0].bias.shape[0], rng)
            self.extra[name] = added
            for layer in layers:
                layer.register_forward_hook(AfterLayer(added, choice))
        self.hooks = choice

    def export(self) -> CAVMAEFT | None:
        net = unhooked_copy(self.net)
        with torch.no_grad():
            for name, layers in places(net):
                for layer in layers:
                    self.extra[name].fold_into(layer)  # type: ignore[operator]
        return net


@method(
    "ssf-per-case",
    **SHARED,
    title="SSF per missing modality",
    reference="Reza et al., Robust Multimodal Learning with Missing Modalities via Parameter-Efficient Adaptation, "
    "TPAMI 2024",
    year=2024,
    bibtex="reza2024missing",
    parameters="4*(22*d*N + 2*d)",
    needs={"case": "oracle", "train_case": True},
    note="four sets: nothing affected, audio, vision, both; a corrupted modality chooses as a missing one does",
)
class SSFPerCase(SSF):
    """One set for each combination of affected modalities, chosen for every sample of a batch."""

    sets = 4

    def export(self) -> CAVMAEFT | None:
        """None: no single backbone holds four sets."""
        return None
