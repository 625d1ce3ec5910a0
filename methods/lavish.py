"""LAVisH: adapters beside attention and MLP through which each stream looks at the other."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.branch import Branch, BranchHooks, GroupedLinear, Half, check_divides, randn
from mmbench.registry import method

LATENT_STD = 0.02


class HybridAdapter(nn.Module):
    """Latents gather from the other stream, x gathers from the latents, and a grouped bottleneck follows.

    Both gates start at zero: the second makes the whole adapter zero.
    """

    def __init__(self, dim: int, options: dict[str, Any], rng: torch.Generator) -> None:
        super().__init__()
        hidden, groups = dim // options["reduction"], options["groups"]
        self.latents = randn(options["latents"], dim, std=LATENT_STD, rng=rng)
        self.gate_cross, self.gate_out = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        self.norm_in, self.norm_hidden, self.norm_out = nn.LayerNorm(dim), nn.LayerNorm(hidden), nn.LayerNorm(dim)
        self.down, self.up = GroupedLinear(dim, hidden, groups), GroupedLinear(hidden, dim, groups)
        with torch.no_grad():
            for linear in (self.down, self.up):
                linear.weight.normal_(std=linear.weight.shape[-1] ** -0.5, generator=rng)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """Own tokens (B, N, D) and the other stream's (B, L, D) to what joins the residual stream, (B, N, D)."""
        latents = self.latents + attend(self.latents, other)  # (B, m, D)
        x = x + self.gate_cross * attend(x, latents)
        hidden = F.relu(self.norm_hidden(self.down(self.norm_in(x))))
        return cast(Tensor, self.norm_out(self.up(hidden))) * self.gate_out


def attend(query: Tensor, context: Tensor) -> Tensor:
    """Attention without projections and without a temperature, as in the paper: (.., N, D), (B, L, D) to (B, N, D)."""
    return (query @ context.transpose(-2, -1)).softmax(dim=-1) @ context


class CrossHooks(BranchHooks):
    """Beside the branch, with the other stream in view; where a stream is alone, nothing is added."""

    def through(self, added: nn.Module, half: Half, x: Tensor) -> Tensor:
        branch = half.branch(x)
        return branch if half.other is None else branch + cast(Tensor, added(x, half.other))


@method(
    "lavish",
    title="LAVisH",
    family="adapter",
    memory="M3",
    reference="Lin et al., Vision Transformers are Parameter-Efficient Audio-Visual Learners, CVPR 2023",
    year=2023,
    bibtex="lin2023lavish",
    lr_range=(1e-5, 1e-3),
    options={"latents": 2, "reduction": 8, "groups": 2},
    parameters="4*E*(latents*d + 2 + 4*d + 2*(d//reduction) + 2*d*(d//reduction)//groups)",
    note="LayerNorm in place of BatchNorm, so that no sample depends on its batch; joint blocks have no other stream",
)
class LAVisH(Branch):
    """In both encoders, beside attention and MLP, on the residual stream.

    Two deviations from the paper: BatchNorm and the LayerNorm after it became one LayerNorm; and the MLP's adapter
    sees the other stream before its block rather than after its attention, because both encoders run in lock step.
    """

    modalities = "av"
    kind = CrossHooks

    def module(self, modality: str, rng: torch.Generator) -> nn.Module:
        dim, options = self.net.config.embed_dim, self.options
        check_divides("lavish", "groups", options["groups"], width=dim, bottleneck=dim // options["reduction"])
        return HybridAdapter(dim, options, rng)
