"""Factor-tuning: all changes of weights as one tensor train of two shared factors and a small core for each matrix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from methods.branch import blocks, randn, unhooked_copy
from mmbench.backbone.cavmae import CAVMAEFT
from mmbench.method import Method
from mmbench.registry import method


class Factors(nn.Module):
    """U (d, r) reads the input and V (d, r) writes the output of every matrix; V starts at zero: nothing changes."""

    def __init__(self, dim: int, rank: int, rng: torch.Generator) -> None:
        super().__init__()
        self.reading = randn(dim, rank, std=dim**-0.5, rng=rng)
        self.writing = nn.Parameter(torch.zeros(dim, rank))


class Cores(nn.Module):
    """The cores of one linear layer, which is cut into d x d matrices: (outputs / d, inputs / d, r, r)."""

    def __init__(self, outputs: int, inputs: int, rank: int, rng: torch.Generator) -> None:
        super().__init__()
        self.core = randn(outputs, inputs, rank, rank, std=rank**-0.5, rng=rng)

    def change(self, x: Tensor, factors: Factors) -> Tensor:
        """What the layer's output gains for x (B, N, inputs)."""
        small = x.reshape(*x.shape[:-1], self.core.shape[1], -1) @ factors.reading  # (B, N, inputs / d, r)
        mixed = torch.einsum("...ir,oirs->...os", small, self.core)  # (B, N, outputs / d, r)
        return (mixed @ factors.writing.T).flatten(-2)

    def weight(self, factors: Factors) -> Tensor:
        """The same as a matrix (outputs, inputs)."""
        whole = torch.einsum("ps,oirs,qr->opiq", factors.writing, self.core, factors.reading)
        return whole.flatten(2).flatten(0, 1)


class AddChange:
    """A forward hook: the linear layer keeps its name and its tensors."""

    def __init__(self, factors: Factors, cores: Cores, scale: float) -> None:
        self._factors = factors
        self._cores = cores
        self._scale = scale

    def __call__(self, linear: nn.Module, inputs: tuple[Any, ...], y: Tensor) -> Tensor:
        return y + self._cores.change(inputs[0], self._factors) * self._scale


def linears(net: CAVMAEFT) -> Iterator[tuple[str, Any]]:
    """The four linear layers of each block; their names are those of the cores."""
    for place, block in blocks(net):
        layers = {"qkv": block.attn.qkv, "proj": block.attn.proj, "fc1": block.mlp.fc1, "fc2": block.mlp.fc2}
        for name, linear in layers.items():
            yield f"{name}_{place}", linear


@method(
    "fact",
    title="FacT (tensor train)",
    family="low-rank",
    memory="M3",
    reference="Jie & Deng, FacT: Factor-Tuning for Lightweight Adaptation on Vision Transformer, AAAI 2023",
    year=2023,
    bibtex="jie2023fact",
    lr_range=(1e-4, 1e-2),
    options={"rank": 16, "scale": 1.0},
    parameters="2*d*rank + 12*N*rank**2",
)
class FacT(Method):
    """Each of the twelve d x d matrices of a block gains scale * U C V^T; U and V serve all blocks of all streams.

    The paper picks `scale` for each data set; here it is an option.
    """

    def build(self, rng: torch.Generator) -> None:
        dim, rank = self.net.config.embed_dim, self.options["rank"]
        factors = Factors(dim, rank, rng)
        self.extra["factors"] = factors
        for name, linear in linears(self.net):
            cores = Cores(linear.out_features // dim, linear.in_features // dim, rank, rng)
            self.extra[name] = cores
            linear.register_forward_hook(AddChange(factors, cores, self.options["scale"]))

    def export(self) -> CAVMAEFT | None:
        net, factors = unhooked_copy(self.net), cast(Factors, self.extra["factors"])
        with torch.no_grad():
            for name, linear in linears(net):
                linear.weight.add_(cast(Cores, self.extra[name]).weight(factors), alpha=self.options["scale"])
        return net
