"""Bottleneck adapters: small residual modules at stated positions of every frozen block."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmbench.backbone.blocks import BlockCall
from mmbench.backbone.hooks import Hooks
from mmbench.method import Method
from mmbench.registry import method


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

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(F.gelu(self.down(x)))  # type: ignore[no-any-return]  # (B, N, D)


class AdapterHooks(Hooks):
    """Sends a block's branches through their adapters before the residual adds."""

    def __init__(self, adapters: nn.ModuleDict) -> None:
        self._adapters = adapters

    def block(self, modality: str, index: int, block: BlockCall, x: Tensor, batch: Any, other: Tensor | None) -> Tensor:
        x = x + self._through("attention", modality, index, block.attend(x))
        return x + self._through("mlp", modality, index, block.feed(x))

    def _through(self, position: str, modality: str, index: int, branch: Tensor) -> Tensor:
        key = f"{position}_{modality}{index}"
        return self._adapters[key](branch) if key in self._adapters else branch


class Branch(Method):
    """Adapters at `positions` of every encoder and joint block."""

    positions: ClassVar[tuple[str, ...]]

    def build(self, rng: torch.Generator) -> None:
        config = self.net.config
        depths = {"a": config.depth, "v": config.depth, "u": config.joint_depth}
        for modality, depth in depths.items():
            for index in range(depth):
                for position in self.positions:
                    adapter = Bottleneck(config.embed_dim, self.options["rank"], rng)
                    self.extra[f"{position}_{modality}{index}"] = adapter
        self.hooks = AdapterHooks(self.extra)


@method(
    "adapter-houlsby",
    title="Adapter (Houlsby)",
    family="adapter",
    reference="Houlsby et al., Parameter-Efficient Transfer Learning for NLP, ICML 2019",
    year=2019,
    memory="M2",
    lr_range=(1e-4, 1e-2),
    options={"rank": 64},
)
class Houlsby(Branch):
    """After the attention and after the MLP."""

    positions = ("attention", "mlp")


@method(
    "adapter-pfeiffer",
    title="Adapter (Pfeiffer)",
    family="adapter",
    reference="Pfeiffer et al., AdapterFusion: Non-Destructive Task Composition for Transfer Learning, EACL 2021",
    year=2021,
    memory="M2",
    lr_range=(1e-4, 1e-2),
    options={"rank": 64},
)
class Pfeiffer(Branch):
    """After the MLP only."""

    positions = ("mlp",)
