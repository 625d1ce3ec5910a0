"""Residual modules at stated places of every frozen block: the mechanism of the family, and its plain bottlenecks."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmbench.backbone.blocks import Block, BlockCall, Position
from mmbench.backbone.cavmae import CAVMAEFT
from mmbench.backbone.hooks import Hooks
from mmbench.errors import ConfigError
from mmbench.method import Method
from mmbench.registry import method

POSITIONS: tuple[Position, ...] = ("attention", "mlp")


def blocks(net: CAVMAEFT) -> Iterator[tuple[str, Block]]:
    """Every encoder and joint block by its place: "a0", "v3", "u0"."""
    for modality in ("a", "v", "u"):
        for index, block in enumerate(getattr(net, f"blocks_{modality}")):
            yield f"{modality}{index}", block


def unhooked_copy(net: CAVMAEFT) -> CAVMAEFT:
    """A copy without the forward hooks that a method has put on its layers."""
    plain = copy.deepcopy(net)
    for module in plain.modules():
        module._forward_hooks.clear()
    return plain


def check_divides(name: str, option: str, parts: int, **sizes: int) -> None:
    """Raise ConfigError unless `parts` divides every size; nothing can be cut out of zero."""
    for what, size in sizes.items():
        if size % parts or not size:
            raise ConfigError(f"option {option} of {name} must divide the {what}, {size}; got {parts}")


def randn(*shape: int, std: float, rng: torch.Generator) -> nn.Parameter:
    """A parameter that starts normal."""
    return nn.Parameter(torch.empty(shape).normal_(std=std, generator=rng))


class GroupedLinear(nn.Module):
    """A linear layer whose weight is block-diagonal: (.., groups * I) to (.., groups * O)."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(groups, outputs // groups, inputs // groups))  # (G, O, I)

    def forward(self, x: Tensor) -> Tensor:
        parts = x.reshape(*x.shape[:-1], self.weight.shape[0], -1)  # (B, N, G, I)
        return torch.einsum("...gi,goi->...go", parts, self.weight).flatten(-2)


@dataclass(frozen=True)
class Half:
    """The attention or the MLP of a block in one forward pass: a norm, and what follows it."""

    position: Position
    block: BlockCall
    other: Tensor | None
    """The other stream's tokens before its block of the same index, or None."""

    def normed(self, x: Tensor) -> Tensor:
        """(B, N, D) as the attention or the MLP receives it."""
        return self.block.normed(self.position, x)

    def after_norm(self, normed: Tensor) -> Tensor:
        """The attention or the MLP itself."""
        return self.block.after_norm(self.position, normed)

    def branch(self, x: Tensor) -> Tensor:
        """The plain branch (B, N, D) before its residual add."""
        return self.after_norm(self.normed(x))


class BranchHooks(Hooks):
    """Runs both halves of a block, through the module that was added to them; by default it follows the branch."""

    def __init__(self, added: nn.ModuleDict) -> None:
        self.added = added

    def block(self, modality: str, index: int, block: BlockCall, x: Tensor, batch: Any, other: Tensor | None) -> Tensor:
        for position in POSITIONS:
            half, key = Half(position, block, other), f"{position}_{modality}{index}"
            x = x + (self.through(self.added[key], half, x) if key in self.added else half.branch(x))
        return x

    def through(self, added: nn.Module, half: Half, x: Tensor) -> Tensor:
        """What a half of a block adds to its residual stream x (B, N, D)."""
        return cast(Tensor, added(half.branch(x)))


class BesideHooks(BranchHooks):
    """The added module works on the residual stream itself, beside the branch."""

    def through(self, added: nn.Module, half: Half, x: Tensor) -> Tensor:
        return half.branch(x) + cast(Tensor, added(x))


class BesideNormedHooks(BranchHooks):
    """The added module works on what the attention or the MLP receives, beside it."""

    def through(self, added: nn.Module, half: Half, x: Tensor) -> Tensor:
        normed = half.normed(x)
        return half.after_norm(normed) + cast(Tensor, added(normed))


class Branch(Method):
    """A module at `positions` of every block of `modalities`, of which `kind` decides how it joins in."""

    positions: ClassVar[tuple[str, ...]] = POSITIONS
    modalities: ClassVar[str] = "avu"
    kind: ClassVar[type[BranchHooks]] = BranchHooks

    def build(self, rng: torch.Generator) -> None:
        for place, _ in blocks(self.net):
            if place[0] in self.modalities:
                for position in self.positions:
                    self.extra[f"{position}_{place}"] = self.module(place[0], rng)
        self.hooks = self.kind(self.extra)

    def module(self, modality: str, rng: torch.Generator) -> nn.Module:
        """The module of one position."""
        return Bottleneck(self.net.config.embed_dim, self.options["rank"], rng)


class Bottleneck(nn.Module):
    """x + up(GELU(down(x))), the identity at start because `up` starts at zero."""

    def __init__(self, dim: int, rank: int, rng: torch.Generator) -> None:
        super().__init__()
        self.down = nn.Linear(dim, rank)
        self.up = nn.Linear(rank, dim)
        with torch.no_grad():
            self.down.weight.copy_(torch.empty(rank, dim).normal_(std=dim**-0.5, generator=rng))
            self.down.bias.zero_()
            self.up.weight.zero_()
            self.up.bias.zero_()

    def change(self, x: Tensor) -> Tensor:
        """What it adds to x (B, N, D)."""
        return cast(Tensor, self.up(F.gelu(self.down(x))))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.change(x)


class ScaledBottleneck(nn.Module):
    """scale * up(dropout(ReLU(down(x)))), zero at start because `up` is."""

    def __init__(self, dim: int, options: dict[str, Any], rng: torch.Generator) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim, options["rank"]), nn.Linear(options["rank"], dim)
        self.dropout = nn.Dropout(options["dropout"])
        self.scale: float = options["scale"]
        with torch.no_grad():
            start = nn.init.kaiming_uniform_(torch.empty(options["rank"], dim), a=5**0.5, generator=rng)
            self.down.weight.copy_(start)
            for zero in (self.down.bias, self.up.weight, self.up.bias):
                zero.zero_()

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.up(self.dropout(F.relu(self.down(x))))  # (B, N, D)
        return changed * self.scale


SHARED = {"family": "adapter", "memory": "M2", "lr_range": (1e-4, 1e-2)}


@method(
    "adapter-houlsby",
    **SHARED,
    title="Adapter (Houlsby)",
    reference="Houlsby et al., Parameter-Efficient Transfer Learning for NLP, ICML 2019",
    year=2019,
    bibtex="houlsby2019adapter",
    options={"rank": 64},
    parameters="2*(2*d*rank + rank + d)*N",
)
class Houlsby(Branch):
    """After the attention and after the MLP."""


@method(
    "adapter-pfeiffer",
    **SHARED,
    title="Adapter (Pfeiffer)",
    reference="Pfeiffer et al., AdapterFusion: Non-Destructive Task Composition for Transfer Learning, EACL 2021",
    year=2021,
    bibtex="pfeiffer2021adapterfusion",
    options={"rank": 64},
    parameters="(2*d*rank + rank + d)*N",
)
class Pfeiffer(Branch):
    """After the MLP only."""

    positions = ("mlp",)


@method(
    "adaptformer",
    **SHARED,
    title="AdaptFormer",
    reference="Chen et al., AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition, NeurIPS 2022",
    year=2022,
    bibtex="chen2022adaptformer",
    options={"rank": 64, "dropout": 0.1, "scale": 0.1},
    parameters="(2*d*rank + rank + d)*N",
    note="the suite's optimiser in place of the paper's SGD",
)
class AdaptFormer(Branch):
    """Beside the MLP, on the residual stream before its norm."""

    positions = ("mlp",)
    kind = BesideHooks

    def module(self, modality: str, rng: torch.Generator) -> nn.Module:
        return ScaledBottleneck(self.net.config.embed_dim, self.options, rng)
