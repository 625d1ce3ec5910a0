"""Where prompts enter: tokens before a stream at some encoder blocks, or more keys and values of its attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmbench.backbone.blocks import BlockCall
from mmbench.backbone.fusion import with_prompt
from mmbench.backbone.hooks import Hooks

STREAMS = ("a", "v")
PROMPT_STD = 0.02


class PrefixHooks(Hooks):
    """Fresh prompts in front of a stream's tokens at its first `layers` encoder blocks; all are dropped before fusion.

    Fresh ones replace those that come out of the block below, or with `accumulate` join them.
    """

    def __init__(self, layers: int, accumulate: bool = False) -> None:
        self._layers = layers
        self._accumulate = accumulate

    def prompt(self, modality: str, index: int, x: Tensor, batch: Any) -> Tensor:
        """Prompts (P, D) or (B, P, D) of one block; x (B, N, D) is its input, with the prompts of the block below."""
        raise NotImplementedError

    def tokens(self, modality: str, x: Tensor, batch: Any) -> tuple[Tensor, int]:
        prompt = self.prompt(modality, 0, x, batch)
        # What is dropped at the end, hence with all that is still to come.
        return with_prompt(prompt, x), prompt.shape[-2] * (self._layers if self._accumulate else 1)

    def block(self, modality: str, index: int, block: BlockCall, x: Tensor, batch: Any, other: Tensor | None) -> Tensor:
        if modality in STREAMS and 0 < index < self._layers:
            prompt = self.prompt(modality, index, x, batch)
            x = with_prompt(prompt, x if self._accumulate else x[:, prompt.shape[-2] :])
        return block.run(x)


class LayerPrompts(PrefixHooks):
    """The same prompts for every sample: "a" and "v" before the first block, "a1", "v1", ... before the later ones."""

    def __init__(self, prompts: nn.ParameterDict, layers: int) -> None:
        super().__init__(layers)
        self._prompts = prompts

    def prompt(self, modality: str, index: int, x: Tensor, batch: Any) -> Tensor:
        return cast(Tensor, self._prompts[key(modality, index)])


def key(modality: str, index: int) -> str:
    """Name of a block's prompts."""
    return f"{modality}{index}" if index else modality


def layer_prompts(shape: tuple[int, int], layers: int, fill: Callable[[Tensor], Tensor]) -> nn.ParameterDict:
    """Prompts (P, D) for both streams at the first `layers` blocks."""
    return nn.ParameterDict({key(m, index): fill(torch.empty(shape)) for index in range(layers) for m in STREAMS})


class Bank:
    """Prompts of each stream (rows, layers, P, D); `pick` tells each sample's row from its batch."""

    def __init__(self, prompts: nn.ParameterDict, pick: Callable[[Any], Tensor]) -> None:
        self._prompts = prompts
        self._pick = pick

    @property
    def layers(self) -> int:
        return int(self._prompts["a"].shape[1])

    def of(self, modality: str, index: int, batch: Any) -> Tensor:
        """Each sample's prompts (B, P, D) at one block."""
        return cast(Tensor, self._prompts[modality])[self._pick(batch), index]


class BankPrefix(PrefixHooks):
    """Prompts from a bank as tokens, accumulating from block to block."""

    def __init__(self, bank: Bank) -> None:
        super().__init__(bank.layers, accumulate=True)
        self._bank = bank

    def prompt(self, modality: str, index: int, x: Tensor, batch: Any) -> Tensor:
        return self._bank.of(modality, index, batch)


class BankKeysValues(Hooks):
    """Prompts from a bank in front of an attention's keys (first half) and values (second half)."""

    def __init__(self, bank: Bank) -> None:
        self._bank = bank

    def attn_kv(self, modality: str, index: int, k: Tensor, v: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        if modality not in STREAMS or index >= self._bank.layers:
            return k, v
        prompt = self._bank.of(modality, index, batch).to(k.dtype)  # (B, P, D)
        heads = prompt.reshape(*prompt.shape[:2], k.shape[1], k.shape[3]).transpose(1, 2)  # (B, H, P, head_dim)
        for_k, for_v = heads.chunk(2, dim=2)
        return torch.cat([for_k, k], dim=2), torch.cat([for_v, v], dim=2)  # (B, H, P/2 + L, head_dim)
