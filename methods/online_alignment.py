"""Online adapters that pull features back to the source's: BriMPR, with prompts in both encoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmbench.backbone.blocks import BlockCall, Position
from mmbench.backbone.hooks import Hooks
from mmbench.data.batch import Batch
from mmbench.errors import ConfigError
from mmbench.online_parts import Goal, GradientOnline, mask_patches
from mmbench.registry import online

if TYPE_CHECKING:
    from mmbench.backbone.cavmae import CAVMAEFT

START = 1e-4
"""Prompts start uniform between minus and plus this."""


@dataclass(frozen=True)
class PromptedCall(BlockCall):
    """A block whose attention also sees prompt tokens (P, D).

    The same as putting them before the tokens and dropping them after the block, whatever else a method does in it:
    they act on the others through the attention alone.
    """

    prompt: Tensor = field(default_factory=lambda: torch.empty(0))

    def inside(self, position: Position, normed: Tensor) -> Tensor:
        if position == "mlp":
            return super().inside(position, normed)
        prompt = self.normed(position, self.prompt.expand(len(normed), -1, -1))
        together = torch.cat([prompt, normed], dim=1)  # (B, P + N, D)
        return super().inside(position, together).narrow(1, len(self.prompt), normed.shape[1])


class PromptedHooks(Hooks):
    """A method's own hooks, with prompts in the encoders' attentions and a record of what each block puts out.

    They are called and not copied: what a hook remembers must reach whoever else holds the same object.
    """

    def __init__(self, inner: Hooks, prompts: Mapping[str, nn.Parameter]) -> None:
        self._inner = inner
        self._prompts = prompts
        self.seen: dict[str, list[Tensor]] = {}
        """Tokens after each encoder block, by a0, a1, ... v0."""

    def tokens(self, modality: str, x: Tensor, batch: Any) -> tuple[Tensor, int]:
        return self._inner.tokens(modality, x, batch)

    def block(self, modality: str, index: int, block: BlockCall, x: Tensor, batch: Any, other: Tensor | None) -> Tensor:
        if modality not in ("a", "v"):
            return self._inner.block(modality, index, block, x, batch, other)
        if self._prompts:
            block = PromptedCall(block.module, block.norm, block.kv, self._prompts[f"prompt_{modality}{index}"])
        out = self._inner.block(modality, index, block, x, batch, other)
        self.seen.setdefault(f"{modality}{index}", []).append(out)
        return out

    def attn_kv(self, modality: str, index: int, k: Tensor, v: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        return self._inner.attn_kv(modality, index, k, v, batch)

    def fuse(self, net: CAVMAEFT, audio: Tensor, vision: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        return self._inner.fuse(net, audio, vision, batch)

    def pool(self, x: Tensor, batch: Any) -> Tensor:
        return self._inner.pool(x, batch)

    def edits_attention(self) -> bool:
        return self._inner.edits_attention()


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of each channel over samples and tokens, (D,) each."""

    mean: Tensor
    std: Tensor

    @staticmethod
    def of(tokens: Tensor) -> Moments:
        flat = tokens.flatten(0, 1)  # (B * N, D)
        return Moments(flat.mean(dim=0), (flat.var(dim=0, correction=0) + 1e-8).sqrt())

    def distance(self, other: Moments) -> Tensor:
        """Sum of the Euclidean distances of means and of deviations."""
        return torch.dist(self.mean, other.mean) + torch.dist(self.std, other.std)


@online(
    "brimpr",
    title="BriMPR",
    reference="Li & Feng, Bridging Modalities via Progressive Re-alignment for Multimodal Test-Time Adaptation, "
    "AAAI 2026",
    year=2026,
    memory="M2",
    updates="prompts in every block of both encoders",
    parameters="2 * prompts * E * d",
    forwards=3.0,
    backwards=3.0,
    source_samples=32,
    options={"lr": 1e-4, "prompts": 10, "mask": 0.5, "temperature": 0.07},
    bibtex="li2026brimpr",
    identity_at_start=False,
    note="reconstructed; prompts act from the first batch on: beside few tokens, ten of them move the logits before "
    "any update, and `before` minus `unadapted` includes that",
)
class BriMPR(GradientOnline):
    """Prompts that give each encoder layer the mean and spread it had on source samples, and agree across modalities.

    Loss: distance of channel means and deviations to the source's (over samples and tokens, so that a single sample
    has them; averaged over layers) + cross-entropy of two recombinations, one modality's patches masked and the other
    complete, with the label of the complete input + contrast of the two streams' mean tokens between samples.
    Masks act on the inputs, not on embeddings, so that they reach any method; the three terms weigh the same. A batch
    of one sample has no contrast.
    """

    def build(self) -> None:
        if self.source is None or not len(self.source):
            raise ConfigError("brimpr compares with source samples, and was given none; the data set must have some")
        super().build()
        with self._hooked({}) as seen:
            self.method.predict(self.source)
        self._source_moments = {place: Moments.of(torch.cat(calls)) for place, calls in seen.items()}

    def select(self) -> dict[str, nn.Parameter]:
        config = self.method.net.config
        shape, device = (self.options["prompts"], config.embed_dim), next(self.method.net.parameters()).device
        return {
            f"prompt_{modality}{index}": nn.Parameter(
                torch.empty(shape, device="cpu").uniform_(-START, START, generator=self.rng).to(device)
            )
            for modality in ("a", "v")
            for index in range(config.depth)
        }

    def predict(self, batch: Batch) -> Tensor:
        with self._hooked(self._selected):
            return self.method.predict(batch)

    def objective(self, batch: Batch) -> Goal:
        with self._hooked(self._selected) as seen:
            logits = self.method.logits(batch)
        with self._hooked(self._selected):
            parts = [self.method.logits(part) for part in self._recombined(batch)]
        label = logits.detach().argmax(dim=1)
        agreement = torch.stack([F.cross_entropy(part, label) for part in parts]).mean()
        return Goal(self._shift(seen) + agreement + self._contrast(seen, len(batch)), len(batch))

    def _shift(self, seen: dict[str, list[Tensor]]) -> Tensor:
        """Distance to the source's moments, averaged over layers and streams."""
        moments = {place: Moments.of(torch.cat(calls)) for place, calls in seen.items()}
        return torch.stack([moments[p].distance(self._source_moments[p]) for p in moments]).mean()

    def _recombined(self, batch: Batch) -> tuple[Batch, Batch]:
        """The batch with masked audio, and with masked vision."""
        patch, share = self.method.net.config.patch_size, self.options["mask"]
        audio = mask_patches(batch.audio.unsqueeze(1), patch, share, self.rng).squeeze(1)
        return replace(batch, audio=audio), replace(batch, image=mask_patches(batch.image, patch, share, self.rng))

    def _contrast(self, seen: dict[str, list[Tensor]], count: int) -> Tensor:
        """InfoNCE between the streams' last tokens; zero where there are no pairs to tell apart."""
        last = self.method.net.config.depth - 1
        calls = [seen.get(f"a{last}", []), seen.get(f"v{last}", [])]
        if count < 2 or any(len(each) != 1 or len(each[0]) != count for each in calls):
            return next(iter(self._selected.values())).new_zeros(())
        a, v = (F.normalize(each[0].mean(dim=1), dim=1) for each in calls)  # (B, D)
        return contrast(a, v, self.options["temperature"])

    @contextmanager
    def _hooked(self, prompts: dict[str, nn.Parameter]) -> Iterator[dict[str, list[Tensor]]]:
        """The method with prompts in its encoders; yields the tokens after each of their blocks, by a0, a1, ... v0."""
        plain = self.method.hooks
        hooks = PromptedHooks(plain, prompts)
        self.method.hooks = hooks
        try:
            yield hooks.seen
        finally:
            self.method.hooks = plain


def contrast(one: Tensor, other: Tensor, temperature: float) -> Tensor:
    """Symmetric InfoNCE of unit vectors (B, D): each should be nearest to its partner in the other set."""
    similar = one @ other.T / temperature  # (B, B)
    pairs = torch.arange(len(one), device=one.device)
    return (F.cross_entropy(similar, pairs) + F.cross_entropy(similar.T, pairs)) / 2
