"""The transformer block of CAV-MAE: one attention and one MLP, three sets of norms."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, cast, runtime_checkable

import torch
from timm.layers.attention import Attention as TimmAttention
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mmbench.backbone.compiling import compiled

Norm = Literal["", "a", "v"]
Position = Literal["attention", "mlp"]
KeyValueEdit = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # k, v of shape (B, H, L, head_dim)


class Attention(TimmAttention):
    """timm's attention whose keys and values can be edited before they are used.

    `explicit = True` computes the scores openly; a forward hook on `attn_drop` then sees (B, H, N, L) probabilities.
    """

    @property
    def explicit(self) -> bool:
        """Whether the score matrix is materialised instead of fused away."""
        return not self.fused_attn

    @explicit.setter
    def explicit(self, value: bool) -> None:
        self.fused_attn = not value  # type: ignore[misc]  # timm marks it Final for TorchScript only

    def forward(self, x: Tensor, kv: KeyValueEdit | None = None) -> Tensor:  # type: ignore[override]
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, N, head_dim) each
        if kv is not None:
            k, v = kv(k, v)
        if self.explicit:
            scores = (q * self.scale) @ k.transpose(-2, -1)  # (B, H, N, L)
            mixed = self.attn_drop(scores.softmax(dim=-1)) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        merged = mixed.transpose(1, 2).reshape(batch, tokens, self.attn_dim)  # (B, N, D)
        return cast(Tensor, self.proj(merged))


class Block(nn.Module):
    """Pre-norm block; `norm` picks the plain, the audio or the vision norms, the weights are shared.

    Every block carries all three sets of norms because every official checkpoint does.
    """

    recompute = False
    """Whether the backward pass makes the inside of attention and MLP again in place of keeping it: activation
    checkpointing (Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016)."""
    compiled = False
    """Whether attention and MLP run through torch.compile while the block is in training mode; an attention whose
    keys and values are edited does not."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.norm1_a = nn.LayerNorm(dim)
        self.norm1_v = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads=heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(dim)
        self.norm2_a = nn.LayerNorm(dim)
        self.norm2_v = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)

    def attend(self, x: Tensor, norm: Norm = "", kv: KeyValueEdit | None = None) -> Tensor:
        """Attention branch (B, N, D) before its residual add."""
        normed = getattr(self, f"norm1_{norm}" if norm else "norm1")(x)
        return cast(Tensor, self.attn(normed, kv))

    def feed(self, x: Tensor, norm: Norm = "") -> Tensor:
        """MLP branch (B, N, D) before its residual add."""
        normed = getattr(self, f"norm2_{norm}" if norm else "norm2")(x)
        return cast(Tensor, self.mlp(normed))

    def run(self, x: Tensor, norm: Norm = "", kv: KeyValueEdit | None = None) -> Tensor:
        """The whole block, (B, N, D) to (B, N, D)."""
        x = x + self.attend(x, norm, kv)
        return x + self.feed(x, norm)

    def forward(self, x: Tensor, norm: Norm = "", kv: KeyValueEdit | None = None) -> Tensor:
        return self.run(x, norm, kv)


@dataclass(frozen=True)
class BlockCall:
    """One use of a block inside a forward pass: its norms and its key/value edit are already settled."""

    module: Block
    norm: Norm = ""
    kv: KeyValueEdit | None = None

    def normed(self, position: Position, x: Tensor) -> Tensor:
        """(B, N, D) as the attention or the MLP receives it."""
        norm = "norm1" if position == "attention" else "norm2"
        return cast(Tensor, getattr(self.module, f"{norm}_{self.norm}" if self.norm else norm)(x))

    def after_norm(self, position: Position, normed: Tensor) -> Tensor:
        """The attention or the MLP itself, (B, N, D) to (B, N, D); in the backward pass again, if so asked."""
        return self._kept(self.inside, position, normed)

    def inside(self, position: Position, normed: Tensor) -> Tensor:
        """What `after_norm` computes; a kind of block that computes something else overrides this."""
        return cast(Tensor, self.module.attn(normed, self.kv) if position == "attention" else self.module.mlp(normed))

    def attend(self, x: Tensor) -> Tensor:
        """Attention branch (B, N, D) before its residual add."""
        return self._kept(self._branch, "attention", x)

    def feed(self, x: Tensor) -> Tensor:
        """MLP branch (B, N, D) before its residual add."""
        return self._kept(self._branch, "mlp", x)

    def run(self, x: Tensor) -> Tensor:
        """The whole block, (B, N, D) to (B, N, D)."""
        x = self._kept(self._added, "attention", x)
        return self._kept(self._added, "mlp", x)

    def _kept(self, run: Callable[[Position, Tensor], Tensor], position: Position, x: Tensor) -> Tensor:
        """`run(position, x)`; what it makes on the way is kept for the backward pass, or made again there."""
        if self.module.compiled and self.module.training and (self.kv is None or position == "mlp"):
            run = partial(compiled(run.__func__), self)  # type: ignore[attr-defined]  # always a method of this class
        if self.module.recompute and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(run, position, x, use_reentrant=False))
        return run(position, x)

    def _branch(self, position: Position, x: Tensor) -> Tensor:
        return self.inside(position, self.normed(position, x))

    def _added(self, position: Position, x: Tensor) -> Tensor:
        return x + self._branch(position, x)


@runtime_checkable
class OwnTensors(Protocol):
    """A module with parameters of its own, next to those of its layers."""

    def reset_own(self, rng: torch.Generator) -> None:
        """Fill the module's own parameters."""


def initialise(model: nn.Module, rng: torch.Generator | None) -> None:
    """Give storage on the CPU to a model built on the meta device and fill every tensor from `rng` (None: seed 0).

    Building on meta first keeps the global generator untouched. Inside `torch.device("meta")` the model stays empty.
    """
    if torch.get_default_device().type == "meta":
        return
    rng = torch.Generator().manual_seed(0) if rng is None else rng
    model.to_empty(device="cpu")
    with torch.no_grad():
        for module in model.modules():
            _reset_layer(module, rng)


def _reset_layer(module: nn.Module, rng: torch.Generator) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight, generator=rng)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        module.reset_parameters()
    elif isinstance(module, nn.Conv2d):
        # Xavier on the flattened kernel; the bias keeps PyTorch's default.
        nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1), generator=rng)
        bound = 1 / math.sqrt(module.weight[0].numel())
        nn.init.uniform_(cast(Tensor, module.bias), -bound, bound, generator=rng)
    elif isinstance(module, OwnTensors):
        module.reset_own(rng)
