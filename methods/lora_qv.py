"""LoRA on queries and values through loralib, the reference implementation."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import loralib
import torch
from torch import Tensor, nn

from mmbench.backbone.cavmae import CAVMAEFT
from mmbench.method import Method
from mmbench.registry import method

BLOCKS = ("blocks_a", "blocks_v", "blocks_u")
ADAPTED = (True, False, True)
"""Of query, key and value."""


@method(
    "lora-qv",
    title="LoRA on q and v (loralib)",
    family="lora",
    reference="Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022",
    year=2022,
    bibtex="hu2022lora",
    memory="M2",
    lr_range=(1e-4, 1e-2),
    options={"rank": 8, "alpha": 16.0},
    parameters="4*d*rank*N",
    note="separate A and B for q and for v; k stays as it is",
)
class LoraQV(Method):
    """Each block's qkv becomes a loralib MergedLinear over the same frozen weight.

    loralib merges its delta into the weight on eval() and a state saved in between reloads wrong, so merging is
    off and only A and B are ever saved.
    """

    def build(self, rng: torch.Generator) -> None:
        for attention in attentions(self.net):
            attention.qkv = self._wrap(attention.qkv, rng)

    def _wrap(self, linear: nn.Linear, rng: torch.Generator) -> nn.Module:
        device = linear.weight.device
        layer = PaddedByPlace(
            linear.in_features,
            linear.out_features,
            r=self.options["rank"],
            lora_alpha=self.options["alpha"],
            enable_lora=list(ADAPTED),
            merge_weights=False,
            device=device,
        )
        layer.weight, layer.bias = linear.weight, linear.bias  # the frozen tensors themselves, not copies
        with torch.no_grad():
            start = torch.empty(layer.lora_A.shape)
            layer.lora_A.copy_(nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=rng))
        places = torch.arange(linear.out_features).view(len(ADAPTED), -1)[list(ADAPTED)].flatten()
        layer.lora_ind = places.to(device)
        return layer

    def export(self) -> CAVMAEFT | None:
        net = copy.deepcopy(self.net)
        for attention in attentions(net):
            layer = attention.qkv
            plain = nn.Linear(layer.in_features, layer.out_features, device=layer.weight.device)
            with torch.no_grad():
                plain.weight.copy_(layer.weight + layer.merge_AB() * layer.scaling)
                plain.bias.copy_(layer.bias)
            attention.qkv = plain
        return net


class PaddedByPlace(loralib.MergedLinear):  # type: ignore[misc]
    """With the places of the adapted outputs as numbers: as a mask, the device would be waited for in every step."""

    def zero_pad(self, x: Tensor) -> Tensor:
        padded = x.new_zeros((self.out_features, *x.shape[1:]))
        padded[self.lora_ind] = x
        return padded


def attentions(net: CAVMAEFT) -> Iterator[Any]:
    """The attention module of every encoder and joint block."""
    for name in BLOCKS:
        for block in getattr(net, name):
            yield block.attn
