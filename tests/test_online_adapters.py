"""What each online adapter does to a method: which tensors, which samples, which loss, and that a reset undoes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from methods.online_alignment import BriMPR, Moments, contrast
from methods.online_entropy import EATA, SAR, DeYO, Tent
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
from mmbench import registry
from mmbench.backbone.config import preset
from mmbench.backbone.hooks import Hooks
from mmbench.conformance_bed import SIZES, Bed, tensors
from mmbench.data.batch import Batch
from mmbench.errors import ConfigError, RefusedError
from mmbench.formula import evaluate, numbers
from mmbench.method import Method
from mmbench.online import Online
from mmbench.online_parts import balance, entropy, mask_patches, outputs_of, shuffle_pieces
from tests.beds import build, equal
from tests.test_methods_counts import on_meta

ADAPTERS = ["tent", "eata", "sar", "deyo", "read", "abpem", "sumi", "brimpr", "t3a"]
OPEN: dict[str, dict[str, Any]] = {  # options under which every sample of the bed enters the update
    "eata": {"margin": 9.0, "redundancy": 9.0},
    "sar": {"margin": 9.0, "recovery": 0.0},
    "deyo": {"margin": 9.0, "drop": -9.0},
    "sumi": {"margin": 9.0, "unimodal": 0.0},
}
LEAST_SELECTED = {"sumi": 1}


def unlabelled(seed: int = 0, samples: int = 6) -> Batch:
    return replace(Bed().batch(seed, samples), label=None)


def attach(name: str, method: Method | None = None, **options: Any) -> Any:
    """The adapter over a method (the source model unless given), ready for a stream of four batches."""
    kind = registry.onlines().load(name)
    adapter = kind(method or build("source"), options, unlabelled(9), torch.Generator().manual_seed(0))
    adapter.reset(steps=4)
    return adapter


def snapshot(adapter: Online) -> dict[str, Tensor]:
    found = {**tensors(adapter.method), **adapter.updated()}
    return {name: tensor.detach().clone() for name, tensor in found.items()}


# All of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("samples", [6, 1])
def test_only_declared_tensors_move_and_a_reset_restores_everything(name: str, samples: int) -> None:
    adapter = attach(name, **OPEN.get(name, {}))
    before, probe = snapshot(adapter), unlabelled(5)
    start, identities = adapter.predict(probe), [id(p) for p in adapter.updated().values()]
    entered = [adapter.adapt(unlabelled(seed, samples)) for seed in range(3)]
    after = snapshot(adapter)
    assert all(LEAST_SELECTED.get(name, samples) <= count <= samples for count in entered)
    assert [id(p) for p in adapter.updated().values()] == identities
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert moved <= set(adapter.updated())
    assert not torch.equal(adapter.predict(probe), start)
    assert all(p.grad is None for p in adapter.method.net.parameters())
    later = adapter.predict(probe)
    adapter.reset(steps=4)
    assert equal(snapshot(adapter), before)
    assert torch.equal(adapter.predict(probe), start)
    assert [adapter.adapt(unlabelled(seed, samples)) for seed in range(3)] == entered
    assert torch.equal(adapter.predict(probe), later)  # shuffles and masks included


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("method", ["lora-qv", "lora-qkv", "adapter-pfeiffer", "prompt-the-missing", "missing-mode"])
def test_adapters_go_over_any_trained_method(name: str, method: str) -> None:
    adapter, probe = attach(name, build(method), **OPEN.get(name, {})), unlabelled(5)
    start = adapter.predict(probe)
    if registry.onlines().card(name).identity_at_start:
        assert torch.equal(start, adapter.method.predict(probe))
    assert adapter.adapt(unlabelled()) > 0
    assert not torch.equal(adapter.predict(probe), start)
    assert torch.isfinite(adapter.predict(probe)).all()
    adapter.reset(steps=4)
    assert torch.equal(adapter.predict(probe), start)


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("fusion", ["gated", "none", "as-published"])
def test_updated_parameters_are_the_closed_form(name: str, fusion: Any) -> None:
    config = replace(SIZES, fusion=fusion)
    adapter = registry.onlines().load(name)(on_meta("source", config), {}, Bed(config).batch().to("meta"))
    count = sum(p.numel() for p in adapter.updated().values())
    assert count == evaluate(adapter.card.parameters, {**config.symbols(), **numbers(adapter.options)})


@pytest.mark.parametrize(
    ("name", "published"),
    [("tent", 78_336), ("deyo", 78_336), ("sumi", 78_336), ("sar", 61_440), ("read", 1_771_776), ("abpem", 1_771_776)],
)
def test_counts_on_the_published_model(name: str, published: int) -> None:
    adapter = registry.onlines().load(name)(on_meta("source", preset("cavmae-base")), {})
    assert sum(p.numel() for p in adapter.updated().values()) == published


@pytest.mark.parametrize(("name", "published"), [("eata", 78_336), ("brimpr", 168_960), ("t3a", 0)])
def test_counts_of_those_with_other_needs_follow_their_formula(name: str, published: int) -> None:
    card = registry.onlines().card(name)
    assert evaluate(card.parameters, {**preset("cavmae-base").symbols(), **numbers(card.options)}) == published


def test_an_adapter_that_no_gradient_reaches_is_refused() -> None:
    method = build("source")
    method.logits = torch.no_grad()(method.logits)  # type: ignore[method-assign]
    with pytest.raises(RefusedError, match="no gradient reaches these through source"):
        attach("tent", method).adapt(unlabelled())


def test_what_no_sample_speaks_for_makes_no_step() -> None:
    for name in ("eata", "sar", "deyo", "sumi"):
        adapter = attach(name, margin=0.0)
        before = snapshot(adapter)
        assert adapter.adapt(unlabelled()) == 0
        assert equal(snapshot(adapter), before)


def test_entropy_in_nats_and_balance() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [100.0, 0.0, 0.0, 0.0]])
    assert entropy(logits).tolist() == pytest.approx([math.log(4), 0.0])
    opposed = torch.tensor([[100.0, 0.0], [0.0, 100.0]])
    assert float(balance(opposed)) == pytest.approx(math.log(2))
    assert float(balance(opposed[:1])) == 0.0


# Entropy ---------------------------------------------------------------------------------------------------------


def test_tent_takes_the_adam_step_of_the_mean_entropy() -> None:
    adapter: Tent = attach("tent", lr=1e-2)
    logits = adapter.method.logits(unlabelled())
    p = logits.softmax(dim=1)
    loss = -(p * p.log()).sum() / len(p)
    expected = {
        name: old.detach() - 1e-2 * g / (g.abs() + 1e-8)  # Adam's first step, its moments corrected for bias
        for (name, old), g in zip(
            adapter.updated().items(), torch.autograd.grad(loss, list(adapter.updated().values())), strict=True
        )
    }
    adapter.adapt(unlabelled())
    for name, parameter in adapter.updated().items():
        torch.testing.assert_close(parameter.detach(), expected[name], atol=2e-5, rtol=1e-4)


def test_tent_updates_live_norms_and_spares_the_head() -> None:
    names = set(attach("tent").updated())
    assert {"norm.weight", "blocks_a.0.norm1.weight", "blocks_u.0.norm2.bias", "blocks_fu.0.norm1_a.weight"} <= names
    assert not names & {"mlp_head.0.weight", "blocks_a.0.norm1_a.weight", "norm_a.weight"}


def test_repeated_tent_lowers_entropy() -> None:
    adapter, batch = attach("tent"), unlabelled()
    before = entropy(adapter.predict(batch)).mean()
    for _ in range(10):
        adapter.adapt(batch)
    assert entropy(adapter.predict(batch)).mean() < before


def test_eata_weighs_reliable_samples() -> None:
    adapter: EATA = attach("eata", margin=0.7, redundancy=9.0)
    logits = adapter.predict(unlabelled())
    p = logits.softmax(dim=1)
    h, limit = -(p * p.log()).sum(dim=1), 0.7 * math.log(4)
    reliable = [i for i in range(6) if h[i] < limit]
    assert 0 < len(reliable) < 6
    expected = sum(math.exp(limit - h[i]) * h[i] for i in reliable) / len(reliable)
    goal = adapter.objective(unlabelled())
    assert goal.samples == len(reliable)
    assert float(goal.loss.detach()) == pytest.approx(float(expected), rel=1e-5)


def test_eata_passes_over_what_resembles_the_accepted_samples() -> None:
    adapter: EATA = attach("eata", margin=9.0, redundancy=0.05)
    assert adapter.adapt(unlabelled()) == 6  # nothing to resemble yet
    mean = adapter._accepted
    assert mean is not None and adapter.adapt(unlabelled()) == 0
    assert torch.equal(mean, adapter._accepted)
    adapter.begin()
    assert adapter.adapt(unlabelled()) == 6


def test_eatas_average_of_accepted_probabilities_moves_slowly() -> None:
    adapter: EATA = attach("eata", margin=9.0, redundancy=9.0)
    first = adapter.predict(unlabelled(0)).softmax(dim=1).mean(dim=0)
    adapter.adapt(unlabelled(0))
    second = adapter.predict(unlabelled(1)).softmax(dim=1).mean(dim=0)
    adapter.adapt(unlabelled(1))
    torch.testing.assert_close(adapter._accepted, 0.9 * first + 0.1 * second)


def test_the_fisher_penalty_keeps_the_source_near() -> None:
    def moved(fisher: float) -> float:
        adapter: EATA = attach("eata", fisher=fisher, lr=1e-3, **OPEN["eata"])
        before = snapshot(adapter)
        for step in range(8):
            adapter.adapt(unlabelled(step))
        return sum(float((p.detach() - before[n]).square().sum()) for n, p in adapter.updated().items())

    assert moved(1e5) < moved(0.0)


def test_fisher_information_is_the_squared_gradient_with_the_models_own_labels() -> None:
    adapter: EATA = attach("eata")
    logits = adapter.method.logits(unlabelled(9))
    loss = F.cross_entropy(logits, logits.argmax(dim=1))
    gradients = torch.autograd.grad(loss, list(adapter.updated().values()))
    for name, gradient in zip(adapter.updated(), gradients, strict=True):
        torch.testing.assert_close(adapter._importance[name], gradient.square())


def test_eata_without_source_samples_says_how_to_do_without() -> None:
    with pytest.raises(ConfigError, match=r"fisher to 0\.0"):
        EATA(build("source"), {})
    assert EATA(build("source"), {"fisher": 0.0, **OPEN["eata"]}).adapt(unlabelled()) == 6


def test_sar_spares_the_top_blocks_by_their_names() -> None:
    names = set(attach("sar").updated())
    assert {name.split(".")[0] for name in names} == {"blocks_a", "blocks_v"}
    assert {name.split(".")[1] for name in names} == {"0"}  # of two encoder blocks
    with pytest.raises(RefusedError, match="finds nothing to update"):
        attach("sar", top_blocks=2)


def test_sar_descends_with_the_gradient_of_the_worst_point_nearby() -> None:
    adapter: SAR = attach("sar", lr=1e-2, radius=0.5, **OPEN["sar"])
    here = {n: p.detach().clone() for n, p in adapter.updated().items()}

    def gradients() -> tuple[Tensor, ...]:
        loss = entropy(adapter.method.logits(unlabelled())).mean()
        return torch.autograd.grad(loss, list(adapter.updated().values()))

    first = gradients()
    length = torch.cat([g.flatten() for g in first]).norm()
    with torch.no_grad():
        for p, g in zip(adapter.updated().values(), first, strict=True):
            p.add_(0.5 * g / length)
    second = gradients()
    adapter.reset(steps=4)
    adapter.adapt(unlabelled())
    for (name, p), g in zip(adapter.updated().items(), second, strict=True):
        torch.testing.assert_close(p.detach(), here[name] - 1e-2 * g / (g.abs() + 1e-8), atol=1e-4, rtol=1e-3)


def test_sar_starts_over_when_its_loss_collapses() -> None:
    adapter: SAR = attach("sar", margin=9.0, recovery=100.0)
    before = snapshot(adapter)
    assert adapter.adapt(unlabelled()) == 6
    assert equal(snapshot(adapter), before) and adapter.average is None
    calm: SAR = attach("sar", margin=9.0, recovery=0.0)
    calm.adapt(unlabelled())
    assert not equal(snapshot(calm), before) and calm.average is not None


def test_deyo_weighs_what_shuffled_pieces_cost() -> None:
    adapter: DeYO = attach("deyo", margin=9.0, drop=0.0)
    goal = adapter.objective(unlabelled())
    rng = torch.Generator()
    rng.set_state(adapter._rng_start)
    batch = unlabelled()
    audio = shuffle_pieces(batch.audio[:, None], 4, rng)[:, 0]
    shuffled = replace(batch, audio=audio, image=shuffle_pieces(batch.image, 4, rng))
    p, q = adapter.predict(batch).softmax(dim=1), adapter.predict(shuffled).softmax(dim=1)
    label, h = p.argmax(dim=1), -(p * p.log()).sum(dim=1)
    fall = torch.stack([p[i, label[i]] - q[i, label[i]] for i in range(6)])
    kept = fall > 0
    assert 0 < int(kept.sum()) < 6 and goal.samples == int(kept.sum())
    weights = (0.4 * math.log(4) - h).exp() + fall.exp()
    torch.testing.assert_close(goal.loss.detach(), (weights * h)[kept].mean())


def test_shuffled_pieces_are_the_same_pieces_in_other_places() -> None:
    image = torch.arange(2 * 64).reshape(2, 1, 8, 8).float()
    shuffled = shuffle_pieces(image, 4, torch.Generator().manual_seed(0))

    def cells(x: Tensor) -> set[tuple[float, ...]]:
        return {tuple(x[r : r + 2, c : c + 2].flatten().tolist()) for r in range(0, 8, 2) for c in range(0, 8, 2)}

    assert not torch.equal(shuffled, image)
    assert [cells(shuffled[i, 0]) for i in range(2)] == [cells(image[i, 0]) for i in range(2)]
    with pytest.raises(ConfigError, match="pieces must divide the sides 8 and 8"):
        shuffle_pieces(image, 3, torch.Generator())


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


def test_brimprs_prompts_stand_before_the_tokens_of_every_encoder_block() -> None:
    adapter: BriMPR = attach("brimpr", prompts=3)
    with torch.no_grad():
        for prompt in adapter.updated().values():
            prompt.normal_(generator=torch.Generator().manual_seed(3))
    batch = unlabelled()
    with torch.no_grad():
        expected = adapter.method.net(batch.audio, batch.image, hooks=Prepended(adapter.updated()))
    torch.testing.assert_close(adapter.predict(batch), expected)
    assert not torch.allclose(adapter.method.predict(batch), expected)  # the method itself has no prompts


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
