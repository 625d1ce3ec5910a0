"""Prompts in the encoders: the same for all samples (VPT), per missing case (MAP), or per modality (MSP)."""

from __future__ import annotations

import math
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.prompt_hooks import (
    PROMPT_STD,
    STREAMS,
    Bank,
    BankKeysValues,
    BankPrefix,
    LayerPrompts,
    layer_prompts,
)
from mmbench.data.batch import Batch
from mmbench.errors import ConfigError
from mmbench.method import Loss, Method
from mmbench.registry import method

CASES = 4
VPT = {
    "family": "prompt",
    "reference": "Jia et al., Visual Prompt Tuning, ECCV 2022",
    "year": 2022,
    "memory": "M2",
    "lr_range": (1e-3, 1e-1),
    "identity_at_start": False,
    "options": {"length": 16},
    "bibtex": "jia2022vpt",
    "note": "prompts in the two encoders only, dropped before fusion; no dropout on prompts",
}
MAP = {
    "family": "prompt",
    "reference": "Lee et al., Multimodal Prompting with Missing Modalities for Visual Recognition, CVPR 2023",
    "year": 2023,
    "memory": "M2",
    "lr_range": (1e-3, 1e-1),
    "identity_at_start": False,
    "needs": {"case": "oracle", "train_case": True},
    "options": {"length": 16, "layers": 6},
    "parameters": "2 * 4 * min(layers, E) * length * d",
    "bibtex": "lee2023map",
    "note": "starts from N(0, 0.02) where the published code starts from zeros and one token of ones",
}


class VisualPrompts(Method):
    """`length` prompt tokens for each encoder, drawn as the paper draws them from the size of a patch and the width."""

    deep: ClassVar[bool]

    def build(self, rng: torch.Generator) -> None:
        config = self.net.config
        bound = math.sqrt(6 / (3 * config.patch_size**2 + config.embed_dim))
        layers = config.depth if self.deep else 1
        shape = (self.options["length"], config.embed_dim)
        self.extra["prompts"] = prompts = layer_prompts(
            shape, layers, lambda empty: empty.uniform_(-bound, bound, generator=rng)
        )
        self.hooks = LayerPrompts(prompts, layers)


@method("vpt-shallow", title="VPT (shallow)", parameters="2 * length * d", **VPT)
class VPTShallow(VisualPrompts):
    """Before the first block of each encoder; from there on they are tokens like any other."""

    deep = False


@method("vpt-deep", title="VPT (deep)", parameters="2 * E * length * d", **VPT)
class VPTDeep(VisualPrompts):
    """Fresh ones at every encoder block in place of those that come out of the block below; none in the joint block."""

    deep = True


class Banked(Method):
    """Prompts for the first `layers` blocks of each encoder, or for all where there are fewer, out of a bank of rows.

    Which row a sample gets is the subclass's matter. Rows start from a normal distribution: from equal tokens, as in
    the published code, gradients stay equal too in a backbone without dropout, and the tokens would act as one.
    """

    rows: ClassVar[int]
    attention: ClassVar[bool] = False

    def build(self, rng: torch.Generator) -> None:
        config, length = self.net.config, self.options["length"]
        if self.attention and length % 2:
            raise ConfigError(
                f"option length of {self.card.name} must be even, half for keys, half for values: {length}"
            )
        shape = (self.rows, min(self.options["layers"], config.depth), length, config.embed_dim)
        prompts = nn.ParameterDict({m: torch.empty(shape).normal_(std=PROMPT_STD, generator=rng) for m in STREAMS})
        self.extra["bank"] = prompts
        bank = self.bank(prompts)
        self.hooks = BankKeysValues(bank) if self.attention else BankPrefix(bank)

    def bank(self, prompts: nn.ParameterDict) -> Bank:
        """How prompts (rows, layers, P, D) of each stream are looked up."""
        return Bank(prompts, self.pick)

    def pick(self, batch: Any) -> Tensor:
        """Row of each sample (B,)."""
        raise NotImplementedError


class MissingAware(Banked):
    """Rows: nothing affected, audio, vision, both; corrupted counts as affected, like absent."""

    rows = CASES

    def pick(self, batch: Any) -> Tensor:
        affected = cast(Tensor, batch.affected)  # declared: the harness grants it or refuses the row
        return affected[:, 0].long() + 2 * affected[:, 1].long()


@method("map-input", title="MAP (input level)", **MAP)
class MapInput(MissingAware):
    """One prompt set per case; each prompted block adds fresh tokens to those of the blocks below."""


@method("map-attention", title="MAP (attention level)", **MAP)
class MapAttention(MissingAware):
    """One prompt set per case; its first half stands before the keys, the second before the values of each head."""

    attention = True


class SumBank(Bank):
    """A bank of two rows with their sum as the third."""

    def of(self, modality: str, index: int, batch: Any) -> Tensor:
        layer = cast(Tensor, self._prompts[modality])[:, index]  # (2, P, D)
        return torch.cat([layer, layer.sum(dim=0, keepdim=True)])[self._pick(batch)]


@method(
    "msp",
    title="MSP",
    family="prompt",
    reference="Jang et al., Towards Robust Multimodal Prompting with Missing Modalities, ICASSP 2024",
    year=2024,
    memory="M2",
    lr_range=(1e-3, 1e-1),
    identity_at_start=False,
    needs={"case": "avail"},
    options={"length": 16, "layers": 6, "orthogonality": 1.0},
    parameters="2 * 2 * min(layers, E) * length * d",
    bibtex="jang2024msp",
    note="at the input level, as map-input; the weight of its regulariser is this suite's",
)
class ModalitySpecific(Banked):
    """One prompt set per modality; a complete sample gets the sum of both, an incomplete one that of what it has.

    The loss adds `orthogonality` times |cos| of the two sets, averaged over layers and streams.
    """

    rows = 2

    def bank(self, prompts: nn.ParameterDict) -> Bank:
        return SumBank(prompts, self.pick)

    def pick(self, batch: Any) -> Tensor:
        """0 audio alone, 1 vision alone, 2 both."""
        available = cast(Tensor, batch.available)
        return torch.where(available.all(dim=1), 2, (~available[:, 0]).long())

    def loss(self, batch: Batch) -> Loss:
        plain = super().loss(batch)
        bank = cast(nn.ParameterDict, self.extra["bank"])
        sets = [bank[m].flatten(start_dim=2) for m in STREAMS]  # (2, layers, P * D) each
        overlap = torch.stack([F.cosine_similarity(each[0], each[1], dim=1).abs() for each in sets]).mean()
        return Loss(plain.total + self.options["orthogonality"] * overlap, plain.logits)
