"""Online adapters made for two modalities: READ, ABPEM and SuMi."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from mmbench.backbone.blocks import Attention, Block
from mmbench.data.batch import Batch
from mmbench.errors import RefusedError
from mmbench.online_parts import (
    Goal,
    JointOnline,
    NormOnline,
    balance,
    classifier,
    entropy,
    inputs_of,
    outputs_of,
)
from mmbench.registry import online

JOINT = {
    "memory": "M1",
    "updates": "query, key and value projections of the joint blocks",
    "parameters": "3 * (d * d + d) * U",
}
SPREAD = 1e-8
"""Added to variances: a modality filled with one value has attention scores without any."""


@online(
    "read",
    title="READ",
    reference="Yang et al., Test-time Adaptation against Multi-modal Reliability Bias, ICLR 2024",
    year=2024,
    options={"lr": 1e-4, "confidence": 0.36787944117144233, "literal": False},
    bibtex="yang2024read",
    **JOINT,
)
class READ(JointOnline):
    """Confidence-aware loss p (1 - ln p + ln confidence) of the largest probability, minus the batch's balance.

    With confidence 1/e the loss rises with p below 1/e and falls above it. Balance: entropy of the mean probability;
    `literal: true` takes the published code's, which puts the summed probabilities through another softmax. A batch
    of one sample has no balance term.
    """

    def objective(self, batch: Batch) -> Goal:
        logits = self.method.logits(batch)
        log_p = logits.log_softmax(dim=1).max(dim=1).values  # (B,)
        loss = (log_p.exp() * (1 - log_p + math.log(self.options["confidence"]))).mean()
        spread = twice_normalised(logits) if self.options["literal"] else balance(logits)
        return Goal(loss - spread, len(batch))


def twice_normalised(logits: Tensor) -> Tensor:
    """The published balance term: entropy of the softmax of the batch's summed probabilities."""
    if len(logits) < 2:
        return logits.new_zeros(())
    return entropy(logits.softmax(dim=1).sum(dim=0, keepdim=True))[0]


@online(
    "abpem",
    title="ABPEM",
    reference="Zhao et al., Attention Bootstrapping for Multi-Modal Test-Time Adaptation, AAAI 2025",
    year=2025,
    attn_maps=True,
    options={"lr": 1e-4, "principal": 8, "attention": 1.0},
    bibtex="zhao2025abpem",
    note="reconstructed: shared projections instead of a copy for the audio tokens; Gaussians per sample and head",
    **JOINT,
)
class ABPEM(JointOnline):
    """Entropy of the `principal` likeliest classes, minus the balance, plus a pull of cross- to self-attention.

    Pull: KL divergence of Gaussian fits of raw scores in the joint blocks, from video-to-audio (queries to keys) to
    audio-to-audio and from audio-to-video to video-to-video; the latter of each pair is a fixed anchor. Fits are per
    sample and head; the paper leaves that and the weight of the term open. Scores are computed beside the forward
    pass, which stays as it is, so predictions before the first step are exactly those of the method.
    """

    def objective(self, batch: Batch) -> Goal:
        attentions = [cast(Block, block).attn for block in self.method.net.blocks_u]
        with ExitStack() as stack:
            seen = [stack.enter_context(outputs_of(attention.qkv)) for attention in attentions]
            logits = self.method.logits(batch)
        gaps = [self._gap(module, qkv) for module, calls in zip(attentions, seen, strict=True) for qkv in calls]
        pull = torch.stack(gaps).mean() if gaps else logits.new_zeros(())
        loss = principal_entropy(logits, self.options["principal"]).mean() - balance(logits)
        return Goal(loss + self.options["attention"] * pull, len(batch))

    def _gap(self, attention: Attention, qkv: Tensor) -> Tensor:
        """Attention gap of one call; zero for a call that sees one modality only."""
        config = self.method.net.config
        tokens = config.audio_tokens + config.vision_tokens
        if qkv.shape[1] < tokens:
            return qkv.new_zeros(())
        count = qkv.shape[0]
        qkv = qkv[:, -tokens:].reshape(count, tokens, 3, attention.num_heads, attention.head_dim)
        q, k, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, N, head_dim)
        return attention_gap((q * attention.scale) @ k.transpose(-2, -1), config.audio_tokens)


def principal_entropy(logits: Tensor, classes: int) -> Tensor:
    """Entropy terms of the likeliest classes alone, (B, C) to (B,)."""
    log_p = logits.log_softmax(dim=1).topk(min(classes, logits.shape[1]), dim=1).values
    return -(log_p.exp() * log_p).sum(dim=1)


def attention_gap(scores: Tensor, audio_tokens: int) -> Tensor:
    """Mean divergence of cross- from self-attention in raw scores (B, H, N, N), audio tokens first."""
    a, v = slice(None, audio_tokens), slice(audio_tokens, None)
    aa, av, va, vv = (scores[:, :, queries, keys] for queries in (a, v) for keys in (a, v))
    return gaussian_kl(va, aa.detach()).mean() + gaussian_kl(av, vv.detach()).mean()


def gaussian_kl(x: Tensor, anchor: Tensor) -> Tensor:
    """KL of the Gaussian fit of x (..., N, L) from that of the anchor, over the last two axes."""
    mean, spread = x.mean(dim=(-2, -1)), x.var(dim=(-2, -1), correction=0) + SPREAD
    to_mean, to_spread = anchor.mean(dim=(-2, -1)), anchor.var(dim=(-2, -1), correction=0) + SPREAD
    return 0.5 * ((to_spread / spread).log() + (spread + (mean - to_mean).square()) / to_spread - 1)


@online(
    "sumi",
    title="SuMi",
    reference="Guo & Jin, Smoothing the Shift: Towards Stable Test-Time Adaptation under Complex Multimodal Noises, "
    "ICLR 2025",
    year=2025,
    memory="M2",
    updates="scale and shift of all live LayerNorms but the head's",
    parameters="4 * d * N + 2 * d + min(F, 8 * d)",
    forwards=3.0,
    backwards=3.0,
    stream_length=True,
    options={"lr": 1e-4, "margin": 0.4, "unimodal": 0.1, "sharing": 5.0},
    check_options={"margin": 9.0, "unimodal": 0.0},
    bibtex="guo2025sumi",
    note="reconstructed; not causal, because the box widens with the share of the stream that has passed; its "
    "three backward passes are those of the stream's first half, the second half takes one",
)
class SuMi(NormOnline):
    """Weighted entropy of typical samples that need both modalities, with the modalities' predictions drawn together.

    Kept: features in a box that widens from the batch's quartiles to its extremes as the stream passes (most
    dimensions inside; the published code takes min + range / 4 for the first quartile); H <= margin ln C; and
    each modality alone has an entropy of at least `unimodal` times that limit. Loss: mean of exp(margin ln C - H)
    (H + sharing x KL of the two unimodal predictions from their average), the second term during the first half of the
    stream only, minus the balance. A modality alone: the other input is 0. Features are the head's inputs, or the
    logits of methods that use the head more than once a batch.
    """

    def begin(self) -> None:
        super().begin()
        self.passed = 0

    def objective(self, batch: Batch) -> Goal:
        if self.steps is None:
            raise RefusedError("sumi must know how many batches the stream has: call reset(steps=...) before it")
        progress = min(1.0, self.passed / self.steps)
        self.passed += 1
        with inputs_of(classifier(self.method)) as seen:
            logits = self.method.logits(batch)
        features = seen[0] if len(seen) == 1 and len(seen[0]) == len(batch) else logits
        alone = (
            self.method.logits(replace(batch, image=torch.zeros_like(batch.image))),
            self.method.logits(replace(batch, audio=torch.zeros_like(batch.audio))),
        )
        uncertainty, limit = entropy(logits), self.options["margin"] * math.log(self.n_classes)
        least = torch.stack([entropy(one.detach()) for one in alone]).min(dim=0).values  # (B,)
        keep = inside_box(features.detach(), progress) & (uncertainty.detach() <= limit)
        keep &= least >= self.options["unimodal"] * limit
        if not keep.any():
            return Goal(uncertainty.mean(), 0)
        cost = uncertainty + (self.options["sharing"] * disagreement(*alone) if progress < 0.5 else 0.0)
        weights = (limit - uncertainty.detach()).exp()
        return Goal((weights * cost)[keep].mean() - balance(logits[keep]), int(keep.sum()))


def inside_box(features: Tensor, progress: float) -> Tensor:
    """Which samples of (B, D) have most dimensions between bounds that widen from the quartiles to the extremes.

    Most is half, or as many as the average sample where that is less, as in batches of a few samples. `progress` is
    the share of the stream that has passed: 0 quartiles, 1 extremes.
    """
    features = features.float()  # there are no quantiles of half precision
    levels = torch.tensor([0.0, 0.25, 0.75, 1.0], device=features.device)
    least, low, high, most = features.quantile(levels, dim=0)  # (D,) each
    below, above = torch.lerp(low, least, progress), torch.lerp(high, most, progress)
    share = ((features >= below) & (features <= above)).to(features.dtype).mean(dim=1)  # (B,)
    return share >= share.mean().clamp_max(0.5)


def disagreement(one: Tensor, other: Tensor) -> Tensor:
    """Mean KL of two predictions from their average, logits (B, C) to (B,)."""
    p, q = one.softmax(dim=1), other.softmax(dim=1)
    average = ((p + q) / 2).clamp_min(torch.finfo(p.dtype).tiny).log()
    both = torch.stack([F.kl_div(average, each, reduction="none").sum(dim=1) for each in (p, q)])
    return both.mean(dim=0)
