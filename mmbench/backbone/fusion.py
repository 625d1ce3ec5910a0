"""Fusion of the two streams before the joint blocks: the intended form, half of it, and the one that was published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import ClassVar, cast

import torch
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.nn import functional as F

from mmbench.errors import ConfigError

BRANCHES = ("self", "cross", "mlp")


class FusionAttention(nn.Module):
    """Batch-first attention with the parameter names of nn.MultiheadAttention.

    Not that class itself: in evaluation it switches to another kernel, and logits would differ between modes.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * dim))
        self.out_proj = nn.Linear(dim, dim)

    def reset_own(self, rng: torch.Generator) -> None:
        nn.init.xavier_uniform_(self.in_proj_weight, generator=rng)
        nn.init.zeros_(self.in_proj_bias)

    def forward(self, query: Tensor, context: Tensor) -> Tensor:
        """(B, N, D) and (B, L, D) to (B, N, D); the context gives keys and values."""
        dim = query.shape[-1]
        q = F.linear(query, self.in_proj_weight[:dim], self.in_proj_bias[:dim])
        k, v = F.linear(context, self.in_proj_weight[dim:], self.in_proj_bias[dim:]).chunk(2, dim=-1)
        mixed = F.scaled_dot_product_attention(self._split(q), self._split(k), self._split(v))  # (B, H, N, head_dim)
        return cast(Tensor, self.out_proj(mixed.transpose(1, 2).flatten(2)))

    def _split(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        return x.reshape(batch, tokens, self.heads, dim // self.heads).transpose(1, 2)  # (B, H, N, head_dim)


def with_prompt(prompt: Tensor | None, tokens: Tensor) -> Tensor:
    """Tokens (B, N, D) with a prompt (P, D) or (B, P, D) in front."""
    if prompt is None:
        return tokens
    return torch.cat([prompt.expand(tokens.shape[0], -1, -1), tokens], dim=1)  # (B, P + N, D)


class _FusionLayers(nn.Module):
    """The layers all forms share, under the published names."""

    one_way: ClassVar[bool] = False

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1_a, self.norm1_v = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.norm2_a, self.norm2_v = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.self_attn_a, self.self_attn_v = FusionAttention(dim, heads), FusionAttention(dim, heads)
        self.cross_attn_a_to_v = FusionAttention(dim, heads)  # audio queries
        if not self.one_way:
            self.cross_attn_v_to_a = FusionAttention(dim, heads)  # vision queries
        self.mlp_a, self.mlp_v = Mlp(dim, 4 * dim), Mlp(dim, 4 * dim)


class GatedFusion(_FusionLayers):
    """Self-attention over tokens, cross-attention, MLP; each branch enters its residual times tanh(gate).

    Gates start at zero, so a fresh block is exactly the identity and an upstream checkpoint keeps its logits.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        for name in self._gate_names():
            self.register_parameter(name, nn.Parameter(torch.empty(1)))

    def reset_own(self, rng: torch.Generator) -> None:
        for name in self._gate_names():
            nn.init.zeros_(cast(Tensor, getattr(self, name)))

    def _gate_names(self) -> Iterator[str]:
        for branch in BRANCHES:
            for modality in ("a", "v"):
                if not (self.one_way and (branch, modality) == ("cross", "v")):
                    yield f"gate_{branch}_{modality}"

    def _gate(self, branch: str, modality: str) -> Tensor:
        return torch.tanh(cast(Tensor, getattr(self, f"gate_{branch}_{modality}")))

    def forward(
        self, audio: Tensor, vision: Tensor, prompt_a: Tensor | None = None, prompt_v: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, Na, D) and (B, Nv, D) to the same shapes.

        Audio queries attend to [prompt_v ; vision], vision queries to [prompt_a ; audio]. Prompts are (P, D) or
        (B, P, D), neither normalised nor positioned.
        """
        na, nv = self.norm1_a(audio), self.norm1_v(vision)
        audio = audio + self._gate("self", "a") * self.self_attn_a(na, na)
        vision = vision + self._gate("self", "v") * self.self_attn_v(nv, nv)
        audio, vision = self._cross(audio, vision, prompt_a, prompt_v)
        audio = audio + self._gate("mlp", "a") * self.mlp_a(self.norm2_a(audio))
        vision = vision + self._gate("mlp", "v") * self.mlp_v(self.norm2_v(vision))
        return audio, vision

    def _cross(
        self, audio: Tensor, vision: Tensor, prompt_a: Tensor | None, prompt_v: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        na, nv = self.norm1_a(audio), self.norm1_v(vision)
        crossed = audio + self._gate("cross", "a") * self.cross_attn_a_to_v(na, with_prompt(prompt_v, nv))
        if self.one_way:
            return crossed, vision
        return crossed, vision + self._gate("cross", "v") * self.cross_attn_v_to_a(nv, with_prompt(prompt_a, na))


class OneWayFusion(GatedFusion):
    """The gated form without the vision queries: audio attends to vision, vision to itself alone."""

    one_way = True

    def forward(
        self, audio: Tensor, vision: Tensor, prompt_a: Tensor | None = None, prompt_v: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As the gated form. Raises ConfigError for prompt_a, which no query would see."""
        if prompt_a is not None:
            raise ConfigError("fusion 'one-way' has no vision queries to see prompt_a; give prompt_v, or use 'gated'")
        return super().forward(audio, vision, None, prompt_v)


class PublishedFusion(_FusionLayers):
    """The published data flow, defects included: the cross-attention result reaches the output only through the MLP.

    Self-attention runs over the batch axis, so a prediction depends on its companions; `token_axis=True` repairs
    that one defect. With prompts the cross-attention skips its norm, as published.
    """

    def __init__(self, dim: int, heads: int, token_axis: bool = False) -> None:
        super().__init__(dim, heads)
        self.token_axis = token_axis
        # Never used in a forward pass, but present in every checkpoint of this form.
        self.modality_attention_a = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))
        self.modality_attention_v = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))

    def _attend_self(self, attention: FusionAttention, x: Tensor) -> Tensor:
        if self.token_axis:
            return cast(Tensor, attention(x, x))
        x = x.transpose(0, 1)  # (N, B, D): the batch is taken for the sequence
        return cast(Tensor, attention(x, x)).transpose(0, 1)

    def forward(
        self, audio: Tensor, vision: Tensor, prompt_a: Tensor | None = None, prompt_v: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, Na, D) and (B, Nv, D), same out; prompts (P, D) or (B, P, D) come both or not at all."""
        if (prompt_a is None) != (prompt_v is None):
            raise ConfigError("fusion 'as-published' takes both prompts or none, got one; use fusion 'gated' for one")
        audio = audio + self._attend_self(self.self_attn_a, self.norm1_a(audio))
        vision = vision + self._attend_self(self.self_attn_v, self.norm1_v(vision))
        plain = prompt_a is None
        na, nv = (self.norm1_a(audio), self.norm1_v(vision)) if plain else (audio, vision)
        cross_a = self.cross_attn_a_to_v(na, with_prompt(prompt_v, nv))
        cross_v = self.cross_attn_v_to_a(nv, with_prompt(prompt_a, na))
        return audio + self.mlp_a(self.norm2_a(cross_a)), vision + self.mlp_v(self.norm2_v(cross_v))


def dead_parameter_names(block: nn.Module) -> frozenset[str]:
    """Names of a fusion block that no forward pass uses."""
    return frozenset(name for name, _ in block.named_parameters() if name.startswith("modality_attention_"))


FORMS: Mapping[str, type[_FusionLayers]] = MappingProxyType(
    {"gated": GatedFusion, "one-way": OneWayFusion, "as-published": PublishedFusion}
)
"""Every `fusion` of a backbone but "none"."""
