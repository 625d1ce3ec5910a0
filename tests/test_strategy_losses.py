"""AugMix and OGM-GE: the term that is added, the forwards it takes, the gradients that are left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from beds import HeadOnly, build, equal, make, make_bench, make_job, memory_data
from test_strategies import complete, rng, strategy, told
from torch import Tensor

from mmbench import registry
from mmbench.backbone.hooks import Hooks
from mmbench.conformance_bed import Bed
from mmbench.costs import count_batch
from mmbench.data.batch import Batch
from mmbench.errors import RefusedError
from mmbench.method import Loss, Method, Recipe
from mmbench.strategy import Regimen, Strategy
from mmbench.train import fit

# AugMix -------------------------------------------------------------------------------------------------------------


class Listener(HeadOnly):
    """Also keeps every batch that is forwarded."""

    def build(self, rng: torch.Generator) -> None:
        super().build(rng)
        self.forwarded: list[Batch] = []

    def logits(self, batch: Batch) -> Tensor:
        self.forwarded.append(batch)
        return super().logits(batch)


def listen(batch: Batch, *strategies: Strategy, recipe: Recipe | None = None) -> tuple[Listener, Loss]:
    method = make(Listener, recipe)
    assert isinstance(method, Listener)
    regimen = Regimen(method, strategies)
    return method, regimen.loss(regimen.view(batch, rng()))


def entropy(p: Tensor) -> Tensor:
    return -torch.special.xlogy(p, p).sum(dim=-1)


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(bce=True), Recipe(multi_label=True)], ids=["ce", "bce", "multi"])
def test_augmix_adds_the_divergence_of_the_sample_and_two_views(recipe: Recipe) -> None:
    batch = complete(4)
    if recipe.multi_label:
        batch = replace(batch, label=torch.eye(4))
    method, loss = listen(batch, strategy("augmix", weight=5.0), recipe=recipe)
    clean, *views = method.forwarded
    assert len(views) == 2 and torch.equal(clean.audio, batch.audio) and torch.equal(clean.image, batch.image)
    logits = torch.stack([method.logits(each) for each in (clean, *views)])  # (3, B, C)
    torch.testing.assert_close(loss.logits, logits[0])
    one_by_one = recipe.bce or recipe.multi_label
    p = torch.stack([logits.sigmoid(), (-logits).sigmoid()], dim=-1) if one_by_one else logits.softmax(dim=-1)
    divergence = (entropy(p.mean(dim=0)) - entropy(p).mean(dim=0)).mean()
    assert float(divergence.detach()) > 1e-5
    torch.testing.assert_close(loss.total, method.criterion(logits[0], batch.label) + 5 * divergence)


def test_augmix_views_differ_stay_in_range_and_leave_absent_modalities() -> None:
    batch = Bed().batch()
    method, _ = listen(batch, strategy("augmix"))
    _, one, two = method.forwarded
    available = told(batch)[0]
    for column, (plain, first, second) in enumerate(
        ((batch.audio, one.audio, two.audio), (batch.image, one.image, two.image))
    ):
        here = available[:, column]
        for view in (first, second):
            assert torch.equal(view[~here], plain[~here])
            assert bool(((view - plain).flatten(1).abs().mean(dim=1) > 1e-3)[here].all())
            assert float(view.abs().max()) < 1.5 * float(plain.abs().max())
        assert not torch.equal(first[here], second[here])
    assert one.ids == batch.ids and one.case == batch.case


def test_augmix_augments_what_later_strategies_made_of_the_batch() -> None:
    method, _ = listen(complete(6), strategy("augmix"), strategy("modality-dropout", p_audio=1.0, p_vision=0.0))
    assert len(method.forwarded) == 3
    for batch in method.forwarded:
        assert not batch.audio.any() and bool(batch.image.flatten(1).any(dim=1).all())


def changes() -> Any:
    return registry.strategies().load("augmix").__init__.__globals__


def test_augmix_warps_move_the_picture_by_what_they_say() -> None:
    x = torch.randn(2, 3, 12, 12, generator=rng())
    warp = changes()["Warp"](0, 2, 2 / 3)
    moved = warp(x, torch.tensor([0.25, -0.5]))  # a quarter of a third of the side is one pixel
    torch.testing.assert_close(moved[0, :, :, :-1], x[0, :, :, 1:], atol=1e-4, rtol=0)
    torch.testing.assert_close(moved[1, :, :, 2:], x[1, :, :, :-2], atol=1e-4, rtol=0)
    assert float(moved[0, :, :, -1].abs().max()) < 1e-4


def test_augmix_pixel_changes() -> None:
    ramp = torch.linspace(0, 1, 256).square().expand(1, 3, 256).reshape(1, 3, 16, 16)
    flat = changes()["equalise"](ramp, torch.zeros(1))
    torch.testing.assert_close(flat.flatten(2).mean(dim=2), torch.full((1, 3), 0.5), atol=0.05, rtol=0)
    assert float(flat.min()) == 0 and float(flat.max()) == 1
    grey = torch.full((1, 3, 4, 4), 0.3)
    assert torch.equal(changes()["equalise"](grey, torch.zeros(1)), grey)
    assert len(changes()["posterise"](ramp, torch.tensor(0.25)).unique()) == 8
    inverted = changes()["solarise"](ramp, torch.tensor(-0.25))
    assert float(inverted.max()) < 0.75 and float(inverted[..., -1, -1].max()) == 0


def test_augmix_sees_a_third_of_the_samples() -> None:
    method = make(Listener)
    assert isinstance(method, Listener)
    fitted = fit(method, memory_data(), make_job(samples=30, strategies=(strategy("augmix"),)), make_bench())
    assert method.samples() == 10
    assert sum(len(batch) for batch in method.forwarded) == 30 == fitted.ledger.samples


def test_augmix_costs_three_forward_passes() -> None:
    method, batch = build("linear-probe"), Bed().batch(samples=4)
    counted = [count_batch(Regimen(method, each), batch, make_bench()) for each in ((), (strategy("augmix"),))]
    flops = [counts.probe.flops_per_sample for counts in counted]
    assert flops[1] == pytest.approx(3 * flops[0], rel=0.01)


# OGM-GE -------------------------------------------------------------------------------------------------------------


class Tokens(Hooks):
    """Keeps the normed tokens."""

    def pool(self, x: Tensor, batch: Any) -> Tensor:
        self.kept = x
        return super().pool(x, batch)


def probabilities(method: Method, batch: Batch) -> tuple[Tensor, Tensor]:
    """(B, C) of the audio tokens alone and of the visual ones."""
    taps = Tokens()
    with torch.no_grad():
        method.net(batch.audio, batch.image, hooks=taps)
        split = method.net.config.audio_tokens
        halves = (taps.kept[:, :split], taps.kept[:, split:])
        audio, vision = (method.net.mlp_head(half.mean(dim=1)).softmax(dim=1) for half in halves)
    return audio, vision


def gradients(method: Method, batch: Batch, *strategies: Strategy, losses: int = 1) -> Mapping[str, Tensor]:
    regimen = Regimen(method, strategies)
    batch = regimen.view(batch, rng())
    for parameter in method.trainable().values():
        parameter.grad = None
    for _ in range(losses):
        loss = regimen.loss(batch)
    loss.total.backward()
    regimen.after_backward(0, 1)
    return {n: p.grad.clone() for n, p in method.trainable().items() if p.grad is not None}


@pytest.mark.parametrize("stronger", ["a", "v"])
def test_ogm_scales_the_encoder_of_the_stronger_modality_alone(stronger: str) -> None:
    method, batch = build("full-finetune"), complete(6)
    p = dict(zip("av", probabilities(method, batch), strict=True))
    weaker = "v" if stronger == "a" else "a"
    batch = replace(batch, label=(p[stronger] - p[weaker]).argmax(dim=1))
    assert batch.label is not None
    scores = {m: float(p[m].gather(1, batch.label[:, None]).sum()) for m in "av"}
    assert scores[stronger] > scores[weaker]
    factor = 1 - float(torch.tanh(torch.tensor(0.5 * scores[stronger] / scores[weaker])))
    plain = gradients(method, batch)
    scaled = gradients(method, batch, strategy("ogm-ge", alpha=0.5, noise=False))
    touched = {name for name in plain if method.stream(name) == stronger}
    assert {f"blocks_{stronger}.0.attn.qkv.weight", f"patch_embed_{stronger}.proj.weight"} <= touched
    for name in plain:
        torch.testing.assert_close(scaled[name], plain[name] * (factor if name in touched else 1.0))


def test_ge_adds_noise_of_the_gradients_size_to_both_encoders() -> None:
    method, batch = build("full-finetune"), complete(6)
    plain, scaled = gradients(method, batch), gradients(method, batch, strategy("ogm-ge", noise=False))
    noisy = gradients(method, batch, strategy("ogm-ge"))
    for name, gradient in plain.items():
        noise = noisy[name] - scaled[name]
        if method.stream(name) is None:
            assert not noise.any()
        elif gradient.numel() > 2000:
            assert float(noise.std() / gradient.std()) == pytest.approx(1, abs=0.1)
            assert abs(float((noise * gradient).mean())) < 0.1 * float(gradient.square().mean())


def test_a_step_that_is_done_again_counts_no_sample_twice() -> None:
    """After a step that ran out of memory, and after the pass that counts costs."""
    method, batch = build("full-finetune"), complete(6)
    used = strategy("ogm-ge")
    Regimen(method, (used,)).loss(Bed().batch(9))
    once = gradients(method, batch, strategy("ogm-ge"))
    assert equal(once, gradients(method, batch, used, losses=3))


class JointOnly(HeadOnly):
    """Trains what both modalities share."""

    def build(self, rng: torch.Generator) -> None:
        super().build(rng)
        for name, parameter in self.net.named_parameters():
            parameter.requires_grad_(
                name in self.net.live_parameter_names() and name.startswith(("blocks_u", "blocks_fu"))
            )


@pytest.mark.parametrize("kind", [HeadOnly, JointOnly])
def test_ogm_refuses_a_method_that_trains_no_encoder(kind: type[Method]) -> None:
    with pytest.raises(RefusedError, match="bed-method trains no tensor of one modality's encoder"):
        fit(make(kind), memory_data(), make_job(strategies=(strategy("ogm-ge"),)), make_bench())


def test_ogm_refuses_a_method_that_ends_elsewhere() -> None:
    class Elsewhere(HeadOnly):
        def build(self, rng: torch.Generator) -> None:
            super().build(rng)
            self.net.blocks_a.requires_grad_(True)

        def logits(self, batch: Batch) -> Tensor:
            audio, _ = self.net.encode(batch.audio, batch.image)
            return self.net.mlp_head(audio.mean(dim=1))  # type: ignore[no-any-return]

    with pytest.raises(RefusedError, match="one normed token per patch"):
        Regimen(make(Elsewhere), (strategy("ogm-ge"),)).loss(complete(2))


def test_prompts_between_the_streams_belong_to_no_encoder() -> None:
    assert build("prompt-attention").stream("extra.prompts.a") is None
    assert build("prompt-input").stream("extra.prompts.a") == "a"
    assert build("prompt-the-missing", {"position": "attention"}).stream("extra.prompts.v") is None
