"""Prompt rows: where prompts act, when they are refused, and how case-wise sets become one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from beds import build, make

from mmbench import registry
from mmbench.backbone.cavmae import CAVMAEFT
from mmbench.conformance_bed import SIZES, Bed, train
from mmbench.errors import ConfigError, RefusedError, UnknownNameError
from mmbench.method import Method, Recipe

ATTENTION_LEVEL = ("prompt-the-missing", "prompt-attention", "prompt-zero")


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
