"""A small network that runs beside the frozen encoders and sees all of their layers."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from mmbench.backbone.blocks import BlockCall, initialise
from mmbench.backbone.fusion import FusionAttention
from mmbench.backbone.hooks import Hooks
from mmbench.errors import ConfigError
from mmbench.method import Method
from mmbench.registry import method

STREAMS = ("a", "v")
GATE_TEMPERATURE = 0.1


class SideBlock(nn.Module):
    """Pre-norm transformer block, (B, N, S) to the same."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = FusionAttention(dim, heads)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.attn(normed, normed)
        return x + cast(Tensor, self.mlp(self.norm2(x)))


class Ladder(nn.Module):
    """The side network of one encoder: a block of width `side` for each of the encoder's, fed by gated taps."""

    def __init__(self, dim: int, side: int, heads: int, depth: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Linear(dim, side) for _ in range(depth + 1))  # the first for the embedded input
        self.blocks = nn.ModuleList(SideBlock(side, heads) for _ in range(depth))
        self.gates = nn.Parameter(torch.empty(depth))

    def reset_own(self, rng: torch.Generator) -> None:
        nn.init.zeros_(self.gates)

    def start(self, x: Tensor) -> Tensor:
        """Side tokens (B, N, S) of the embedded input (B, N, D)."""
        return cast(Tensor, self.down[0](x))

    def climb(self, index: int, tap: Tensor, side: Tensor) -> Tensor:
        """Side tokens (B, N, S) after the block beside the frozen one whose output is `tap` (B, N, D)."""
        gate = torch.sigmoid(self.gates[index] / GATE_TEMPERATURE)
        return cast(Tensor, self.blocks[index](gate * self.down[index + 1](tap) + (1 - gate) * side))


class LadderHooks(Hooks):
    """Carries the side tokens along; the frozen blocks see nothing of them, so no gradient enters the backbone."""

    def __init__(self, extra: nn.ModuleDict) -> None:
        self._extra = extra
        self._side: dict[str, Tensor] = {}

    def tokens(self, modality: str, x: Tensor, batch: Any) -> tuple[Tensor, int]:
        self._side[modality] = self._ladder(modality).start(x)
        return x, 0

    def block(self, modality: str, index: int, block: BlockCall, x: Tensor, batch: Any, other: Tensor | None) -> Tensor:
        out = block.run(x)
        if modality in STREAMS:
            self._side[modality] = self._ladder(modality).climb(index, out, self._side[modality])
        return out

    def pool(self, x: Tensor, batch: Any) -> Tensor:
        side = torch.cat([self._side.pop(m) for m in tuple(self._side)], dim=1).mean(dim=1)  # (B, S)
        return x.mean(dim=1) + cast(Tensor, self._extra["up"](side))

    def _ladder(self, modality: str) -> Ladder:
        return cast(Ladder, self._extra[f"ladder_{modality}"])


@method(
    "ladder-side-tuning",
    title="Ladder side-tuning",
    family="side",
    reference="Sung et al., LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning, NeurIPS 2022",
    year=2022,
    memory="M0",
    lr_range=(1e-4, 1e-2),
    options={"reduction": 8},
    parameters="2 * E * (12 * (d // reduction)**2 + 13 * (d // reduction) + 1)"
    " + (2 * (E + 1) * (d + 1) + d) * (d // reduction) + d",
    bibtex="sung2022lst",
    note="side networks start at random instead of from a pruned backbone; none beside fusion and joint block",
)
class LadderSideTuning(Method):
    """A transformer of width d / `reduction` beside each encoder; its pooled tokens, projected up, join the feature.

    Gates are sigmoid(g / 0.1) with g = 0 at start; the projection starts at zero, so the start is the backbone.
    """

    def build(self, rng: torch.Generator) -> None:
        config = self.net.config
        side = config.embed_dim // self.options["reduction"]
        if side < 1:
            raise ConfigError(
                f"option reduction of {self.card.name} is {self.options['reduction']}, "
                f"more than the width {config.embed_dim}"
            )
        heads = math.gcd(side, config.heads)
        with torch.device("meta"):  # the layers' own start would come from the global generator
            for modality in STREAMS:
                self.extra[f"ladder_{modality}"] = Ladder(config.embed_dim, side, heads, config.depth)
            self.extra["up"] = up = nn.Linear(side, config.embed_dim)
        initialise(self.extra, rng)
        nn.init.zeros_(up.weight)
        self.hooks = LadderHooks(self.extra)
