"""Networks that stand in for an absent modality: they predict its summary from what is there."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.side import SideBlock
from mmbench.backbone.blocks import Block, initialise
from mmbench.backbone.fusion import FusionAttention
from mmbench.backbone.hooks import Hooks
from mmbench.data.batch import Batch
from mmbench.method import Loss, Method
from mmbench.registry import method

if TYPE_CHECKING:
    from mmbench.backbone.cavmae import CAVMAEFT

TOKEN_STD = 0.02


def summaries(audio: Tensor, vision: Tensor) -> Tensor:
    """Mean tokens of (B, Na, D) and (B, Nv, D), side by side: (B, 2, D)."""
    return torch.stack([audio.mean(dim=1), vision.mean(dim=1)], dim=1)


class StandInHooks(Hooks):
    """Before fusion, every token of an absent modality becomes the vector that the other modality predicts for it.

    Pooling then keeps its proportions, and what the absent input was filled with cannot matter.
    """

    def __init__(self, predictor: nn.Module) -> None:
        self._predictor = predictor
        self.errors: list[Tensor] | None = None
        """Where a loss listens: mean squared errors (B, 2) of both predictions, absent modalities included."""

    def fuse(self, net: CAVMAEFT, audio: Tensor, vision: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        available = cast(Tensor, batch.available)  # declared: the harness grants it or refuses the row
        predicted = self._predictor(audio, vision, available)  # (B, 2, D)
        if self.errors is not None:
            self.errors.append((predicted - summaries(audio, vision).detach()).square().mean(dim=2))
        here = available[:, :, None, None]  # (B, 2, 1, 1)
        audio = torch.where(here[:, 0], audio, predicted[:, :1].to(audio.dtype))
        return net.fusion(audio, torch.where(here[:, 1], vision, predicted[:, 1:].to(vision.dtype)))


class StandIn(Method):
    """A network that predicts a modality's mean token after its encoder from the other modality.

    Loss: the suite's, plus `alignment` times the squared error of the predictions that `targets` names.
    """

    def predictor(self) -> nn.Module:
        """Tokens (B, Na, D), (B, Nv, D) and availability (B, 2) to predicted means (B, 2, D)."""
        raise NotImplementedError

    def targets(self, batch: Batch) -> Tensor:
        """Which predictions (B, 2) have a true mean to learn from."""
        raise NotImplementedError

    def build(self, rng: torch.Generator) -> None:
        with torch.device("meta"):
            self.extra["predictor"] = self.predictor()
        initialise(self.extra["predictor"], rng)
        self.hooks = StandInHooks(self.extra["predictor"])

    def stream(self, name: str) -> str | None:
        """What predicts acts behind both encoders, whichever modality it is called after."""
        return None if name.startswith("extra.predictor.") else super().stream(name)

    def loss(self, batch: Batch) -> Loss:
        hooks = cast(StandInHooks, self.hooks)
        errors: list[Tensor] = []
        hooks.errors = errors
        plain = super().loss(batch)
        hooks.errors = None  # nothing of the graph is left behind
        # Over all samples and not the targets alone: micro-batches must add up.
        alignment = errors[0].where(self.targets(batch), 0.0).sum() / len(batch)
        return Loss(plain.total + self.options["alignment"] * alignment, plain.logits)


class Proxy(nn.Module):
    """A learned token that attends to the other modality's tokens."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(1, dim))
        self.norm = nn.LayerNorm(dim)
        self.attn = FusionAttention(dim, heads)

    def reset_own(self, rng: torch.Generator) -> None:
        nn.init.normal_(self.token, std=TOKEN_STD, generator=rng)

    def forward(self, other: Tensor) -> Tensor:
        """(B, N, D) to (B, 1, D)."""
        token = self.token.repeat(len(other), 1, 1)  # torch's flop counter cannot follow a view of a parameter
        return token + cast(Tensor, self.attn(token, self.norm(other)))


class Proxies(nn.Module):
    """One proxy for each modality."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.proxy_a, self.proxy_v = Proxy(dim, heads), Proxy(dim, heads)

    def forward(self, audio: Tensor, vision: Tensor, available: Tensor) -> Tensor:
        return torch.cat([self.proxy_a(vision), self.proxy_v(audio)], dim=1)


class LowRank(nn.Module):
    """A frozen linear layer plus a trained product of two thin matrices, which starts at zero."""

    def __init__(self, linear: nn.Linear, rank: int, rng: torch.Generator) -> None:
        super().__init__()
        self.base_layer = linear
        start = torch.empty(rank, linear.in_features)
        self.down = nn.Parameter(nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=rng))
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.base_layer(x)) + F.linear(F.linear(x, self.down), self.up)


@method(
    "cmpt",
    title="Cross-modal proxy tokens",
    family="side",
    reference="Reza et al., Robust Multimodal Learning via Cross-Modal Proxy Tokens, 2025, arXiv 2501.17823",
    year=2025,
    memory="M2",
    lr_range=(1e-4, 1e-2),
    identity_at_start=False,
    needs={"case": "avail"},
    options={"rank": 1, "alignment": 1.0},
    parameters="8 * E * d * rank + 2 * (4 * d * d + 7 * d)",
    bibtex="reza2025cmpt",
    note="reconstructed; a stream's mean token stands for the class token, the weight of the alignment is this suite's",
)
class CrossModalProxies(StandIn):
    """A proxy token per modality attends to the other's tokens and stands in where its own modality is absent.

    LoRA on the encoders' qkv; alignment on complete samples, towards a target that takes no gradient.
    """

    def predictor(self) -> nn.Module:
        return Proxies(self.net.config.embed_dim, self.net.config.heads)

    def targets(self, batch: Batch) -> Tensor:
        available = cast(Tensor, batch.available)
        return available.all(dim=1, keepdim=True).expand_as(available)

    def build(self, rng: torch.Generator) -> None:
        super().build(rng)
        for block in (*self.net.blocks_a, *self.net.blocks_v):
            attention: Any = cast(Block, block).attn
            layer = LowRank(attention.qkv, self.options["rank"], rng)
            attention.qkv = layer.to(attention.qkv.weight.device)


class MemoryDecoder(nn.Module):
    """Transformer over memory tokens and one slot a modality: its mean token, or a learned mask where it is absent."""

    def __init__(self, dim: int, heads: int, memory: int, layers: int) -> None:
        super().__init__()
        self.memory = nn.Parameter(torch.empty(memory, dim))
        self.mask = nn.Parameter(torch.empty(2, dim))
        self.blocks = nn.Sequential(*(SideBlock(dim, heads) for _ in range(layers)))

    def reset_own(self, rng: torch.Generator) -> None:
        nn.init.normal_(self.memory, std=TOKEN_STD, generator=rng)
        nn.init.normal_(self.mask, std=TOKEN_STD, generator=rng)

    def forward(self, audio: Tensor, vision: Tensor, available: Tensor) -> Tensor:
        slots = torch.where(available[:, :, None], summaries(audio, vision), self.mask)  # (B, 2, D)
        tokens = torch.cat([slots, self.memory.expand(len(slots), -1, -1)], dim=1)  # (B, 2 + M, D)
        return cast(Tensor, self.blocks(tokens))[:, :2]


@method(
    "actionmae",
    title="ActionMAE",
    family="side",
    reference="Woo et al., Towards Good Practices for Missing Modality Robust Action Recognition, AAAI 2023",
    year=2023,
    memory="M1",
    lr_range=(3e-5, 3e-3),
    identity_at_start=False,
    needs={"case": "avail", "train_case": True},
    options={"memory": 10, "layers": 2, "drop": 0.5, "alignment": 1.0},
    parameters="(memory + 2) * d + layers * (12 * d * d + 13 * d)",
    bibtex="woo2023actionmae",
    note="present modalities keep their own tokens instead of decoded ones; backbone frozen, share dropped is ours",
)
class ActionMAE(StandIn):
    """Training hides one modality of a `drop` share of the complete samples; memory tokens and a decoder predict it.

    Prediction errors count where the hidden modality is neither absent nor corrupted.
    """

    def predictor(self) -> nn.Module:
        config = self.net.config
        return MemoryDecoder(config.embed_dim, config.heads, self.options["memory"], self.options["layers"])

    def view(self, batch: Batch, rng: torch.Generator) -> Batch:
        """The batch with hidden modalities called absent; their inputs stay, as what is to be predicted."""
        available = cast(Tensor, batch.available)
        hidden = torch.rand(len(batch), generator=rng) < self.options["drop"]
        which = torch.randint(2, (len(batch),), generator=rng)
        falls = (F.one_hot(which, 2).bool() & hidden[:, None]).to(available.device)  # (B, 2)
        return replace(batch, available=available & ~(falls & available.all(dim=1, keepdim=True)))

    def targets(self, batch: Batch) -> Tensor:
        return ~(cast(Tensor, batch.available) | cast(Tensor, batch.affected))
