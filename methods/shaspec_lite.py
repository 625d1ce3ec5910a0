"""ShaSpec-lite: adapters both streams share and adapters of their own; an absent stream borrows the shared part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.branch import Bottleneck
from mmbench.backbone.blocks import BlockCall
from mmbench.backbone.hooks import Hooks
from mmbench.data.batch import Batch
from mmbench.method import Loss, Method
from mmbench.registry import method

if TYPE_CHECKING:
    from mmbench.backbone.cavmae import CAVMAEFT


@dataclass(frozen=True)
class Features:
    """Token means of one pass: the streams as the shared adapters left them, and what the specific ones add."""

    shared_a: Tensor  # (B, D)
    shared_v: Tensor
    specific_a: Tensor
    specific_v: Tensor


class SharedSpecificHooks(Hooks):
    """The shared adapters act inside the blocks; the specific ones read along and join at the encoders' ends."""

    def __init__(self, added: nn.ModuleDict) -> None:
        self._added = added
        self._specific: dict[str, Tensor] = {}
        self.features: list[Features] | None = None
        """Where a loss listens; passes outside a loss, such as those of views, leave nothing behind."""

    def tokens(self, modality: str, x: Tensor, batch: Any) -> tuple[Tensor, int]:
        self._specific[modality] = torch.zeros_like(x)
        return x, 0

    def block(self, modality: str, index: int, block: BlockCall, x: Tensor, batch: Any, other: Tensor | None) -> Tensor:
        if modality == "u":
            return block.run(x)
        x = x + block.attend(x)
        branch = block.feed(x)
        change = self._added[f"specific_{modality}{index}"].change(branch)  # type: ignore[operator]
        self._specific[modality] = self._specific[modality] + change
        return x + self._added[f"shared_{index}"](branch)  # type: ignore[no-any-return]

    def fuse(self, net: CAVMAEFT, audio: Tensor, vision: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        specific_a, specific_v = self._specific.pop("a"), self._specific.pop("v")
        if self.features is not None:
            self.features.append(Features(audio.mean(1), vision.mean(1), specific_a.mean(1), specific_v.mean(1)))
        has_audio, has_vision = batch.available[:, :, None, None].unbind(1)  # (B, 1, 1) each
        # Tokens of the two streams do not correspond, so what is borrowed is the mean token.
        audio_or_vision = torch.where(has_audio, audio + specific_a, vision.mean(1, keepdim=True))
        vision_or_audio = torch.where(has_vision, vision + specific_v, audio.mean(1, keepdim=True))
        return net.fusion(audio_or_vision, vision_or_audio)


@method(
    "shaspec-lite",
    title="ShaSpec-lite",
    family="adapter",
    memory="M2",
    reference="Wang et al., Multi-Modal Learning with Missing Modality via Shared-Specific Feature Modelling, "
    "CVPR 2023 (reduced to adapters)",
    year=2023,
    bibtex="wang2023shaspec",
    lr_range=(1e-4, 1e-2),
    identity_at_start=False,
    needs={"case": "avail"},
    options={"rank": 64, "alignment": 0.1, "classification": 0.02},
    parameters="3*E*(2*d*rank + rank + d) + 2*d + 2",
    note="adapters on the frozen encoders stand for the paper's shared and specific encoders, in one pass",
)
class ShaSpecLite(Method):
    """A stream's feature is its shared part plus its specific one; that of an absent stream, the other's shared part.

    The loss adds `alignment` times the L1 distance of the two shared means, for complete samples, and
    `classification` times the cross-entropy of telling the modality by the specific means, for present streams.
    """

    def build(self, rng: torch.Generator) -> None:
        dim, rank = self.net.config.embed_dim, self.options["rank"]
        for index in range(self.net.config.depth):
            for name in (f"shared_{index}", f"specific_a{index}", f"specific_v{index}"):
                self.extra[name] = Bottleneck(dim, rank, rng)
        telling = nn.Linear(dim, 2)
        with torch.no_grad():
            telling.weight.copy_(torch.empty(2, dim).normal_(std=dim**-0.5, generator=rng))
            telling.bias.zero_()
        self.extra["telling"] = telling
        self.hooks = SharedSpecificHooks(self.extra)

    def loss(self, batch: Batch) -> Loss:
        hooks, kept = cast(SharedSpecificHooks, self.hooks), list[Features]()
        hooks.features = kept
        logits = self.logits(batch)
        hooks.features = None  # no graph outlives its loss
        (features,) = kept
        assert batch.available is not None  # granted by its needs
        present = batch.available.to(logits.dtype)  # (B, 2)
        apart = (features.shared_a - features.shared_v).abs().mean(dim=1)  # (B,)
        told = torch.stack([self._telling_loss(features.specific_a, 0), self._telling_loss(features.specific_v, 1)], 1)
        alignment = (apart * present.prod(dim=1)).mean()
        classification = (told * present).sum(dim=1).mean()
        terms = self.options["alignment"] * alignment + self.options["classification"] * classification
        return Loss(self.criterion(logits, batch.label) + terms, logits)

    def _telling_loss(self, specific: Tensor, modality: int) -> Tensor:
        """Cross-entropy (B,) of telling the modality by its specific feature (B, D)."""
        target = torch.full((specific.shape[0],), modality, device=specific.device)
        return F.cross_entropy(self.extra["telling"](specific), target, reduction="none")
