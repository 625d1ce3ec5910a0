"""SSF, FacT and RepAdapter: what they do to the layers they merge into."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from beds import build
from test_methods_branch import DIM, gap, shaken, through_block, tokens

from mmbench.backbone.cavmae import MODES
from mmbench.conformance_bed import SIZES, Bed
from mmbench.data.batch import Batch


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["repadapter", "ssf", "fact"])
def test_merged_backbones_predict_the_same_in_every_mode(name: str, mode: str) -> None:
    method, batch = shaken(name), Bed().batch()
    net = method.export()
    assert net is not None
    assert set(net.state_dict()) == set(Bed().net().state_dict())
    with torch.no_grad():
        mine = method.net(batch.audio, batch.image, mode, method.hooks, batch)
        assert gap(net(batch.audio, batch.image, mode), mine) < 1e-4
        assert gap(Bed().net()(batch.audio, batch.image, mode), mine) > 1e-2


@pytest.mark.parametrize("name", ["adapter-houlsby", "adaptformer", "compacter", "convpass", "ssf-per-case", "lavish"])
def test_what_cannot_be_merged_says_so(name: str) -> None:
    assert build(name).export() is None


@pytest.mark.parametrize("name", ["ssf", "ssf-per-case", "fact"])
def test_hooked_layers_keep_the_names_of_the_backbone(name: str) -> None:
    assert set(build(name).net.state_dict()) == set(Bed().net().state_dict())


@pytest.mark.parametrize("layer", ["norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"])
def test_ssf_scales_and_shifts_what_comes_out_of_each_layer(layer: str) -> None:
    method, plain = build("ssf"), Bed().net()
    mine = method.net.blocks_u[0].get_submodule(layer)
    x = torch.randn(2, 5, 4 * DIM if layer == "mlp.fc2" else DIM, generator=torch.Generator().manual_seed(2))
    added = method.extra[f"{layer.rpartition('.')[2]}_u0"]
    expected = plain.blocks_u[0].get_submodule(layer)(x) * added.scale[0] + added.shift[0]
    assert gap(mine(x), expected) < 1e-5


def test_ssf_starts_near_the_backbone_and_not_on_it() -> None:
    scale, shift = (torch.cat([t.flatten() for n, t in build("ssf").state().items() if n.endswith(what)])
                    for what in (".scale", ".shift"))  # fmt: skip
    assert abs(float(scale.mean()) - 1) < 2e-3 and abs(float(shift.mean())) < 2e-3
    assert 0.018 < float(scale.std()) < 0.022 and 0.018 < float(shift.std()) < 0.022


def affected_each_way() -> Batch:
    """Four samples: nothing affected, audio, vision, both."""
    affected = torch.tensor([[False, False], [True, False], [False, True], [True, True]])
    return replace(Bed().batch(samples=4), affected=affected)


def test_every_sample_takes_the_set_of_what_is_affected() -> None:
    method, batch = shaken("ssf-per-case"), affected_each_way()
    state, got = method.state(), method.predict(batch)
    for row in range(4):
        single = build("ssf")
        single.load({name: t[row : row + 1] if name.startswith("extra.") else t for name, t in state.items()})
        expected = single.predict(batch)
        assert gap(got[row], expected[row]) < 1e-5
        assert all(gap(got[other], expected[other]) > 1e-3 for other in range(4) if other != row)


def test_training_on_one_case_moves_its_set_alone() -> None:
    method = build("ssf-per-case")
    method.loss(affected_each_way().select([1, 1])).total.backward()  # type: ignore[no-untyped-call]
    for name, parameter in method.trainable().items():
        if name.startswith("extra."):
            assert parameter.grad is not None
            assert [bool(row.any()) for row in parameter.grad] == [False, True, False, False]


def test_repadapter_stands_between_norm_and_layer_and_is_linear() -> None:
    adapter = shaken("repadapter").extra["attention_a0"]
    one, two, zero = tokens(3), tokens(3, seed=4), torch.zeros(2, 3, DIM)
    assert gap(adapter(one + two), adapter(one) + adapter(two) - adapter(zero)) < 1e-5
    method, x = shaken("repadapter"), tokens(SIZES.audio_tokens)
    block: Any = method.net.blocks_a[0]
    with torch.no_grad():
        between = x + block.attn(method.extra["attention_a0"](block.norm1(x)))
        between = between + block.mlp(method.extra["mlp_a0"](block.norm2(between)))
    assert gap(through_block(method, x), between) < 1e-5


def test_the_projection_up_of_repadapter_is_grouped() -> None:
    up, rng = shaken("repadapter", {"rank": 8, "groups": 2}).extra["mlp_a0"].up, torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 1, 8, generator=rng)
    touched = hidden.clone()
    touched[..., :4] += 1.0
    changed = (up(touched) - up(hidden)).abs().flatten()
    assert bool(changed[: DIM // 2].all()) and not bool(changed[DIM // 2 :].any())


def test_fact_changes_twelve_square_matrices_through_two_shared_factors() -> None:
    method, plain = shaken("fact", {"rank": 4, "scale": 0.5}), Bed().net()
    reading, writing = method.extra["factors"].reading, method.extra["factors"].writing
    merged = method.export()
    assert merged is not None
    for layer, cuts in (("attn.qkv", (3, 1)), ("attn.proj", (1, 1)), ("mlp.fc1", (4, 1)), ("mlp.fc2", (1, 4))):
        core = method.extra[f"{layer.rpartition('.')[2]}_v1"].core
        assert core.shape == (*cuts, 4, 4)
        change = merged.blocks_v[1].get_submodule(layer).weight - plain.blocks_v[1].get_submodule(layer).weight
        for row in range(cuts[0]):
            for column in range(cuts[1]):
                square = change[row * DIM : (row + 1) * DIM, column * DIM : (column + 1) * DIM]
                assert gap(square, 0.5 * writing @ core[row, column].T @ reading.T) < 1e-5


def test_only_the_cores_of_fact_belong_to_a_stream() -> None:
    method = build("fact")
    streams = {name: method.stream(name) for name in method.trainable() if name.startswith("extra.")}
    assert streams["extra.factors.reading"] is None and streams["extra.factors.writing"] is None
    assert (streams["extra.qkv_a0.core"], streams["extra.fc2_v1.core"], streams["extra.fc1_u0.core"]) == (
        "a",
        "v",
        None,
    )
