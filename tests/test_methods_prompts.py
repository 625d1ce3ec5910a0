"""Prompt rows: where prompts act, when they are refused, and how case-wise sets become one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from beds import build, make
from test_methods_counts import count, on_meta
from torch import Tensor

from mmbench import registry
from mmbench.backbone.cavmae import CAVMAEFT
from mmbench.backbone.config import preset
from mmbench.conformance import check_method
from mmbench.conformance_bed import SIZES, Bed, train
from mmbench.data.batch import Batch
from mmbench.errors import ConfigError, RefusedError, UnknownNameError
from mmbench.method import Method, Recipe

ATTENTION_LEVEL = ("prompt-the-missing", "prompt-attention", "prompt-zero")


def part(method: Method, name: str) -> Any:
    """A module that the method added."""
    return method.extra.get_submodule(name)


def on(net: CAVMAEFT, name: str, **options: object) -> Method:
    kind: type[Method] = registry.methods().load(name)
    return kind(net, Recipe(), options, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ATTENTION_LEVEL)
def test_attention_level_prompts_are_refused_where_they_cannot_act(name: str) -> None:
    with pytest.raises(RefusedError, match="fusion: none"):
        on(Bed(replace(SIZES, fusion="none")).net(), name)
    with pytest.raises(RefusedError, match="gates are still closed"):
        on(CAVMAEFT(SIZES), name)


def test_input_level_prompts_need_no_fusion() -> None:
    assert on(CAVMAEFT(SIZES), "prompt-input").predict(Bed().batch()).shape == (6, 4)
    assert on(CAVMAEFT(replace(SIZES, fusion="none")), "prompt-the-missing", position="input").trainable()


def test_the_position_decides_whether_gradients_cross_the_encoders() -> None:
    for name, crosses in (("prompt-input", True), ("prompt-the-missing", True), ("prompt-attention", False)):
        method, batch = build(name), Bed().batch()
        seen: list[bool] = []
        block = method.net.blocks_a[0]
        block.norm2.register_forward_hook(lambda m, i, out, s=seen: s.append(out.requires_grad))  # type: ignore[union-attr]
        method.logits(batch)
        assert seen == [crosses]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"position": "middle"}, "position must be one of input, attention, both"), ({"length": 0}, "at least 1")],
)
def test_impossible_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("prompt-the-missing", options)


@pytest.mark.parametrize("options", [{"length": "16"}, {"length": True}, {"length": 1.5}])
def test_options_of_another_type_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="option length of prompt-input must be int"):
        build("prompt-input", options)


def test_an_unknown_option_is_offered_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean: length"):
        build("prompt-input", {"lenght": 4})


def test_four_case_sets_side_by_side_are_four_times_as_many_tokens() -> None:
    method = build("prompt-the-missing", {"length": 2})
    states = []
    for seed in range(4):
        other = build("prompt-the-missing", {"length": 2}, seed=seed)
        train(other, Bed(), steps=1)
        states.append(other.state())
    combined = method.combine(states)
    assert combined is not None
    for modality in ("a", "v"):
        each = [state[f"extra.prompts.{modality}"] for state in states]
        assert torch.equal(combined[f"extra.prompts.{modality}"], torch.cat(each))
    mean = torch.stack([state["mlp_head.1.bias"] for state in states]).mean(dim=0)
    assert torch.equal(combined["mlp_head.1.bias"], mean)


def test_frozen_prompts_do_not_move_and_travel_with_the_state() -> None:
    method = build("prompt-zero")
    before = method.state()
    train(method, Bed())
    after = method.state()
    assert torch.equal(before["extra.prompts.a"], after["extra.prompts.a"])
    assert not torch.equal(before["mlp_head.1.bias"], after["mlp_head.1.bias"])
    assert method.combine((before, after)) is None


@pytest.mark.parametrize("name", ["prompt-the-missing", "lora-qv", "adapter-houlsby"])
def test_a_state_of_another_method_is_refused_by_name(name: str) -> None:
    method = build(name)
    with pytest.raises(ConfigError, match=f"state does not belong to {name}"):
        method.load(build("full-finetune").state())


def test_a_method_without_tensors_of_its_own_predicts_as_the_backbone() -> None:
    class Nothing(Method):
        card = registry.methods().card("source")

    method, batch = make(Nothing), Bed().batch()
    assert method.state() == {} and method.trainable() == {}
    with torch.no_grad():
        assert torch.equal(method.predict(batch), Bed().net().eval()(batch.audio, batch.image))


def test_missing_mode_leaves_out_the_absent_modality() -> None:
    method, batch = build("missing-mode"), Bed().batch()
    noisy = replace(batch, audio=torch.where(batch.available[:, :1, None], batch.audio, 1e3))  # type: ignore[index]
    assert torch.equal(method.predict(noisy), method.predict(batch))
    net = Bed().net().eval()
    with torch.no_grad():
        only_image = net(None, batch.image[1:2], mode="missingvideoonly")
        both = net(batch.audio[:1], batch.image[:1])
    assert float((method.predict(batch)[1] - only_image[0]).abs().max()) < 1e-5
    assert float((method.predict(batch)[0] - both[0]).abs().max()) < 1e-5


# Where prompts enter


@contextmanager
def block_inputs(method: Method, stream: str) -> Iterator[list[Tensor]]:
    """What the encoder blocks of a stream are given."""
    seen: list[Tensor] = []
    blocks = method.net.get_submodule(f"blocks_{stream}")
    handles = [
        block.norm1.register_forward_pre_hook(lambda m, args: seen.append(args[0].detach()))  # type: ignore[union-attr]
        for block in blocks.children()
    ]
    yield seen
    for handle in handles:
        handle.remove()


def sizes(name: str, **options: object) -> list[int]:
    """Tokens before each audio block, the stream's own apart."""
    method = build(name, options)
    with block_inputs(method, "a") as seen:
        method.predict(Bed().batch())
    return [x.shape[1] - SIZES.audio_tokens for x in seen]


def test_prompts_stay_are_replaced_accumulate_or_stand_in_keys_and_values() -> None:
    assert sizes("vpt-shallow", length=3) == sizes("vpt-deep", length=3) == [3, 3]
    assert sizes("map-input", length=4) == sizes("msp", length=4) == [4, 8]
    assert sizes("map-input", length=4, layers=1) == [4, 4]
    assert sizes("map-attention", length=4) == [0, 0]
    assert sizes("dcp", length=6) == [6, 6]


@pytest.mark.parametrize(("name", "fresh"), [("vpt-deep", True), ("vpt-shallow", False), ("prompt-input", True)])
@pytest.mark.parametrize("stream", ["a", "v"])
def test_deep_prompts_are_fresh_at_every_block(name: str, fresh: bool, stream: str) -> None:
    method = build(name, {"length": 3, **({"layers": 2} if name == "prompt-input" else {})})
    prompts = part(method, "prompts")
    assert set(prompts.keys()) == ({"a", "v", "a1", "v1"} if fresh else {"a", "v"})
    with block_inputs(method, stream) as seen:
        method.predict(Bed().batch())
    assert torch.equal(seen[0][:, :3], prompts[stream].expand(6, 3, -1))
    if fresh:
        assert torch.equal(seen[1][:, :3], prompts[f"{stream}1"].expand(6, 3, -1))


def test_half_of_an_attention_prompt_stands_before_the_keys_and_half_before_the_values() -> None:
    method, batch = build("map-attention", {"length": 4}), replace(Bed().batch(), affected=torch.zeros(6, 2).bool())
    k, v = (torch.randn(6, 2, 5, 16, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    edited_k, edited_v = method.hooks.attn_kv("v", 1, k, v, batch)
    prompt = part(method, "bank")["v"][0, 1]  # (4, 32) of the complete case, second block
    for edited, plain, half in ((edited_k, k, prompt[:2]), (edited_v, v, prompt[2:])):
        assert torch.equal(edited[:, :, 2:], plain)
        assert torch.equal(edited[3, :, :2].transpose(0, 1).reshape(2, 32), half)
    assert method.hooks.attn_kv("u", 0, k, v, batch) == (k, v)


def test_vpt_draws_from_the_range_of_its_paper() -> None:
    bound = (6 / (3 * 16**2 + 32)) ** 0.5
    values = torch.cat([p.detach().flatten() for p in part(build("vpt-deep"), "prompts").values()])
    assert 0.97 * bound < float(values.abs().max()) <= bound
    assert float(values.var()) == pytest.approx(bound**2 / 3, rel=0.1)


# Which prompts a sample gets


def every_case() -> Batch:
    """Eight samples, two of each combination of what is affected; one of the last two is corrupted, not absent."""
    batch = Bed().batch(samples=24).select(range(0, 24, 3))
    affected = torch.tensor(list(itertools.product([False, True], repeat=2))).repeat(2, 1)
    return replace(batch, affected=affected, available=~affected | affected.all(dim=1, keepdim=True))


@pytest.mark.parametrize(
    ("name", "bank"), [("map-input", "bank"), ("map-attention", "bank"), ("dcp", "prompts.static")]
)
@pytest.mark.parametrize("stream", ["a", "v"])
def test_each_sample_of_a_mixed_batch_gets_the_prompts_of_its_case(name: str, bank: str, stream: str) -> None:
    method, batch = build(name), every_case()
    assert batch.affected is not None
    case = batch.affected[:, 0].long() + 2 * batch.affected[:, 1].long()
    before = method.predict(batch)
    for row in range(4):
        prompts = part(method, bank)[stream]
        kept = prompts.data.clone()
        prompts.data[row] += torch.arange(prompts.shape[-1]) / 10
        moved = (method.predict(batch) - before).abs().amax(dim=1)
        assert torch.equal(moved > 1e-5, case == row)
        prompts.data = kept
        rows = (case == row).nonzero().flatten()
        assert torch.allclose(method.predict(batch.select(rows)), before[rows], atol=1e-5)


def test_modality_sets_add_up_for_complete_samples() -> None:
    method, batch = build("msp"), replace(every_case(), affected=None)
    batch = replace(batch, available=torch.tensor([[True, True], [True, False], [False, True], [True, True]] * 2))
    before, bank = method.predict(batch), part(method, "bank")
    for row, takes in ((0, batch.available[:, 0]), (1, batch.available[:, 1])):  # type: ignore[index]
        kept = {m: bank[m].data.clone() for m in ("a", "v")}
        bank["a"].data[row] += torch.arange(32) / 10
        moved = (method.predict(batch) - before).abs().amax(dim=1)
        assert torch.equal(moved > 1e-5, takes)
        bank["a"].data = kept["a"]
    sums = build("msp")
    for m in ("a", "v"):
        part(sums, "bank")[m].data[0] = bank[m].data.sum(dim=0)
    alone = replace(batch, available=torch.tensor([[True, False]] * 8))
    assert torch.allclose(sums.predict(alone)[[0, 3]], before[[0, 3]], atol=1e-6)


def test_overlapping_modality_sets_cost() -> None:
    batch, costs = Bed().batch(), []
    for change in ("same", "opposite", "orthogonal"):
        on, off = build("msp"), build("msp", {"orthogonality": 0.0})
        for method, m in itertools.product((on, off), ("a", "v")):
            bank = part(method, "bank")[m].data
            bank[1] = {"same": bank[0], "opposite": -bank[0], "orthogonal": bank[0]}[change]
            if change == "orthogonal":
                bank[0, ..., ::2], bank[1, ..., 1::2] = 0, 0
        with torch.no_grad():
            costs.append(float(on.loss(batch).total - off.loss(batch).total))
    assert costs == pytest.approx([1.0, 1.0, 0.0], abs=1e-5)


# Deep correlated prompting


def test_static_prompts_of_a_block_come_from_both_modalities_below() -> None:
    method, batch = build("dcp", {"length": 6}), every_case()
    prompts = part(method, "prompts")

    def audio_prefixes() -> list[Tensor]:
        with block_inputs(method, "a") as seen:
            method.predict(batch)
        return [x[:, :6] for x in seen]

    before = audio_prefixes()
    prompts.static["v"].data[0] += torch.arange(32) / 10  # of complete samples
    after = audio_prefixes()
    assert torch.equal(after[0], before[0])
    moved = (after[1] - before[1]).abs().amax(dim=2)  # (B, 6)
    assert bool((moved[[0, 4], :2] > 1e-4).all()) and float(moved[:, 2:4].max()) == 0
    assert float(moved[[1, 2, 3, 5, 6, 7], :2].max()) == 0


def test_dynamic_prompts_alone_differ_between_samples_of_one_case() -> None:
    method, batch = build("dcp", {"length": 6}), every_case()
    with block_inputs(method, "v") as seen:
        method.predict(batch)
    for x in seen:
        same = (x[0, :6] - x[4, :6]).abs().amax(dim=1) < 1e-6
        assert same.tolist() == [True] * 4 + [False] * 2


def test_an_absent_input_is_zeroed_before_fusion() -> None:
    method, batch = build("dcp"), Bed().batch()
    other = replace(batch, audio=torch.where(batch.available[:, :1, None], batch.audio, 3.0))  # type: ignore[index]
    assert torch.equal(method.predict(other), method.predict(batch))


# Counts and options


@pytest.mark.parametrize(
    ("name", "options", "published"),
    [
        ("vpt-shallow", {}, 24_576),
        ("vpt-deep", {}, 270_336),
        ("map-input", {}, 2 * 294_912),
        ("map-attention", {}, 2 * 294_912),
        ("map-input", {"layers": 99}, 2 * 4 * 11 * 16 * 768),
        ("msp", {}, 2 * 147_456),
        ("dcp", {}, 2_981_184),
        ("prompt-the-missing", {}, 24_576),
        ("prompt-the-missing", {"layers": 11, "length": 4}, 11 * 6_144),
        ("prompt-attention", {}, 24_576),
        ("prompt-zero", {}, 0),
    ],
)
def test_counts_on_the_published_model(name: str, options: dict[str, object], published: int) -> None:
    assert count(on_meta(name, preset("cavmae-base"), **options)) == published


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("map-attention", {"length": 3}, "length of map-attention must be even"),
        ("dcp", {"length": 16}, "multiple of 3"),
        ("dcp", {"reduction": 33}, "more than the width 32"),
        ("prompt-input", {"layers": 3}, "layers is 3, but each encoder has 2 blocks"),
        ("prompt-the-missing", {"layers": 2, "position": "attention"}, "no prompts in the encoders"),
    ],
)
def test_options_that_do_not_fit_are_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name, options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("prompt-the-missing", {"layers": 2, "length": 3}),
        ("map-input", {"layers": 1, "length": 3}),
        ("dcp", {"layers": 1, "length": 3, "reduction": 4}),
    ],
)
def test_rules_hold_with_other_options(name: str, options: dict[str, object]) -> None:
    assert [finding.message for finding in check_method(name, options=options) if not finding.ok] == []


def test_one_layer_is_what_it_was_and_more_combine_like_it() -> None:
    assert set(build("prompt-the-missing").state()) >= {"extra.prompts.a", "extra.prompts.v"}
    one, two = (build("prompt-the-missing", {"layers": 2, "length": 3}, seed=seed) for seed in (0, 1))
    combined = one.combine((one.state(), two.state()))
    assert combined is not None
    one.load(combined)
    with block_inputs(one, "v") as seen:
        one.predict(Bed().batch())
    assert torch.equal(seen[1][0, :6], combined["extra.prompts.v1"])


def test_a_fusion_in_one_direction_has_attention_prompts_for_vision_alone() -> None:
    bed = Bed(replace(SIZES, fusion="one-way"))
    attention, both = on(bed.net(), "prompt-attention"), on(bed.net(), "prompt-the-missing")
    assert set(part(attention, "prompts").keys()) == {"v"} and set(part(both, "prompts").keys()) == {"a", "v"}
    before = attention.predict(bed.batch())
    part(attention, "prompts")["v"].data += torch.arange(32) / 10
    assert not torch.allclose(attention.predict(bed.batch()), before)
    assert [f.message for f in check_method("prompt-attention", bed) if not f.ok] == []
