"""Golden parity of the backbone: every array of the reference files, in float64 and, at base size, in float32."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import golden
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmbench.backbone.cavmae import CAVMAEFT, MODES
from mmbench.backbone.config import BackboneConfig
from mmbench.backbone.fusion import PublishedFusion
from mmbench.backbone.hooks import Hooks
from mmbench.backbone.positions import sincos_positions
from mmbench.backbone.pretrain import (
    CAVMAE,
    MaskNoise,
    PretrainSettings,
    audio_patches,
    contrastive_loss,
    hide,
    mae_loss,
    patches,
)

SMALL = BackboneConfig("golden", 48, 4, fusion="none", decoder_dim=32, decoder_depth=2, decoder_heads=4)
TINY = replace(SMALL, frames=256, image_size=64)
CONFIGS = {
    "tiny": TINY,
    "tiny_depth9": replace(TINY, depth=9, joint_depth=3),
    "small": SMALL,
    "base": BackboneConfig(fusion="none"),
}
BATCH = {"tiny": 4, "tiny_depth9": 4, "small": 3, "base": 3}
DTYPE = {"base": torch.float32}
TOLERANCE = {"base": 1e-4}
TAGS = ["tiny", "tiny_depth9", "small", pytest.param("base", marks=pytest.mark.slow)]


def dtype_of(tag: str) -> torch.dtype:
    return DTYPE.get(tag, torch.float64)


def check(tag: str, got: Tensor, expected: Any, what: str) -> None:
    golden.assert_close(got, expected, TOLERANCE.get(tag, 1e-6), f"{tag} {what}")


@cache
def inputs(tag: str) -> tuple[Tensor, Tensor]:
    config, batch = CONFIGS[tag], BATCH[tag]
    audio, image = golden.audio(batch, config.frames), golden.image(batch, config.image_size)
    return audio.to(dtype_of(tag)), image.to(dtype_of(tag))


def tuned(tag: str, n_classes: int = 10) -> CAVMAEFT:
    model = golden.fill(CAVMAEFT(replace(CONFIGS[tag], n_classes=n_classes))).to(dtype_of(tag)).eval()
    assert isinstance(model, CAVMAEFT)
    return model


class Stages(Hooks):
    """Records sample 0 of the stages that the golden file holds."""

    def __init__(self) -> None:
        self.seen: dict[str, Tensor] = {}
        self.pooled: list[Tensor] = []

    def block(self, modality: str, index: int, block: Any, x: Tensor, batch: Any, other: Tensor | None) -> Tensor:
        out = super().block(modality, index, block, x, batch, other)
        if index == 0 and modality != "u":
            self.seen[f"embed_{modality}"] = x[0]
        if (modality, index) == ("a", 0):
            self.seen["block_a0"] = out[0]
        self.seen["joint_out" if modality == "u" else f"blocks_{modality}_out"] = out[0]
        return out

    def pool(self, x: Tensor, batch: Any) -> Tensor:
        self.seen["norm_out"] = x[0]
        self.pooled.append(super().pool(x, batch))
        return self.pooled[-1]


def pooled_by_mode(tag: str, model: CAVMAEFT) -> dict[str, Tensor]:
    """Head inputs of the single-modality modes; at base size the plain ones are taken from inside the missing ones."""
    result = {}
    for modality in ("audio", "video"):
        parts = Stages()
        result[f"missing{modality}only"] = model.pooled(*inputs(tag), f"missing{modality}only", parts)
        plain = parts.pooled[0] if tag == "base" else model.pooled(*inputs(tag), f"{modality}only")
        result[f"{modality}only"] = plain
    return result


@pytest.mark.parametrize("tag", TAGS)
@torch.no_grad()
def test_fine_tuning_model_matches(tag: str) -> None:
    expected, model, (audio, image) = golden.load(f"cavmae_{tag}_ft"), tuned(tag), inputs(tag)
    stages = Stages()
    pooled = {"multimodal": model.pooled(audio, image, hooks=stages)} | pooled_by_mode(tag, model)
    for mode in MODES:
        check(tag, model.mlp_head(pooled[mode]), expected[f"logits10_{mode}"], mode)
    check(tag, pooled["multimodal"], expected["stage_pooled"], "pooled")
    for name, values in stages.seen.items():
        rows = torch.from_numpy(expected[f"stage_{name}_tokens"]).long()
        check(tag, values[rows], expected[f"stage_{name}"], name)
    for name, feature in zip("av", model.forward_feat(audio, image), strict=True):
        check(tag, feature[:, :4], expected[f"feat_{name}_first4"], f"feat_{name}")
        check_summary(tag, feature, expected, f"feat_{name}")
    wide = golden.weight("mlp_head.1.weight", (309, CONFIGS[tag].embed_dim)).to(dtype_of(tag))
    bias = golden.weight("mlp_head.1.bias", (309,)).to(dtype_of(tag))
    for mode in MODES:
        logits = F.linear(model.mlp_head[0](pooled[mode]), wide, bias)
        check(tag, logits, expected[f"logits309_{mode}"], f"{mode} of 309 classes")


@pytest.mark.parametrize("tag", ["tiny", "tiny_depth9", "small"])
@torch.no_grad()
def test_single_precision_logits_match(tag: str) -> None:
    expected, model = golden.load(f"cavmae_{tag}_ft"), tuned(tag).float()
    audio, image = (x.float() for x in inputs(tag))
    for mode in MODES:
        golden.assert_close(model(audio, image, mode), expected[f"logits10_{mode}"], 1e-5, f"{tag} {mode}")


def check_summary(tag: str, x: Tensor, expected: dict[str, Any], name: str) -> None:
    check(tag, torch.stack([x.mean(), x.std()]), expected[f"{name}_meanstd"], f"{name} mean and std")
    if f"{name}_pooled" in expected:
        check(tag, x.mean(dim=1), expected[f"{name}_pooled"], f"{name} pooled")


@pytest.mark.parametrize("tag", TAGS)
@torch.no_grad()
def test_pretraining_model_matches(tag: str) -> None:
    config, expected = CONFIGS[tag], golden.load(f"cavmae_{tag}_pretrain")
    model = golden.fill(CAVMAE(config)).to(dtype_of(tag)).eval()
    assert isinstance(model, CAVMAE)
    audio, image = inputs(tag)
    tokens = (("audio", config.audio_tokens), ("video", config.vision_tokens))
    noise = MaskNoise(*(golden.mask_noise(name, BATCH[tag], count) for name, count in tokens))
    encoded = model.encode(audio, image, noise, PretrainSettings())
    for name, masked in (("a", encoded.audio_mask), ("v", encoded.vision_mask)):
        np.testing.assert_array_equal(masked.mask.numpy(), expected[f"mask_{name}"])
        np.testing.assert_array_equal(masked.restore.numpy(), expected[f"ids_restore_{name}"])
    assert encoded.joint.shape[1] == int(expected["latent_len"])
    whole = model.encode(audio, image, noise, PretrainSettings(audio_mask_ratio=0, vision_mask_ratio=0))
    feat_a, feat_v = model.forward_feat(audio, image)
    parts = {"latent": encoded.joint, "ca": encoded.audio, "cv": encoded.vision, "latent0": whole.joint}
    for name, x in {**parts, "feat_a": feat_a, "feat_v": feat_v}.items():
        check(tag, x[:1, :4], expected[f"{name}_first4"], name)
        check(tag, x[:1, -2:], expected[f"{name}_last2"], name)
        check_summary(tag, x, expected, name)
    for name, x in zip(("pred_a", "pred_v"), model.decode(encoded), strict=True):
        check(tag, x[:1, :2], expected[f"{name}_first2"], name)
        check(tag, x[:1, -1:], expected[f"{name}_last1"], name)
        check_summary(tag, x, expected, name)
    check_losses(tag, model, noise, expected)
    for name, both in (("uni", False), ("bi", True)):
        loss, accuracy = contrastive_loss(encoded.audio.mean(dim=1), encoded.vision.mean(dim=1), both)
        check(tag, loss.reshape(1), expected[f"nce_{name}"], name)
        check(tag, accuracy.reshape(1), expected[f"nce_{name}_acc"], name)


def check_losses(tag: str, model: CAVMAE, noise: MaskNoise, expected: dict[str, Any]) -> None:
    audio, image = inputs(tag)
    for flag in (0, 1):
        losses = model(audio, image, noise, PretrainSettings(norm_pix=bool(flag)))
        named = {"loss": losses.total, "loss_mae": losses.mae, "loss_mae_a": losses.mae_audio}
        named |= {"loss_mae_v": losses.mae_vision, "loss_c": losses.contrast}
        for name, value in named.items():
            check(tag, value.reshape(1), expected[f"{name}_normpix{flag}"], name)
        check(tag, losses.contrast_accuracy.reshape(1), expected["c_acc"], "c_acc")


@pytest.mark.parametrize("loss_name", ["CE", "BCE"])
def test_three_training_steps_match(loss_name: str) -> None:
    expected, model, (audio, image) = golden.load("cavmae_tiny_train"), tuned("tiny"), inputs("tiny")
    target = torch.from_numpy(expected[f"{loss_name}_target"]).double()
    loss_of = F.cross_entropy if loss_name == "CE" else F.binary_cross_entropy_with_logits
    head = [p for name, p in model.named_parameters() if name.startswith("mlp_head")]
    rest = [p for name, p in model.named_parameters() if not name.startswith("mlp_head")]
    groups = [{"params": rest, "lr": 1e-3}, {"params": head, "lr": 1e-2}]
    optimizer = torch.optim.Adam(groups, betas=(0.95, 0.999), weight_decay=5e-7)
    losses = []
    for step in range(4):
        logits = model(audio, image)
        loss = loss_of(logits, target)
        losses.append(loss.detach())
        if step == 3:
            break
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            check_first_gradient(model, expected, loss_name)
        optimizer.step()
    golden.assert_close(torch.stack(losses), expected[f"{loss_name}_losses"], 1e-4, "losses")
    golden.assert_close(logits, expected[f"{loss_name}_logits_after3"], 1e-3, "logits")


def check_first_gradient(model: CAVMAEFT, expected: dict[str, Any], loss_name: str) -> None:
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    norms = torch.stack([gradients[name].norm() for name in expected["gradnorm_names"]])
    golden.assert_close(norms, expected[f"{loss_name}_gradnorm"], 1e-6, "gradient norms")
    every = {name for name, _ in model.named_parameters()}
    assert every - gradients.keys() == set(expected["no_grad_params"])
    assert model.live_parameter_names() == gradients.keys()


@torch.no_grad()
def test_probes_of_the_joint_block_match() -> None:
    expected, block = golden.load("cavmae_probes"), tuned("tiny").blocks_u[0]
    x = golden.filled("probe.block", (2, 6, 48)).double()
    for size, scaled in (("unit", x), ("small", 0.003 * x)):
        for name, norm in (("none", ""), ("a", "a"), ("v", "v")):
            golden.assert_close(block.run(scaled, norm), expected[f"block_u0_{size}_{name}"], 1e-6, f"{size} {name}")


def test_probes_of_the_losses_match() -> None:
    expected = golden.load("cavmae_probes")
    sound = golden.filled("probe.audio_rep", (5, 48)).double()
    sight = 0.7 * sound + golden.filled("probe.video_rep", (5, 48)).double()
    for name, both, pair in (
        ("uni", False, (sound, sight)),
        ("bi", True, (sound, sight)),
        ("uni_swapped", False, (sight, sound)),
    ):
        golden.assert_close(torch.stack(contrastive_loss(*pair, both)), expected[f"contrast_{name}"], 1e-6, name)
    audio, image = golden.audio(2, 256).double(), golden.image(2, 64).double()
    targets = audio_patches(audio, 16), patches(image, 16)
    predictions = golden.filled("probe.pred_a", (2, 128, 256)), golden.filled("probe.pred_v", (2, 16, 768))
    masks = [(golden.mask_noise(name, 2, n) > 0.25).double() for name, n in (("audio", 128), ("video", 16))]
    golden.assert_close(torch.stack([mask.sum() for mask in masks]), expected["mae_mask_sum"], 0, "mask sums")
    for flag in (0, 1):
        rows = zip(predictions, targets, masks, strict=True)
        losses = [mae_loss(pred.double(), target, mask, bool(flag)) for pred, target, mask in rows]
        golden.assert_close(torch.stack(losses), expected[f"mae_loss_normpix{flag}"], 1e-6, "mae")
    for name, patch, (sample, row), count in (
        ("v_row0_first12", targets[1], (0, 0), 12),
        ("v_row5_first12", targets[1], (1, 5), 12),
        ("a_row0_first20", targets[0], (0, 0), 20),
        ("a_row17_first20", targets[0], (1, 17), 20),
    ):
        golden.assert_close(patch[sample, row, :count], expected[f"patchify_{name}"], 1e-6, name)


@pytest.mark.parametrize(
    ("name", "dim", "rows", "columns"),
    [(f"audio{dim}", dim, 8, 64) for dim in (768, 512, 48)]
    + [(f"visual{dim}", dim, 14, 14) for dim in (768, 512, 48)]
    + [("audio48_t256", 48, 8, 16)],
)
def test_position_embeddings_match(name: str, dim: int, rows: int, columns: int) -> None:
    expected, table = golden.load("pos_embed"), sincos_positions(dim, rows, columns)[0].double()
    tokens = torch.from_numpy(expected[f"{name}_tokens"]).long()
    golden.assert_close(table[tokens], expected[name], 1e-6, name)
    golden.assert_close(torch.stack([table.sum(), table.abs().sum()]), expected[f"{name}_sum_abssum"], 1e-6, name)
    golden.assert_close(table[:32].sum(dim=1), expected[f"{name}_rowsum"], 1e-6, name)


@pytest.mark.parametrize("kind", ["fu", "fu_pl"])
@pytest.mark.parametrize("axis", ["head", "tokenattn"])
@torch.no_grad()
def test_published_fusion_matches(kind: str, axis: str) -> None:
    expected = golden.load("seed_fusion_blocks")
    block = golden.fill(PublishedFusion(48, 4, token_axis=axis == "tokenattn"), f"blocks_{kind}.0.").double()
    audio, vision = golden.filled("seed.a", (3, 6, 48)).double(), golden.filled("seed.v", (3, 5, 48)).double()
    prompts = [golden.filled(f"seed.prompt_{name}", (3, 4, 48)).double() for name in "av"] if kind == "fu_pl" else []
    for name, got in zip("av", block(audio, vision, *prompts), strict=True):
        golden.assert_close(got, expected[f"{kind}_{axis}_{name}"], 1e-6, name)
    if (kind, axis) == ("fu", "head"):
        for name, got in zip("av", block(audio[:1], vision[:1]), strict=True):
            golden.assert_close(got, expected[f"fu_head_single_{name}"], 1e-6, f"single {name}")


@torch.no_grad()
def test_published_model_matches() -> None:
    expected = golden.load("seed_fusion_blocks")["tiny_seed_multimodal_logits10"]
    model = golden.fill(CAVMAEFT(replace(TINY, fusion="as-published"))).double()
    golden.assert_close(model(*inputs("tiny")), expected, 1e-6)


def test_explicit_attention_equals_the_fused_one() -> None:
    model, (audio, image) = tuned("tiny"), inputs("tiny")
    fused = model(audio, image)
    seen: list[tuple[int, ...]] = []
    for block in model.blocks_u:
        block.attn.explicit = True
        block.attn.attn_drop.register_forward_hook(lambda _module, _args, out: seen.append(tuple(out.shape)))
    torch.testing.assert_close(model(audio, image), fused, rtol=1e-10, atol=1e-12)
    assert seen == [(4, 4, 144, 144)]


def test_hidden_tokens_are_those_with_the_largest_noise() -> None:
    x = torch.arange(4.0).reshape(1, 4, 1)
    masked = hide(x, torch.tensor([[0.3, 0.9, 0.1, 0.5]]), 0.5)
    assert masked.visible.flatten().tolist() == [2, 0]
    assert masked.mask.tolist() == [[0, 1, 0, 1]]
