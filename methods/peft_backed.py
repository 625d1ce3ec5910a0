"""Weight-space methods through the peft library: the engine, and the LoRA family. A row is a configuration."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from mmbench.backbone.cavmae import CAVMAEFT
from mmbench.backbone.fusion import FusionAttention
from mmbench.method import Method, State
from mmbench.registry import method

# All are matched as a whole: timm's attention also holds identity modules called q_norm, k_norm and norm.
QKV = r"blocks_[avu]\.\d+\.attn\.qkv"
LINEARS = r"blocks_[avu]\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))"
TAIL = r"blocks_u\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))|blocks_fu\.0\.(\w+\.out_proj|mlp_[av]\.(fc1|fc2))"
ADAPTER = "default"
"""The name under which peft keeps the one adapter of a method."""


@contextmanager
def drawing_from(rng: torch.Generator) -> Iterator[None]:
    """Inside, the global CPU generator of torch continues `rng`: peft draws its start values from nowhere else."""
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(rng.get_state())
        yield
        rng.set_state(torch.get_rng_state())


def adapted(net: nn.Module) -> Iterator[tuple[str, Any]]:
    """Names and layers that peft has put into a net."""
    return ((name, layer) for name, layer in net.named_modules() if isinstance(layer, BaseTunerLayer))


class PeftBacked(Method):
    """Injects a peft adapter into the method's own copy of the backbone; names of frozen tensors keep their suffix."""

    def config(self) -> Any:
        """The peft configuration of the row."""
        raise NotImplementedError

    def inject(self) -> None:
        """Put the adapter into the net."""
        inject_adapter_in_model(self.config(), self.net)

    def build(self, rng: torch.Generator) -> None:
        with drawing_from(rng):
            self.inject()

    def layers(self) -> Iterator[Any]:
        """What peft has put into the net, in its order."""
        return (layer for _, layer in adapted(self.net))

    def export(self) -> CAVMAEFT | None:
        net = copy.deepcopy(self.net)
        for name, layer in reversed(list(adapted(net))):  # layers may be nested: the inner ones first
            layer.merge()
            parent, _, child = name.rpartition(".")
            setattr(net.get_submodule(parent), child, layer.base_layer)
        return net


class Redrawn(PeftBacked):
    """Frozen random parts are a function of one number, and that number is all that a state holds of them."""

    def build(self, rng: torch.Generator) -> None:
        super().build(rng)
        self._seed = Seed(rng)
        self.extra["seed"] = self._seed
        self._redraw()

    def load(self, state: State) -> None:
        super().load(state)
        self._redraw()

    def redraw(self, rng: torch.Generator) -> None:
        """Fill the frozen random parts in place."""
        raise NotImplementedError

    def _redraw(self) -> None:
        with torch.no_grad():
            self.redraw(torch.Generator().manual_seed(int(self._seed.value)))


class Seed(nn.Module):
    """A number to draw from, kept as a tensor (1,)."""

    value: torch.Tensor

    def __init__(self, rng: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("value", torch.randint(2**31 - 1, (1,), generator=rng))


class Lora(PeftBacked):
    """W + scale * B A on every layer that `target` matches; A starts Kaiming-uniform, B at zero."""

    target: ClassVar[str] = LINEARS
    variant: ClassVar[dict[str, Any]] = {}
    """Further settings of the peft configuration."""

    def config(self) -> Any:
        return LoraConfig(
            r=self.options["rank"],
            lora_alpha=self.options["alpha"],
            lora_dropout=self.options["dropout"],
            target_modules=self.target,
            **self.variant,
        )


SHARED = {
    "family": "lora",
    "lr_range": (1e-4, 1e-2),
    "options": {"rank": 8, "alpha": 16.0, "dropout": 0.0},
}


@method(
    "lora-qkv",
    **SHARED,
    title="LoRA on the fused qkv (peft)",
    reference="Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022",
    year=2022,
    bibtex="hu2022lora",
    memory="M2",
    parameters="4*d*rank*N",
    note="one A shared by q, k and v: as many parameters as lora-qv, another class of functions",
)
class LoraQKV(Lora):
    """The form most users get from peft."""

    target = QKV


@method(
    "lora-all",
    **SHARED,
    title="LoRA on all four linears",
    reference="Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022",
    year=2022,
    bibtex="hu2022lora",
    memory="M3",
    parameters="16*d*rank*N",
)
class LoraAll(Lora):
    """qkv, proj, fc1 and fc2 of every block."""


@method(
    "lora-tail",
    title="LoRA on fusion and joint block",
    family="lora",
    reference="Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022",
    year=2022,
    bibtex="hu2022lora",
    memory="M1",
    lr_range=(1e-4, 1e-2),
    options={"rank": 8, "alpha": 16.0},
    parameters="(16*U + 32*min(X, 1) + 6*X)*d*rank",
    note="no dropout: peft has none for the packed in_proj of the fusion block",
)
class LoraTail(Lora):
    """All linears of the joint block and of the fusion block, packed query-key-value weights included."""

    target = TAIL

    def config(self) -> Any:
        places = [name for name, layer in self.net.named_modules() if isinstance(layer, FusionAttention)]
        return LoraConfig(
            r=self.options["rank"],
            lora_alpha=self.options["alpha"],
            target_modules=self.target,
            target_parameters=[f"{place}.in_proj_weight" for place in places] or None,
        )


@method(
    "rslora",
    **SHARED,
    title="rsLoRA",
    reference="Kalajdzievski, A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA, 2023",
    year=2023,
    bibtex="kalajdzievski2023rslora",
    memory="M3",
    parameters="16*d*rank*N",
    note="as lora-all, scaled by alpha / sqrt(rank)",
)
class RsLora(Lora):
    """All four linears."""

    variant: ClassVar[dict[str, Any]] = {"use_rslora": True}


@method(
    "dora",
    **SHARED,
    title="DoRA",
    reference="Liu et al., DoRA: Weight-Decomposed Low-Rank Adaptation, ICML 2024",
    year=2024,
    bibtex="liu2024dora",
    memory="M4",
    parameters="(16*rank + 9)*d*N",
    note="one magnitude for each output, as in peft; the norm takes no gradient, as in the paper's section 4.3",
)
class Dora(Lora):
    """m * (W + BA) / |W + BA| on all four linears, m starting at the norms of W."""

    variant: ClassVar[dict[str, Any]] = {"use_dora": True}
