"""What each online adapter does to a method: which tensors, which samples, which loss, and that a reset undoes it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from beds import build, equal
from test_methods_counts import on_meta
from torch import Tensor
from torch.nn import functional as F

from methods.online_entropy import EATA, SAR, DeYO, Tent
from mmbench import registry
from mmbench.backbone.config import preset
from mmbench.conformance_bed import SIZES, Bed, tensors
from mmbench.data.batch import Batch
from mmbench.errors import ConfigError, RefusedError
from mmbench.formula import evaluate, numbers
from mmbench.method import Method
from mmbench.online import Online
from mmbench.online_parts import balance, entropy, shuffle_pieces

ADAPTERS = ["tent", "eata", "sar", "deyo", "read", "abpem", "sumi", "brimpr", "t3a"]
OPEN = {name: dict(registry.onlines().card(name).check_options) for name in registry.onlines().names()}
METHODS = (
    *("lora-qv", "lora-qkv", "adapter-pfeiffer", "prompt-the-missing", "missing-mode"),
    *("shaspec-lite", "ssf-per-case"),  # their hooks remember something between calls
)
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
    adapter = attach(name, **OPEN[name])
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
@pytest.mark.parametrize("method", METHODS)
def test_adapters_go_over_any_trained_method(name: str, method: str) -> None:
    adapter, probe = attach(name, build(method), **OPEN[name]), unlabelled(5)
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
