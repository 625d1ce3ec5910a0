"""The backbone from the outside: sizes, modes, hooks, fusion, refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mmbench.backbone.blocks import BlockCall
from mmbench.backbone.cavmae import CAVMAEFT, MODES, count_parameters
from mmbench.backbone.config import PRESETS, BackboneConfig, preset
from mmbench.backbone.fusion import GatedFusion, PublishedFusion
from mmbench.backbone.hooks import Hooks
from mmbench.backbone.pretrain import CAVMAE, PretrainSettings, draw_noise
from mmbench.errors import ConfigError, UnknownNameError

TINY = preset("cavmae-tiny")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model_of(config: BackboneConfig = TINY) -> CAVMAEFT:
    return CAVMAEFT(config, seeded()).double()


def inputs(batch: int = 3) -> tuple[Tensor, Tensor]:
    audio = torch.randn(batch, TINY.frames, TINY.mel_bins, generator=seeded(1), dtype=torch.float64)
    return audio, torch.randn(batch, 3, TINY.image_size, TINY.image_size, generator=seeded(2), dtype=torch.float64)


def opened(model: CAVMAEFT, gate: float = 0.5) -> CAVMAEFT:
    """The same model with every gate of its fusion block open."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".gate_" in name:
                parameter.fill_(gate)
    return model


# Sizes and names


@pytest.mark.parametrize(("n_classes", "parameters"), [(10, 164_509_450), (309, 164_739_381)])
def test_base_fine_tuning_model_has_the_published_size(n_classes: int, parameters: int) -> None:
    with torch.device("meta"):
        model = CAVMAEFT(preset("cavmae-base", fusion="none", n_classes=n_classes))
    assert (len(model.state_dict()), count_parameters(model)) == (478, parameters)


def test_audio_half_of_the_base_model_has_the_published_size() -> None:
    with torch.device("meta"):
        model = CAVMAEFT(preset("cavmae-base", fusion="none", n_classes=527))
    top = ("patch_embed_v", "modality_v", "pos_embed_v", "norm_v", "blocks_v")
    half = [p for name, p in model.named_parameters() if name.split(".")[0] not in top]
    assert (len(half), sum(p.numel() for p in half)) == (252, 86_129_423)


def test_base_pretraining_model_has_the_published_size() -> None:
    with torch.device("meta"):
        model = CAVMAE(preset("cavmae-base"))
    assert (len(model.state_dict()), count_parameters(model)) == (647, 191_036_160)
    assert count_parameters(model, trainable_only=True) == 190_129_920


def test_fusion_blocks_have_the_documented_size() -> None:
    with torch.device("meta"):
        published, gated = PublishedFusion(768, 12), GatedFusion(768, 12)
    assert count_parameters(published) == 21_262_848
    assert count_parameters(gated) == 21_262_848 - 2_362_368 + 6  # no dead layers, six gates


# Construction


def test_construction_depends_on_its_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (CAVMAEFT(TINY, seeded(seed)).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["blocks_a.0.mlp.fc1.weight"], other["blocks_a.0.mlp.fc1.weight"])


@pytest.mark.parametrize("build", [CAVMAEFT, CAVMAE])
@pytest.mark.parametrize("fusion", ["gated", "as-published"])
def test_every_tensor_is_initialised_as_documented(build: Any, fusion: str) -> None:
    for name, value in build(replace(TINY, fusion=fusion), seeded()).state_dict().items():
        largest, where = float(value.abs().max()), f"{name} {tuple(value.shape)}"
        if "norm" in name or name.startswith("mlp_head.0"):
            assert torch.equal(value, torch.full_like(value, float(name.endswith("weight")))), where
        elif "pos_embed" in name:
            assert torch.equal(value[0, 0], torch.arange(4).repeat_interleave(value.shape[2] // 4) % 2), where
        elif name.endswith("token") or name.startswith(("modality_", "decoder_modality_")):
            assert 0.02 < largest < 0.1 and 0.01 < float(value.std()) < 0.03, where
        elif name.startswith("patch_embed") and name.endswith("bias"):
            fan_in = 256 if "_a." in name else 768
            assert 0.8 < largest * fan_in**0.5 <= 1, where
        elif name.endswith("bias") or ".gate_" in name:
            assert largest == 0, where
        else:
            xavier = (6 / (value.shape[0] + value[0].numel())) ** 0.5
            assert 0.95 * xavier < largest <= xavier, where


# Settings


def test_settings_survive_a_round_trip() -> None:
    for config in PRESETS.values():
        assert BackboneConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"embed_dim": 65}, "multiple of heads, got 65 and 4"),
        ({"frames": 100}, "frames must be a multiple of patch_size, got 100"),
        ({"depth": 0}, "depth must be a positive integer, got 0"),
        ({"heads": 4.0}, "heads must be a positive integer, got 4.0"),
        ({"fusion": "gate"}, "no fusion 'gate'; did you mean: gated"),
        ({"dept": 3}, "no backbone setting 'dept'; did you mean: depth"),
    ],
)
def test_unusable_settings_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        preset("cavmae-tiny", **changes)


def test_unknown_backbone_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean: cavmae-tiny"):
        preset("cavmae-tyni")


# Modes and inputs


def test_unknown_mode_names_the_five() -> None:
    with pytest.raises(ConfigError, match=f"no mode 'both'; known: {', '.join(MODES)}"):
        model_of()(*inputs(), "both")


@pytest.mark.parametrize("mode", MODES)
def test_only_the_unused_input_may_be_none(mode: str) -> None:
    model, (audio, image) = model_of(), inputs()
    for present, arguments in (("audio", (audio, None)), ("video", (None, image))):
        if present in mode:
            torch.testing.assert_close(model(*arguments, mode), model(audio, image, mode), rtol=0, atol=0)
        else:
            with pytest.raises(ConfigError, match="is None, but the mode needs it"):
                model(*arguments, mode)


def test_wrong_shapes_name_expected_and_got() -> None:
    model, (audio, image) = model_of(), inputs()
    with pytest.raises(ConfigError, match=r"audio must have shape \(batch, 128, 128\), got \(3, 64, 128\)"):
        model(audio[:, :64], image)
    with pytest.raises(ConfigError, match=r"image must have shape \(batch, 3, 64, 64\), got \(3, 3, 64, 48\)"):
        model(audio, image[..., :48])


@pytest.mark.parametrize("mode", MODES)
def test_a_sample_alone_equals_the_sample_in_a_batch(mode: str) -> None:
    model, (audio, image) = opened(model_of()), inputs()
    alone = model(audio[1:2], image[1:2], mode)
    torch.testing.assert_close(alone[0], model(audio, image, mode)[1], rtol=1e-12, atol=1e-12)


# Fusion


def test_a_fresh_gated_fusion_changes_no_bit() -> None:
    gated = CAVMAEFT(TINY, seeded())
    plain = CAVMAEFT(replace(TINY, fusion="none"), seeded())
    plain.load_state_dict({name: gated.state_dict()[name] for name in plain.state_dict()})
    audio, image = (x.float() for x in inputs())
    assert torch.equal(gated(audio, image), plain(audio, image))


def test_each_gate_opens_its_own_branch() -> None:
    model, (audio, image) = model_of(), inputs()
    gates = [parameter for name, parameter in model.named_parameters() if ".gate_" in name]
    model.mlp_head[1].weight.data.normal_(generator=seeded())
    closed, moves = model(audio, image), []
    for gate in gates:
        gate.data.fill_(1.0)
        moves.append((model(audio, image) - closed).abs().max().item())
        gate.data.zero_()
    assert len(gates) == 6
    assert all(move > 1e-6 for move in moves)
    assert len({round(move, 12) for move in moves}) == 6


@pytest.mark.parametrize("fusion", ["none", "gated", "as-published"])
def test_live_parameters_are_those_that_receive_a_gradient(fusion: str) -> None:
    model = model_of(replace(TINY, fusion=fusion))  # type: ignore[arg-type]
    model(*inputs()).square().sum().backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert model.live_parameter_names() == moved
    assert any(name.startswith("blocks_fu.") for name in moved) == (fusion != "none")


def test_a_fusion_prompt_reaches_the_other_stream_only() -> None:
    model = opened(model_of())
    audio, vision = model.encode(*inputs())
    prompt = torch.randn(2, TINY.embed_dim, generator=seeded(), dtype=torch.float64)
    plain_a, plain_v = model.fusion(audio, vision)
    prompted_a, prompted_v = model.fusion(audio, vision, prompt_a=prompt)
    assert prompted_a.shape == audio.shape and prompted_v.shape == vision.shape
    assert torch.equal(prompted_a, plain_a)
    assert not torch.allclose(prompted_v, plain_v)
    batched = model.fusion(audio, vision, prompt_a=prompt.expand(3, -1, -1))
    assert torch.equal(batched[1], prompted_v)


def test_prompts_without_a_fusion_block_are_refused() -> None:
    model = model_of(replace(TINY, fusion="none"))
    audio, vision = model.encode(*inputs())
    with pytest.raises(ConfigError, match="fusion is 'none'"):
        model.fusion(audio, vision, prompt_v=audio[0])


def test_published_fusion_depends_on_its_companions() -> None:
    """The defect is kept under its own name; this is what the gated form repairs."""
    model, (audio, image) = model_of(replace(TINY, fusion="as-published")), inputs()
    model.mlp_head[1].weight.data.normal_(generator=seeded())
    assert (model(audio[:1], image[:1]) - model(audio, image)[:1]).abs().max() > 1e-6


# Hooks


class Prefixed(Hooks):
    """Two prefix tokens on each stream; records how many tokens each place sees."""

    def __init__(self) -> None:
        self.sizes: dict[str, list[int]] = {"a": [], "v": [], "u": [], "pool": []}

    def tokens(self, modality: str, x: Tensor, batch: Any) -> tuple[Tensor, int]:
        return torch.cat([torch.full_like(x[:, :2], 0.5), x], dim=1), 2

    def block(self, modality: str, index: int, block: BlockCall, x: Tensor, batch: Any, other: Tensor | None) -> Tensor:
        self.sizes[modality].append(x.shape[1])
        return super().block(modality, index, block, x, batch, other)

    def pool(self, x: Tensor, batch: Any) -> Tensor:
        self.sizes["pool"].append(x.shape[1])
        return super().pool(x, batch)


@pytest.mark.parametrize("mode", MODES)
def test_prefix_tokens_act_in_the_encoders_and_are_dropped_after(mode: str) -> None:
    model, (audio, image), hooks = model_of(), inputs(), Prefixed()
    changed = model(audio, image, mode, hooks)
    assert not torch.allclose(changed, model(audio, image, mode))
    tokens_a, tokens_v = (0 if "video" in mode else 64), (0 if "audio" in mode else 16)
    passes = 2 if "missing" in mode else 1
    assert hooks.sizes["a"] == ([66] * 3 if tokens_a else [])
    assert hooks.sizes["v"] == ([18] * 3 if tokens_v else [])
    assert hooks.sizes["u"] == hooks.sizes["pool"] == [tokens_a + tokens_v] * passes


class ByBranches(Hooks):
    """The plain block, written out of its two branches as an adapter does; keeps what it was given."""

    def __init__(self) -> None:
        self.before: dict[tuple[str, int], Tensor] = {}
        self.others: dict[tuple[str, int], Tensor | None] = {}
        self.batches: list[Any] = []

    def block(self, modality: str, index: int, block: BlockCall, x: Tensor, batch: Any, other: Tensor | None) -> Tensor:
        self.before[modality, index], self.others[modality, index] = x, other
        self.batches.append(batch)
        x = x + block.attend(x)
        return x + block.feed(x)


@pytest.mark.parametrize("mode", MODES)
def test_a_block_out_of_its_branches_equals_the_plain_one(mode: str) -> None:
    model, (audio, image), hooks = model_of(), inputs(), ByBranches()
    with torch.no_grad():
        for parameter in model.parameters():  # plain and modality norms must differ for this to tell them apart
            parameter.add_(torch.randn(parameter.shape, generator=seeded(7), dtype=torch.float64), alpha=0.05)
    assert torch.equal(model(audio, image, mode, hooks, batch="b"), model(audio, image, mode))
    assert set(hooks.batches) == {"b"}


def test_encoders_run_in_lock_step() -> None:
    model, hooks = model_of(), ByBranches()
    model(*inputs(), hooks=hooks)
    for index in range(TINY.depth):
        assert hooks.others["a", index] is hooks.before["v", index]
        assert hooks.others["v", index] is hooks.before["a", index]
    assert hooks.others["u", 0] is None


class KeyValuePrefix(Hooks):
    """One more key and value in every attention, in front."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def attn_kv(self, modality: str, index: int, k: Tensor, v: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        self.calls.append((modality, index))
        assert k.shape == v.shape and k.shape[:2] == (3, TINY.heads)
        return torch.cat([k[:, :, :1], k], dim=2), torch.cat([torch.ones_like(v[:, :, :1]), v], dim=2)


def test_keys_and_values_can_be_extended_everywhere() -> None:
    model, (audio, image), hooks = model_of(), inputs(), KeyValuePrefix()
    changed = model(audio, image, hooks=hooks)
    assert sorted(hooks.calls) == [("a", 0), ("a", 1), ("a", 2), ("u", 0), ("v", 0), ("v", 1), ("v", 2)]
    assert changed.shape == (3, TINY.n_classes)
    assert not torch.allclose(changed, model(audio, image))


class Swapped(Hooks):
    """Replaces fusion and pooling."""

    def fuse(self, net: CAVMAEFT, audio: Tensor, vision: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(audio), vision

    def pool(self, x: Tensor, batch: Any) -> Tensor:
        return torch.zeros_like(x[:, 0])


def test_fusion_and_pooling_can_be_replaced() -> None:
    model, (audio, image) = model_of(), inputs()
    assert torch.equal(model.pooled(audio, image, hooks=Swapped()), torch.zeros(3, TINY.embed_dim).double())


def test_replaced_linears_are_looked_up_at_call_time() -> None:
    model, (audio, image) = model_of(), inputs()
    before = model(audio, image)
    old = model.blocks_v[1].attn.qkv
    model.blocks_v[1].attn.qkv = torch.nn.Sequential(old, torch.nn.Dropout(1.0))
    assert not torch.allclose(model(audio, image), before)


def test_frozen_parts_before_the_first_trainable_tensor_keep_no_graph() -> None:
    class Watch(Hooks):
        def fuse(self, net: CAVMAEFT, audio: Tensor, vision: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
            assert not audio.requires_grad and not vision.requires_grad
            return super().fuse(net, audio, vision, batch)

    model = model_of().requires_grad_(False)
    model.blocks_u.requires_grad_(True)
    assert model(*inputs(), hooks=Watch()).requires_grad


# Pre-training


def removed(mask: Tensor) -> Tensor:
    return mask.reshape(-1, *TINY.audio_grid).bool()


@pytest.mark.parametrize("kind", ["time", "freq", "tf", "unstructured"])
def test_audio_masks_remove_what_they_name(kind: Any) -> None:
    settings = PretrainSettings(audio_mask=kind)
    audio, image = (x.float() for x in inputs())
    noise = draw_noise(TINY, settings, 3, seeded())
    losses = CAVMAE(TINY, seeded())(audio, image, noise, settings)
    gone = removed(losses.audio_mask)  # (B, 8, 8)
    assert gone.sum(dim=(1, 2)).tolist() == [48, 48, 48]
    columns, rows = gone.all(dim=1).sum(dim=1).tolist(), gone.all(dim=2).sum(dim=1).tolist()
    if kind == "time":
        assert columns == [6, 6, 6]
    elif kind == "freq":
        assert rows == [6, 6, 6]
    elif kind == "tf":
        assert min(columns) >= 3 and min(rows) >= 3
    else:
        assert max(columns + rows) < 6


def test_a_part_with_weight_zero_is_skipped() -> None:
    model, (audio, image) = CAVMAE(TINY, seeded()), (x.float() for x in inputs())
    noise = draw_noise(TINY, PretrainSettings(), 3, seeded())
    contrast = model(audio, image, noise, PretrainSettings(mae_weight=0))
    assert contrast.mae is None and contrast.total == contrast.contrast
    mae = model(audio, image, noise, PretrainSettings(contrast_weight=0))
    assert mae.contrast is None and mae.contrast_accuracy is None and mae.total == mae.mae


def test_unusable_pretraining_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="vision_mask_ratio must be in"):
        PretrainSettings(vision_mask_ratio=1.0)
    with pytest.raises(UnknownNameError, match="no audio mask 'times'; did you mean: time"):
        PretrainSettings(audio_mask="times")  # type: ignore[arg-type]
