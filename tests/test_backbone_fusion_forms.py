"""Fusion in one direction: what attends to what, what is counted, and that it opens, saves and prompts like others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

from mmbench.backbone.cavmae import CAVMAEFT
from mmbench.backbone.checkpoint import load_backbone, save_backbone
from mmbench.backbone.config import BackboneConfig, Fusion, preset
from mmbench.config import BackboneSpec
from mmbench.conformance_bed import SIZES, Bed
from mmbench.errors import ConfigError
from mmbench.source import open_gates

ONE_WAY = replace(SIZES, fusion="one-way")


def streams(seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return (
        torch.randn(2, SIZES.audio_tokens, SIZES.embed_dim, generator=rng),
        torch.randn(2, SIZES.vision_tokens, SIZES.embed_dim, generator=rng),
    )


def test_audio_attends_to_vision_and_not_the_other_way() -> None:
    net, (audio, vision), (other_audio, other_vision) = Bed(ONE_WAY).net(), streams(), streams(1)
    fused_a, fused_v = net.fusion(audio, vision)
    assert torch.equal(net.fusion(other_audio, vision)[1], fused_v)
    assert not torch.allclose(net.fusion(audio, other_vision)[0], fused_a)


def test_the_audio_side_is_that_of_the_gated_form() -> None:
    gated, one_way, (audio, vision) = Bed().net(), CAVMAEFT(ONE_WAY), streams()
    shared = {n: t for n, t in gated.state_dict().items() if "v_to_a" not in n and not n.endswith("gate_cross_v")}
    one_way.load_state_dict(shared)
    assert torch.equal(one_way.fusion(audio, vision)[0], gated.fusion(audio, vision)[0])


def test_a_fresh_block_is_the_identity_and_opens_at_all_its_gates() -> None:
    net, (audio, vision) = CAVMAEFT(ONE_WAY), streams()
    assert all(torch.equal(out, x) for out, x in zip(net.fusion(audio, vision), (audio, vision), strict=True))
    open_gates(net)
    gates = {name: float(p.detach()) for name, p in net.named_parameters() if "gate_" in name}
    assert len(gates) == 5 and all(value > 0 for value in gates.values())
    assert not torch.allclose(net.fusion(audio, vision)[1], vision)


def test_prompts_exist_for_the_keys_of_vision_alone() -> None:
    net, (audio, vision) = Bed(ONE_WAY).net(), streams()
    prompt = torch.randn(3, SIZES.embed_dim, generator=torch.Generator().manual_seed(2))
    plain, prompted = net.fusion(audio, vision), net.fusion(audio, vision, prompt_v=prompt)
    assert not torch.allclose(prompted[0], plain[0]) and torch.equal(prompted[1], plain[1])
    with pytest.raises(ConfigError, match="no vision queries"):
        net.fusion(audio, vision, prompt_a=prompt)


@pytest.mark.parametrize("fusion", get_args(Fusion))
@pytest.mark.parametrize("config", [preset("cavmae-base"), preset("cavmae-tiny"), SIZES], ids=lambda c: c.name)
def test_the_symbol_of_the_fusion_counts_what_lives_in_it(config: BackboneConfig, fusion: Fusion) -> None:
    sizes = replace(config, fusion=fusion)
    with torch.device("meta"):
        net = CAVMAEFT(sizes)
    alive = net.live_parameter_names()
    counted = sum(p.numel() for n, p in net.named_parameters() if n.startswith("blocks_fu.") and n in alive)
    assert sizes.symbols()["F"] == counted
    directions = {"none": 0, "one-way": 1, "gated": 2, "as-published": 2}
    assert sizes.symbols()["X"] == directions[fusion]


def test_every_tensor_of_it_receives_a_gradient() -> None:
    net, batch = Bed(ONE_WAY).net(), Bed().batch()
    net(batch.audio, batch.image).square().sum().backward()
    moved = {name for name, parameter in net.named_parameters() if parameter.grad is not None}
    assert net.live_parameter_names() == moved


def test_it_is_saved_and_loaded_like_any_backbone(tmp_path: Path) -> None:
    net, batch = Bed(ONE_WAY).net(), Bed().batch()
    save_backbone(net, tmp_path, {})
    loaded, meta = load_backbone(tmp_path)
    assert meta.config.fusion == "one-way"
    with torch.no_grad():
        assert torch.equal(loaded.eval()(batch.audio, batch.image), net.eval()(batch.audio, batch.image))


def test_suites_name_it() -> None:
    assert BackboneSpec(fusion="one-way").title == "cavmae-tiny (fusion one-way)"
