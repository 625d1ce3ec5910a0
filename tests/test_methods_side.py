"""Side networks: a ladder that leaves the backbone without a graph, and stand-ins for an absent modality."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from beds import build
from test_methods_counts import count, on_meta
from torch import Tensor

from mmbench import registry
from mmbench.backbone.config import preset
from mmbench.bench import Bench
from mmbench.config import Budget
from mmbench.conformance_bed import SIZES, Bed, train
from mmbench.costs import count_batch
from mmbench.data.batch import Batch
from mmbench.errors import ConfigError
from mmbench.meter import Clock
from mmbench.method import Method, Recipe
from mmbench.strategy import Regimen

STAND_INS = ("cmpt", "actionmae")
LADDER = "ladder-side-tuning"


def part(method: Method, name: str) -> Any:
    """A module that the method added."""
    return method.extra.get_submodule(name)


def trained(name: str) -> Method:
    method = build(name)
    train(method, Bed())
    return method


def kept_bytes(name: str) -> float:
    """Activations per sample."""
    bed = Bed(preset("cavmae-tiny"))
    kind: type[Method] = registry.methods().load(name)
    method = kind(bed.net(), Recipe(), {}, torch.Generator().manual_seed(0))
    bench = Bench(torch.device("cpu"), Budget(), Clock(torch.device("cpu")))
    return count_batch(Regimen(method), bed.batch(samples=2), bench).activations_per_sample


def random(shape: torch.Size) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        (LADDER, {}, 4_306_774),  # as methods with their published settings are counted elsewhere
        (LADDER, {"reduction": 16}, 2 * 11 * (12 * 48**2 + 13 * 48) + 2 * 12 * 769 * 48 + 49 * 768 + 22),
        ("cmpt", {}, 2 * 11 * (768 + 2_304) + 2 * (768 + 1_536 + 4 * (768 * 768 + 768))),
        ("cmpt", {"rank": 4}, 4 * 2 * 11 * (768 + 2_304) + 2 * (768 + 1_536 + 4 * (768 * 768 + 768))),
        ("actionmae", {}, 12 * 768 + 2 * (12 * 768 * 768 + 13 * 768)),
        ("actionmae", {"memory": 4, "layers": 1}, 6 * 768 + 12 * 768 * 768 + 13 * 768),
    ],
)
def test_counts_on_the_published_model(name: str, options: dict[str, object], expected: int) -> None:
    assert count(on_meta(name, preset("cavmae-base"), **options)) == expected


# Ladder side-tuning


def test_no_gradient_enters_the_backbone_beside_the_ladder() -> None:
    method, seen = build(LADDER), list[bool]()
    for name in ("blocks_a", "blocks_v", "blocks_fu", "blocks_u"):
        for block in method.net.get_submodule(name).children():
            for layer in block.modules():
                layer.register_forward_hook(
                    lambda m, args, out: seen.append(
                        any(t.requires_grad for t in (out if type(out) is tuple else (out,)))
                    )
                )
    method.loss(Bed().batch()).total.backward()  # type: ignore[no-untyped-call]
    assert seen and not any(seen)


def test_the_ladder_keeps_a_fraction_of_what_prompts_keep() -> None:
    kept = {name: kept_bytes(name) for name in (LADDER, "vpt-shallow")}
    assert kept[LADDER] < 0.25 * kept["vpt-shallow"]


@pytest.mark.parametrize("modality", ["a", "v"])
def test_every_tap_of_the_ladder_counts_while_its_gate_is_open(modality: str) -> None:
    method, batch = trained(LADDER), Bed().batch()
    ladder = part(method, f"ladder_{modality}")
    for index in range(SIZES.depth):
        for gate, matters in ((-1e3, False), (0.0, True)):
            ladder.gates.data[index] = gate
            before, bias = method.predict(batch), ladder.down[index + 1].bias.data
            ladder.down[index + 1].bias.data = bias + 1.0
            assert torch.equal(method.predict(batch), before) != matters
            ladder.down[index + 1].bias.data = bias


def test_a_ladder_without_width_is_refused() -> None:
    with pytest.raises(ConfigError, match="reduction of ladder-side-tuning is 64, more than the width 32"):
        build(LADDER, {"reduction": 64})


# Stand-ins


@pytest.mark.parametrize("name", STAND_INS)
def test_what_an_absent_input_was_filled_with_does_not_matter(name: str) -> None:
    method, batch = trained(name), Bed().batch()
    other = replace(batch, audio=random(batch.audio.shape), image=random(batch.image.shape))
    assert batch.available is not None
    has_audio, has_vision = batch.available.T
    refilled = replace(
        batch,
        audio=torch.where(has_audio[:, None, None], batch.audio, other.audio),
        image=torch.where(has_vision[:, None, None, None], batch.image, other.image),
    )
    assert torch.equal(method.predict(refilled), method.predict(batch))
    moved = (method.predict(other) - method.predict(batch)).abs().amax(dim=1)
    assert bool((moved > 1e-5).all())  # what is there does matter


@pytest.mark.parametrize("name", STAND_INS)
def test_complete_samples_start_as_the_backbone_and_incomplete_ones_do_not(name: str) -> None:
    batch = Bed().batch()
    with torch.no_grad():
        plain = Bed().net().eval()(batch.audio, batch.image)
    assert batch.available is not None
    complete = batch.available.all(dim=1)
    difference = (build(name).predict(batch) - plain).abs().amax(dim=1)
    assert torch.equal(difference < 1e-6, complete)


@pytest.mark.parametrize(("name", "graph"), [("cmpt", True), ("actionmae", False)])
def test_only_low_rank_updates_bring_a_graph_into_the_encoders(name: str, graph: bool) -> None:
    method = build(name)
    audio, vision = method.net.encode(Bed().batch().audio, Bed().batch().image, method.hooks, Bed().batch())
    assert (audio.requires_grad, vision.requires_grad) == (graph, graph)


def test_a_stand_in_after_the_encoders_keeps_less_than_one_with_updates_inside() -> None:
    assert kept_bytes("actionmae") < 0.6 * kept_bytes("cmpt")


@pytest.mark.parametrize("name", [*STAND_INS, "shaspec-lite"])
def test_neither_a_loss_nor_a_pass_for_another_view_leaves_a_graph_behind(name: str) -> None:
    method = build(name)
    method.loss(Bed().batch())
    method.logits(Bed().batch())
    assert torch.equal(copy.deepcopy(method).predict(Bed().batch()), method.predict(Bed().batch()))


def alignment(name: str, batch: Batch) -> float:
    """What a unit of the option adds to the loss."""
    on, off = build(name, {"alignment": 1.0}).loss(batch), build(name, {"alignment": 0.0}).loss(batch)
    assert torch.equal(on.logits, off.logits)
    return float((on.total - off.total).detach())


def known(available: list[list[bool]], affected: list[list[bool]]) -> Batch:
    count = len(available)
    batch = Bed().batch(samples=3 * count).select(range(0, 3 * count, 3))  # complete inputs
    return replace(batch, available=torch.tensor(available), affected=torch.tensor(affected))


def test_proxies_align_on_complete_samples_only_corrupted_ones_included() -> None:
    yes, no = [True, True], [False, False]
    assert alignment("cmpt", known([yes, yes], [no, no])) > 0.01
    assert alignment("cmpt", known([yes, yes], [yes, no])) == pytest.approx(
        alignment("cmpt", known([yes] * 2, [no] * 2))
    )
    assert alignment("cmpt", known([[True, False], [False, True]], [no, no])) == 0


def test_hidden_modalities_are_learned_from_unless_they_are_corrupted() -> None:
    yes, no, audio, vision = [True, True], [False, False], [True, False], [False, True]
    assert alignment("actionmae", known([yes, yes], [no, no])) == 0
    one, other = (
        alignment("actionmae", known([audio, yes], [no, no])),
        alignment("actionmae", known([yes, vision], [no] * 2)),
    )
    assert one > 0.01 and other > 0.01
    assert alignment("actionmae", known([audio, vision], [no, no])) == pytest.approx(one + other, rel=1e-4)
    assert alignment("actionmae", known([audio, vision], [vision, no])) == pytest.approx(other, rel=1e-4)


def test_the_view_hides_one_modality_of_a_share_of_the_complete_samples() -> None:
    batch = Bed().batch(samples=600)
    assert batch.available is not None
    view = build("actionmae", {"drop": 0.3}).view(batch, torch.Generator().manual_seed(0))
    assert view.available is not None and view.audio is batch.audio and view.affected is batch.affected
    complete = batch.available.all(dim=1)
    assert torch.equal(view.available[~complete], batch.available[~complete])
    assert bool(view.available.any(dim=1).all())
    kept = view.available[complete].float().mean(dim=0)  # 200 samples
    assert abs(float(view.available[complete].all(dim=1).float().mean()) - 0.7) < 0.1
    assert float(kept.min()) > 0.78 and float(kept.max()) < 0.92


@pytest.mark.parametrize("name", STAND_INS)
def test_what_predicts_belongs_to_no_encoder(name: str) -> None:
    method = build(name)
    streams = {method.stream(n) for n in method.trainable() if n.startswith("extra.")}
    assert streams == {None}
    within = {method.stream(n) for n in method.trainable() if n.startswith(("blocks_a.", "blocks_v."))}
    assert within == ({"a", "v"} if name == "cmpt" else set())


def test_the_proxy_of_a_modality_looks_at_the_other() -> None:
    predictor, available = part(build("cmpt"), "predictor"), torch.ones(2, 2, dtype=torch.bool)
    audio, vision = random(torch.Size((2, 5, 32))), random(torch.Size((2, 3, 32)))
    predicted = predictor(audio, vision, available)
    assert predicted.shape == (2, 2, 32)
    changed = predictor(audio + torch.arange(32.0), vision, available)
    assert torch.equal(changed[:, 0], predicted[:, 0]) and not torch.allclose(changed[:, 1], predicted[:, 1])
