"""Adapters made for two modalities, prototypes and alignment: their losses, selections and what they measure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from beds import build
from test_online_adapters import OPEN, attach, unlabelled
from torch import Tensor

from methods.online_alignment import BriMPR, Moments, contrast
from methods.online_fusion import (
    ABPEM,
    READ,
    SuMi,
    attention_gap,
    disagreement,
    gaussian_kl,
    inside_box,
    principal_entropy,
    twice_normalised,
)
from methods.online_prototype import T3A
from mmbench.backbone.hooks import Hooks
from mmbench.conformance_bed import SIZES
from mmbench.data.batch import Batch
from mmbench.errors import ConfigError, RefusedError
from mmbench.method import Method
from mmbench.online_parts import balance, entropy, mask_patches, outputs_of

# Fusion ----------------------------------------------------------------------------------------------------------


def fixed(adapter: Any, logits: Tensor) -> Any:
    adapter.method.logits = lambda batch: logits
    return adapter


@pytest.mark.parametrize("literal", [False, True])
def test_read_loss_of_given_probabilities(literal: bool) -> None:
    p = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.2, 0.5, 0.2, 0.1]])
    adapter: READ = fixed(attach("read", literal=literal), p.log())
    confident = (-0.7 * math.log(0.7) - 0.5 * math.log(0.5)) / 2
    weight = torch.tensor([0.9, 0.6, 0.3, 0.2])
    spread = weight.softmax(dim=0) if literal else weight / 2
    expected = confident + float((spread * spread.log()).sum())
    assert float(adapter.objective(unlabelled(samples=2)).loss) == pytest.approx(expected, rel=1e-5)
    alone = fixed(attach("read", literal=literal), p[:1].log()).objective(unlabelled(samples=1))
    assert float(alone.loss) == pytest.approx(-0.7 * math.log(0.7), rel=1e-5)
    assert float(twice_normalised(p[:1])) == 0.0


def test_read_updates_the_joint_projections_below_any_wrapper() -> None:
    for method, name in (("source", "qkv"), ("lora-qv", "qkv"), ("lora-qkv", "qkv.base_layer")):
        updated = attach("read", build(method)).updated()
        assert set(updated) == {f"blocks_u.0.attn.{name}.weight", f"blocks_u.0.attn.{name}.bias"}


def test_abpem_counts_the_likeliest_classes_only() -> None:
    p = torch.tensor([[0.6, 0.25, 0.1, 0.05]])
    expected = -0.6 * math.log(0.6) - 0.25 * math.log(0.25)
    assert float(principal_entropy(p.log(), 2)) == pytest.approx(expected)
    assert float(principal_entropy(p.log(), 8)) == pytest.approx(float(entropy(p.log())))


def test_gaussian_divergence_is_that_of_normal_distributions() -> None:
    x, anchor = torch.randn(2, 5, 7), 2 * torch.randn(2, 3, 4) + 1
    fits = [torch.distributions.Normal(t.mean(dim=(1, 2)), t.var(dim=(1, 2), correction=0).sqrt()) for t in (x, anchor)]
    torch.testing.assert_close(gaussian_kl(x, anchor), torch.distributions.kl_divergence(*fits), rtol=1e-4, atol=1e-5)


def test_attention_gap_pulls_cross_attention_alone() -> None:
    scores = torch.randn(2, 3, 7, 7, requires_grad=True)
    (gradient,) = torch.autograd.grad(attention_gap(scores, audio_tokens=3), scores)
    assert not gradient[:, :, :3, :3].any() and not gradient[:, :, 3:, 3:].any()
    assert gradient[:, :, :3, 3:].any() and gradient[:, :, 3:, :3].any()
    same = torch.randn(1, 1, 3, 3).repeat(1, 1, 2, 2)
    assert float(attention_gap(same, audio_tokens=3)) == pytest.approx(0.0, abs=1e-6)


def test_abpem_measures_the_scores_of_the_joint_block() -> None:
    adapter: ABPEM = attach("abpem", principal=4)
    attention: Any = adapter.method.net.blocks_u[0].attn
    with outputs_of(attention.attn_drop) as seen:
        attention.explicit = True
        logits = adapter.predict(unlabelled())
        attention.explicit = False
    assert seen[0].shape[-1] == SIZES.audio_tokens + SIZES.vision_tokens
    with outputs_of(attention.qkv) as projected:
        adapter.predict(unlabelled())
    q, k, _ = projected[0].reshape(6, -1, 3, 2, 16).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-2, -1) / 4  # head_dim 16
    torch.testing.assert_close(scores.softmax(dim=-1), seen[0])
    expected = entropy(logits).mean() - balance(logits) + attention_gap(scores, SIZES.audio_tokens)
    torch.testing.assert_close(adapter.objective(unlabelled()).loss.detach(), expected, rtol=1e-4, atol=1e-5)


def test_sumis_box_widens_from_quartiles_to_extremes() -> None:
    features = torch.arange(9.0)[:, None].repeat(1, 4)
    counts = [int(inside_box(features, progress).sum()) for progress in (0.0, 0.5, 1.0)]
    assert counts == [5, 7, 9]
    assert inside_box(features[:1], 0.0).all()


def test_sumi_draws_modalities_together_in_the_first_half_of_the_stream() -> None:
    adapter: SuMi = attach("sumi", sharing=1e4, **OPEN["sumi"])
    losses = [float(adapter.objective(unlabelled()).loss.detach()) for _ in range(4)]  # no step in between
    assert min(losses[:2]) > 10 * max(losses[2:])
    assert float(disagreement(torch.zeros(1, 4), torch.zeros(1, 4))) == pytest.approx(0.0, abs=1e-6)
    p, q = torch.tensor([0.9, 0.1]), torch.tensor([0.3, 0.7])
    middle = (p + q) / 2
    expected = sum(float((x * (x / middle).log()).sum()) for x in (p, q)) / 2
    assert float(disagreement(p.log()[None], q.log()[None])) == pytest.approx(expected, rel=1e-5)


def test_sumi_passes_over_what_one_modality_settles() -> None:
    assert attach("sumi", margin=9.0, unimodal=0.0).adapt(unlabelled()) > 0
    assert attach("sumi", margin=9.0, unimodal=1.0).adapt(unlabelled()) == 0  # no entropy exceeds ln C


def test_sumi_takes_half_precision_features() -> None:
    for name in ("source", "missing-mode"):  # inputs of the head, and logits
        adapter = attach("sumi", build(name), **OPEN["sumi"])
        with torch.autocast("cpu", torch.bfloat16):
            assert adapter.adapt(unlabelled()) > 0
        assert torch.isfinite(adapter.predict(unlabelled())).all()
    features = torch.arange(9.0, dtype=torch.bfloat16)[:, None].repeat(1, 4)
    assert int(inside_box(features, 0.0).sum()) == 5


def test_sumi_must_know_the_length_of_the_stream() -> None:
    adapter = SuMi(build("source"), {})
    with pytest.raises(RefusedError, match=r"reset\(steps="):
        adapter.adapt(unlabelled())


# Prototypes ------------------------------------------------------------------------------------------------------


def features_of(method: Method, batch: Batch) -> Tensor:
    net = method.net
    with torch.no_grad():
        normed: Tensor = net.mlp_head[0](net.pooled(batch.audio, batch.image))
    return normed


def test_t3a_predicts_by_the_mean_of_rows_and_seen_features() -> None:
    adapter: T3A = attach("t3a")
    assert adapter.adapt(unlabelled()) == 6
    weight = adapter.method.net.mlp_head[1].weight.detach()
    seen, probe = features_of(adapter.method, unlabelled()), features_of(adapter.method, unlabelled(5))
    labels = adapter.method.predict(unlabelled()).argmax(dim=1)
    expected = torch.empty(6, 4)
    for k in range(4):
        members = [weight[k] / weight[k].norm(), *(z / z.norm() for z in seen[labels == k])]
        mean = torch.stack(members).mean(dim=0)
        expected[:, k] = probe @ (mean / mean.norm())
    torch.testing.assert_close(adapter.predict(unlabelled(5)), expected)


def test_t3a_keeps_the_surest_supports_of_each_class() -> None:
    adapter: T3A = attach("t3a", supports=1)
    entered = [adapter.adapt(unlabelled(seed)) for seed in range(3)]
    assert len(adapter.supports) == 4 and sum(entered) < 18
    assert adapter.classes.bincount(minlength=4).tolist() == [1, 1, 1, 1]
    weight = adapter.method.net.mlp_head[1].weight.detach()
    candidates = [(entropy(adapter.method.net.mlp_head[1](weight)), torch.arange(4))]
    for seed in range(3):
        logits = adapter.method.predict(unlabelled(seed))
        candidates.append((entropy(logits), logits.argmax(dim=1)))
    entropies, classes = (torch.cat(each).detach() for each in zip(*candidates, strict=True))
    for k in range(4):
        torch.testing.assert_close(adapter.entropies[adapter.classes == k].min(), entropies[classes == k].min())


def test_t3a_asks_methods_that_split_their_batches_for_one_sample_at_a_time() -> None:
    adapter: T3A = attach("t3a", build("missing-mode"))
    together = adapter.predict(unlabelled())
    alone = torch.cat([adapter.predict(unlabelled().select([i])) for i in range(6)])
    torch.testing.assert_close(together, alone)


# Alignment -------------------------------------------------------------------------------------------------------


class Prepended(Hooks):
    """Prompts before the tokens of every encoder block, dropped after it."""

    def __init__(self, prompts: Mapping[str, Tensor]) -> None:
        self._prompts = prompts

    def block(self, modality: str, index: int, block: Any, x: Tensor, batch: Any, other: Tensor | None) -> Tensor:
        if modality == "u":
            return block.run(x)  # type: ignore[no-any-return]
        prompt = self._prompts[f"prompt_{modality}{index}"]
        return block.run(torch.cat([prompt.expand(len(x), -1, -1), x], dim=1))[:, len(prompt) :]  # type: ignore[no-any-return]


STARTS_PLAIN = ["source", "adapter-houlsby", "adapter-pfeiffer", "adaptformer", "compacter", "convpass", "lavish"]
STARTS_PLAIN += ["repadapter", "lora-qv"]


@pytest.mark.parametrize("method", STARTS_PLAIN)
def test_brimprs_prompts_stand_before_the_tokens_of_every_encoder_block(method: str) -> None:
    adapter: BriMPR = attach("brimpr", build(method), prompts=3)
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for prompt in adapter.updated().values():
            prompt.normal_(generator=rng)
    batch = unlabelled()
    with torch.no_grad():
        expected = adapter.method.net(batch.audio, batch.image, hooks=Prepended(adapter.updated()))
    torch.testing.assert_close(adapter.predict(batch), expected)
    assert not torch.allclose(adapter.method.predict(batch), expected)  # the method itself has no prompts


@pytest.mark.parametrize("method", ["ssf-per-case", "shaspec-lite", "prompt-the-missing", "msp", "lavish", "actionmae"])
def test_hooks_that_remember_something_work_as_without_brimpr(method: str) -> None:
    adapter: BriMPR = attach("brimpr", build(method))
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapter.method.extra.parameters():  # sets, banks and gates that start alike come apart
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=rng))
    with adapter._hooked({}) as seen:  # first: a pass of the method alone would leave behind what it remembers
        inside = adapter.method.predict(unlabelled())
    assert torch.equal(inside, adapter.method.predict(unlabelled()))
    assert set(seen) == {f"{modality}{index}" for modality in "av" for index in range(SIZES.depth)}


def test_brimpr_brings_the_layers_back_to_the_source() -> None:
    adapter: BriMPR = attach("brimpr", lr=0.05)
    shifted = replace(unlabelled(3), image=3 * unlabelled(3).image + 2)

    def distance() -> float:
        with adapter._hooked(adapter.updated()) as seen, torch.no_grad():
            adapter.method.logits(shifted)
        return float(adapter._shift(seen))

    before = distance()
    for _ in range(15):
        adapter.adapt(shifted)
    assert distance() < 0.95 * before


def test_brimprs_moments_and_contrast() -> None:
    tokens = torch.randn(3, 5, 2)
    moments = Moments.of(tokens)
    torch.testing.assert_close(moments.mean, tokens.reshape(15, 2).mean(dim=0))
    torch.testing.assert_close(moments.std, tokens.reshape(15, 2).std(dim=0, correction=0))
    assert float(moments.distance(Moments.of(tokens))) == 0.0
    unit = torch.eye(4)
    assert float(contrast(unit, unit, 0.07)) < 1e-4 < float(contrast(unit, unit.roll(1, 0), 0.07))


def test_masks_take_the_share_of_each_samples_patches() -> None:
    masked = mask_patches(torch.ones(3, 2, 32, 64), 16, 0.5, torch.Generator().manual_seed(0))
    patches = masked.unfold(2, 16, 16).unfold(3, 16, 16)[:, 0].flatten(1, 2).mean(dim=(-2, -1))  # (3, 8)
    assert patches.sum(dim=1).tolist() == [4.0, 4.0, 4.0]
    assert not torch.equal(patches[0], patches[1])


def test_brimpr_without_source_samples_is_an_error() -> None:
    with pytest.raises(ConfigError, match="source samples"):
        BriMPR(build("source"), {})
