"""Convpass: bottlenecks with a 3x3 convolution over the grid of patches, beside attention and MLP."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from methods.branch import BesideNormedHooks, Branch
from mmbench.backbone.config import BackboneConfig
from mmbench.registry import method


class ConvBottleneck(nn.Module):
    """scale * up(dropout(act(conv(act(down(x)))))) on each modality's own grid, zero at start because `up` is."""

    def __init__(self, modality: str, config: BackboneConfig, options: dict[str, Any], rng: torch.Generator) -> None:
        super().__init__()
        dim, rank = config.embed_dim, options["rank"]
        self.modality = modality
        self.grids = {"a": config.audio_grid, "v": config.vision_grid}
        self.counts = {"a": config.audio_tokens, "v": config.vision_tokens}
        self.down, self.up = nn.Linear(dim, rank), nn.Linear(rank, dim)
        self.conv = nn.Conv2d(rank, rank, kernel_size=3, padding=1)
        self.dropout = nn.Dropout(options["dropout"])
        self.scale: float = options["scale"]
        with torch.no_grad():
            self.down.weight.copy_(nn.init.xavier_uniform_(torch.empty(rank, dim), generator=rng))
            for zero in (self.down.bias, self.conv.weight, self.conv.bias, self.up.weight, self.up.bias):
                cast(Tensor, zero).zero_()
            self.conv.weight[:, :, 1, 1] = torch.eye(rank)  # the centre passes each channel on

    def forward(self, x: Tensor) -> Tensor:
        hidden = quick_gelu(self.down(x))  # (B, N, rank)
        streams = self._streams(x.shape[1])
        parts = torch.split(hidden, [self.counts[modality] for modality in streams], dim=1)
        mixed = torch.cat([self._convolve(m, part) for m, part in zip(streams, parts, strict=True)], dim=1)
        return cast(Tensor, self.up(self.dropout(quick_gelu(mixed)))) * self.scale  # (B, N, D)

    def _streams(self, tokens: int) -> tuple[str, ...]:
        """Whose tokens these are: joint blocks see both, audio first, and in single-modality modes one of them."""
        if self.modality != "u":
            return (self.modality,)
        if tokens == sum(self.counts.values()):
            return ("a", "v")
        return ("a",) if tokens == self.counts["a"] else ("v",)

    def _convolve(self, modality: str, tokens: Tensor) -> Tensor:
        picture = tokens.transpose(1, 2).reshape(tokens.shape[0], -1, *self.grids[modality])  # (B, rank, rows, columns)
        return cast(Tensor, self.conv(picture)).flatten(2).transpose(1, 2)


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


@method(
    "convpass",
    title="Convpass",
    family="adapter",
    memory="M2",
    reference="Jie & Deng, Convolutional Bypasses Are Better Vision Transformer Adapters, 2022",
    year=2022,
    bibtex="jie2022convpass",
    lr_range=(1e-4, 1e-2),
    options={"rank": 8, "dropout": 0.1, "scale": 1.0},
    parameters="2*(2*d*rank + rank + d + 9*rank**2 + rank)*N",
    note="audio convolves over mel bands and time; joint blocks, which the paper lacks, convolve each modality alone",
)
class Convpass(Branch):
    """Beside the attention and beside the MLP, on what they receive.

    The paper picks `scale` for each data set; here it is an option.
    """

    kind = BesideNormedHooks

    def module(self, modality: str, rng: torch.Generator) -> nn.Module:
        return ConvBottleneck(modality, self.net.config, self.options, rng)
