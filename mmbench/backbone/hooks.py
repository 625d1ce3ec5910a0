"""Where a method may reach into the forward pass; the backbone itself is never edited."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from mmbench.backbone.blocks import Block, BlockCall, KeyValueEdit, Norm

if TYPE_CHECKING:
    from mmbench.backbone.cavmae import CAVMAEFT


class Hooks:
    """Every default is the plain forward pass. Modality is "a" (audio), "v" (vision) or, in joint blocks, "u"."""

    def tokens(self, modality: str, x: Tensor, batch: Any) -> tuple[Tensor, int]:
        """Tokens (B, N, D) before the first encoder block; may prepend n tokens: return (B, n + N, D) and n.

        The n prefix tokens are dropped after the last encoder block, before fusion and pooling.
        """
        return x, 0

    def block(self, modality: str, index: int, block: BlockCall, x: Tensor, batch: Any, other: Tensor | None) -> Tensor:
        """One block: x plus its branches, out of `block.attend(x)` and `block.feed(x)`; norms are chosen already.

        `other` holds the other stream's tokens, its prefix included, before its block of the same index; None in
        joint blocks and in single-modality modes.
        """
        return block.run(x)

    def attn_kv(self, modality: str, index: int, k: Tensor, v: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, L, head_dim) of every encoder and joint attention; called only if overridden."""
        return k, v

    def fuse(self, net: CAVMAEFT, audio: Tensor, vision: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        """Both streams (B, N, D) between encoders and joint blocks, in multimodal mode only."""
        return net.fusion(audio, vision)

    def pool(self, x: Tensor, batch: Any) -> Tensor:
        """Normed tokens (B, N, D) to one vector (B, D)."""
        return x.mean(dim=1)

    def spares_encoders(self) -> bool:
        """Whether all that it overrides acts behind the encoders, whose outputs may then be kept between epochs."""
        reached = ("tokens", "block", "attn_kv")
        return all(getattr(getattr(self, name), "__func__", None) is getattr(Hooks, name) for name in reached)

    def edits_attention(self) -> bool:
        """Whether `attn_kv` is overridden; False saves the call in every attention."""
        return getattr(self.attn_kv, "__func__", None) is not Hooks.attn_kv


def bind_block(hooks: Hooks, modality: str, index: int, block: Block, batch: Any, norm: Norm) -> BlockCall:
    """The block as a hook receives it."""
    if not hooks.edits_attention():
        return BlockCall(block, norm)

    def edit(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return hooks.attn_kv(modality, index, k, v, batch)

    kv: KeyValueEdit = edit
    return BlockCall(block, norm, kv)


PLAIN = Hooks()
