"""Compacter: adapters whose weights are sums of Kronecker products with one factor that all of them share."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.branch import Branch, BranchHooks, Half, check_divides, randn
from mmbench.registry import method


class Rule(nn.Module):
    """The shared factors A (n, n, n)."""

    def __init__(self, products: int, rng: torch.Generator) -> None:
        super().__init__()
        self.factors = randn(products, products, products, std=products**-0.5, rng=rng)


class KroneckerLinear(nn.Module):
    """y = W x + b, where W is the sum over i of A_i (x) (s_i t_i^T)."""

    def __init__(self, inputs: int, outputs: int, products: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.zeros(products, outputs // products))  # s
        self.columns = nn.Parameter(torch.zeros(products, inputs // products))  # t
        self.bias = nn.Parameter(torch.zeros(outputs))

    def weight(self, factors: Tensor) -> Tensor:
        """(outputs, inputs)."""
        whole = torch.einsum("iab,ic,ie->acbe", factors, self.rows, self.columns)
        return whole.flatten(2).flatten(0, 1)

    def forward(self, x: Tensor, factors: Tensor) -> Tensor:
        return F.linear(x, self.weight(factors), self.bias)


class KroneckerBottleneck(nn.Module):
    """x + up(GELU(down(x))), the identity at start because one factor of `up` starts at zero."""

    def __init__(self, dim: int, rank: int, products: int, rng: torch.Generator) -> None:
        super().__init__()
        self.down, self.up = KroneckerLinear(dim, rank, products), KroneckerLinear(rank, dim, products)
        with torch.no_grad():
            # With A of variance 1 / n, these give `down` the variance 1 / dim of an ordinary projection.
            self.down.rows.normal_(generator=rng)
            self.down.columns.normal_(std=dim**-0.5, generator=rng)
            self.up.columns.normal_(generator=rng)

    def forward(self, x: Tensor, factors: Tensor) -> Tensor:
        return x + cast(Tensor, self.up(F.gelu(self.down(x, factors)), factors))  # (B, N, D)


class CompacterHooks(BranchHooks):
    """After the branch, with the shared factors."""

    def through(self, added: nn.Module, half: Half, x: Tensor) -> Tensor:
        return cast(Tensor, added(half.branch(x), self.added["rule"].factors))


@method(
    "compacter",
    title="Compacter",
    family="adapter",
    memory="M2",
    reference="Karimi Mahabadi et al., Compacter: Efficient Low-Rank Hypercomplex Adapter Layers, NeurIPS 2021",
    year=2021,
    bibtex="mahabadi2021compacter",
    lr_range=(3e-4, 3e-2),
    options={"products": 4, "reduction": 32},
    parameters="2*N*3*(d + products*max(1, d//(reduction*products))) + products**3 + 4*d*N + 2*d + min(F, 8*d)",
    note="starts as the identity with a zero factor; the paper's small random start leaves Adam no gradient to see",
)
class Compacter(Branch):
    """After the attention and after the MLP; the live LayerNorms train too, the head's as the suite says.

    The bottleneck is d / reduction wide, rounded down to a multiple of `products` and at least that.
    """

    kind = CompacterHooks

    def build(self, rng: torch.Generator) -> None:
        products = self.options["products"]
        check_divides("compacter", "products", products, width=self.net.config.embed_dim)
        self.extra["rule"] = Rule(products, rng)
        super().build(rng)
        live = self.net.live_parameter_names()
        for name, layer in self.net.named_modules():
            if isinstance(layer, nn.LayerNorm) and not name.startswith("mlp_head"):
                layer.requires_grad_(f"{name}.weight" in live)

    def module(self, modality: str, rng: torch.Generator) -> nn.Module:
        dim, products = self.net.config.embed_dim, self.options["products"]
        rank = products * max(1, dim // (self.options["reduction"] * products))
        return KroneckerBottleneck(dim, rank, products, rng)
