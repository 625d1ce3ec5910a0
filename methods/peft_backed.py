"""Weight-space methods through the peft library: a row is a configuration and a target."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from mmbench.backbone.cavmae import CAVMAEFT
from mmbench.method import Method
from mmbench.registry import method

QKV = r"blocks_[avu]\.\d+\.attn\.qkv"
"""Anchored: timm's attention also holds identity modules called q_norm, k_norm and norm."""


class PeftBacked(Method):
    """Injects a peft adapter into the method's own copy of the backbone; names of frozen tensors keep their suffix."""

    def config(self) -> Any:
        """The peft configuration of the row."""
        return LoraConfig(
            r=self.options["rank"],
            lora_alpha=self.options["alpha"],
            lora_dropout=self.options["dropout"],
            target_modules=QKV,
        )

    def build(self, rng: torch.Generator) -> None:
        inject_adapter_in_model(self.config(), self.net)
        self.net.mlp_head.requires_grad_(False)
        # peft starts A from the global generator; ours makes the start a function of the trial's seed.
        with torch.no_grad():
            for name, parameter in self.net.named_parameters():
                if ".lora_A." in name:
                    start = torch.empty(parameter.shape)
                    parameter.copy_(nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=rng))

    def export(self) -> CAVMAEFT | None:
        net = copy.deepcopy(self.net)
        for name, layer in list(net.named_modules()):
            if isinstance(layer, BaseTunerLayer):
                layer.merge()
                parent, _, child = name.rpartition(".")
                setattr(net.get_submodule(parent), child, layer.get_base_layer())
        return net


@method(
    "lora-qkv",
    title="LoRA on the fused qkv (peft)",
    family="lora",
    reference="Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022",
    year=2022,
    memory="M2",
    lr_range=(1e-4, 1e-2),
    options={"rank": 8, "alpha": 16.0, "dropout": 0.0},
    note="one A shared by q, k and v: as many parameters as lora-qv, another class of functions",
)
class LoraQKV(PeftBacked):
    """The form most users get from peft."""
