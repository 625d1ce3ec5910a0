"""RepAdapter: a linear grouped bottleneck before attention and MLP, which folds into the layer that follows."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from methods.branch import POSITIONS, Branch, BranchHooks, GroupedLinear, Half, blocks, check_divides
from mmbench.backbone.cavmae import CAVMAEFT
from mmbench.registry import method


class LinearBottleneck(nn.Module):
    """x + scale * (up(down(x)) + bias), the identity at start because `up` starts at zero."""

    def __init__(self, dim: int, options: dict[str, Any], rng: torch.Generator) -> None:
        super().__init__()
        rank = options["rank"]
        self.down = nn.Linear(dim, rank)
        self.up = GroupedLinear(rank, dim, options["groups"])
        self.bias = nn.Parameter(torch.zeros(dim))
        self.scale: float = options["scale"]
        with torch.no_grad():
            self.down.weight.copy_(nn.init.xavier_uniform_(torch.empty(rank, dim), generator=rng))
            self.down.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return x + (cast(Tensor, self.up(self.down(x))) + self.bias) * self.scale  # (B, N, D)

    def fold_into(self, linear: Any) -> None:
        """Make `linear` do the work of both: W (M x + c) + b = (W M) x + (W c + b)."""
        weight = linear.weight.clone()
        zero = weight.new_zeros(1, weight.shape[1])
        shift = self(zero)  # c
        columns = self(torch.eye(weight.shape[1], device=weight.device)) - shift  # M transposed
        linear.weight.copy_(weight @ columns.T)
        linear.bias.add_((weight @ shift.T).squeeze(1))


class BeforeHooks(BranchHooks):
    """The added module stands between the norm and what follows it."""

    def through(self, added: nn.Module, half: Half, x: Tensor) -> Tensor:
        return half.after_norm(added(half.normed(x)))


@method(
    "repadapter",
    title="RepAdapter",
    family="adapter",
    memory="M2",
    reference="Luo et al., Towards Efficient Visual Adaption via Structural Re-parameterization, 2023",
    year=2023,
    bibtex="luo2023repadapter",
    lr_range=(1e-4, 1e-2),
    options={"rank": 8, "groups": 2, "scale": 1.0},
    parameters="2*(d*rank + rank + d*rank//groups + d)*N",
)
class RepAdapter(Branch):
    """Between each norm and the attention or MLP behind it; qkv and fc1 take it up on export.

    Only the projection up is grouped. The paper picks `scale` for each data set; here it is an option.
    """

    kind = BeforeHooks

    def module(self, modality: str, rng: torch.Generator) -> nn.Module:
        dim, options = self.net.config.embed_dim, self.options
        check_divides("repadapter", "groups", options["groups"], width=dim, rank=options["rank"])
        return LinearBottleneck(dim, options, rng)

    def export(self) -> CAVMAEFT | None:
        net = self.exported_copy()
        with torch.no_grad():
            for place, block in blocks(net):
                for position, linear in zip(POSITIONS, (block.attn.qkv, block.mlp.fc1), strict=True):
                    cast(LinearBottleneck, self.extra[f"{position}_{place}"]).fold_into(linear)
        return net
