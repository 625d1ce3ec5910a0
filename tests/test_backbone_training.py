"""Backbones train by the published recipe, and an interrupted training ends as an uninterrupted one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from beds import equal, memory_data
from safetensors.torch import load_file
from torch import Tensor
from training_bed import DATA, SMALL, TUNING, Stopped, finetuning, pretraining, trained, view

from mmbench.backbone.cavmae import CAVMAEFT
from mmbench.backbone.checkpoint import (
    backbone_digest,
    load_backbone,
    load_meta,
    load_official,
    load_pretrained,
    save_backbone,
    weights_file,
)
from mmbench.backbone.pretrain import contrastive_loss
from mmbench.backbone_training.course import EPOCHS
from mmbench.backbone_training.recipes import FinetuneRecipe
from mmbench.errors import CheckpointError, DivergedError
from mmbench.feed import TrialData
from mmbench.ranks import ALONE, Ranks
from mmbench.resume import PROGRESS


def test_each_process_contrasts_its_own_share_of_the_batch() -> None:
    objective = pretraining(SMALL.model_copy(update={"mae_weight": 0.0, "contrast_weight": 1.0}))
    for ranks in (ALONE, Ranks(1, 2)):
        seen = view(objective.recipe, ranks=ranks)
        found = objective.losses(objective.net, seen)
        encoded = objective.net.encode(seen.audio, seen.image, objective.noise(seen), objective.recipe.settings())
        loss, _ = contrastive_loss(encoded.audio.mean(1), encoded.vision.mean(1))
        assert len(seen.audio) == 8 // ranks.world
        torch.testing.assert_close(found["loss"], loss)


def test_similarities_of_close_pairs_are_not_rounded_under_bf16() -> None:
    rng = torch.Generator().manual_seed(0)
    common, audio, vision = (torch.randn(n, 64, generator=rng) for n in (1, 16, 16))
    pair = (common + 0.05 * audio, common + 0.05 * vision)
    with torch.autocast("cpu", torch.bfloat16):
        lower, lower_of_bf16 = (contrastive_loss(*given)[0] for given in (pair, [x.bfloat16() for x in pair]))
    assert torch.equal(lower, contrastive_loss(*pair)[0])
    assert torch.equal(lower_of_bf16, contrastive_loss(*(x.bfloat16().float() for x in pair))[0])


def reference(net: CAVMAEFT, recipe: FinetuneRecipe, epochs: int) -> dict[str, Tensor]:
    """Adam with its decay in the gradient, written out; norms that get no gradient stay."""
    first, second = ({name: torch.zeros_like(p) for name, p in net.named_parameters()} for _ in range(2))
    step = 0
    for epoch in range(epochs):
        lr = recipe.lr * 0.5 ** (epoch >= recipe.decay_start)
        for position in range(2):
            step += 1
            seen = view(recipe, epoch, position)
            net.zero_grad()
            log_shares = net(seen.audio, seen.image).log_softmax(1)
            (-(seen.target * log_shares).sum(1).mean()).backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                for name, p in net.named_parameters():
                    if p.grad is None:
                        continue
                    gradient = p.grad + 5e-7 * p
                    first[name] = 0.95 * first[name] + 0.05 * gradient
                    second[name] = 0.999 * second[name] + 0.001 * gradient**2
                    scale = (second[name] / (1 - 0.999**step)).sqrt() + 1e-8
                    rate = lr * (recipe.head_lr if name.startswith("mlp_head") else 1)
                    p -= rate * first[name] / (1 - 0.95**step) / scale
    return {name: value.detach() for name, value in net.state_dict().items()}


def test_fine_tuning_is_adam_with_a_faster_head_and_halved_rates(tmp_path: Path) -> None:
    recipe = TUNING.model_copy(update={"epochs": 2, "average_from": 2, "decay_start": 1, "smoothing": 0.1})
    expected = reference(finetuning(recipe).net.train(), recipe, 2)
    found = trained(finetuning(recipe), tmp_path / "run").objective.net.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=2e-4, rtol=1e-3, msg=lambda words, n=name: f"{n}: {words}")


def test_the_result_is_the_mean_of_the_averaged_epochs(tmp_path: Path) -> None:
    last = [
        trained(finetuning(TUNING.model_copy(update={"epochs": n, "average_from": n})), tmp_path / str(n)).objective.net
        for n in (2, 3)
    ]
    mean = trained(finetuning(TUNING.model_copy(update={"average_from": 2})), tmp_path / "mean").objective.net
    states = [net.state_dict() for net in last]
    for name, value in mean.state_dict().items():
        torch.testing.assert_close(value, (states[0][name] + states[1][name]) / 2)


def test_pre_training_lowers_both_losses_and_leaves_positions_alone(tmp_path: Path) -> None:
    objective = pretraining(SMALL.model_copy(update={"epochs": 12, "contrast_weight": 1.0}))
    before = {name: value.clone() for name, value in objective.net.state_dict().items()}
    course = trained(objective, tmp_path)
    first, last = course.history[0].losses, course.history[-1].losses
    assert last["audio"] + last["vision"] < first["audio"] + first["vision"]
    assert last["contrast"] < first["contrast"]
    for name, value in objective.net.state_dict().items():
        assert torch.equal(value, before[name]) == ("pos_embed" in name or _dead(name)), name
    rows = [json.loads(line) for line in (tmp_path / EPOCHS).read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, 13))


def _dead(name: str) -> bool:
    """Norms of a modality, which only the joint blocks use."""
    return not name.startswith("blocks_u.") and any(f".norm{k}_{m}." in name for k in "12" for m in "av")


def test_a_frozen_base_trains_the_head_alone(tmp_path: Path) -> None:
    """Bit for bit: in fp32 the third part of a number's threefold sum is not always the number."""
    objective = finetuning(TUNING.model_copy(update={"freeze_base": True, "average_from": 1}))
    before = {name: value.clone() for name, value in objective.net.state_dict().items()}
    after = trained(objective, tmp_path).objective.net.state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} == {
        name for name in before if name.startswith("mlp_head.")
    }


def test_several_labels_train_by_binary_cross_entropy() -> None:
    data = memory_data(train=22, multi_label=True)
    objective, seen = finetuning(multi_label=True), view(TUNING, data=data)
    logits = objective.net(seen.audio, seen.image)
    by_hand = -(seen.target * logits.sigmoid().log() + (1 - seen.target) * (1 - logits.sigmoid()).log()).mean()
    torch.testing.assert_close(objective.losses(objective.net, seen)["loss"], by_hand)


@pytest.mark.parametrize("epochs", [1, 3])
def test_numbers_that_are_not_finite_end_it_and_are_not_kept(tmp_path: Path, epochs: int) -> None:
    recipe = TUNING.model_copy(update={"lr": 1e38, "epochs": epochs, "average_from": 1, "batch_size": 22})
    with pytest.raises(DivergedError, match=r"epoch . ended in numbers that are not finite; lower --lr"):
        trained(finetuning(recipe), tmp_path)
    if (tmp_path / PROGRESS).exists():  # of an epoch that ended in very large ones
        assert all(bool(torch.isfinite(tensor).all()) for tensor in load_file(tmp_path / PROGRESS).values())


# Going on


@pytest.mark.parametrize("make", [pretraining, finetuning])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_an_interrupted_training_ends_bit_for_bit_as_an_uninterrupted_one(
    tmp_path: Path, make: Any, after: int
) -> None:
    recipe = (SMALL if make is pretraining else TUNING).model_copy(update={"decay_start": 1, "decay_step": 1})
    if isinstance(recipe, FinetuneRecipe):
        recipe = recipe.model_copy(update={"average_from": 2, "mixup": 0.5})
    whole = trained(make(recipe), tmp_path / "whole")
    with pytest.raises(Stopped):
        trained(make(recipe), tmp_path / "cut", stop_after=after)
    resumed = trained(make(recipe), tmp_path / "cut")
    assert equal(resumed.objective.net.state_dict(), whole.objective.net.state_dict())
    assert [row.losses for row in resumed.history] == [row.losses for row in whole.history]


@pytest.mark.parametrize(
    ("change", "data", "words"),
    [({"lr": 2e-3}, DATA, "another recipe"), ({}, memory_data(train=21), "another set of training samples")],
)
def test_progress_of_another_training_is_not_taken_up(
    tmp_path: Path, change: dict[str, Any], data: TrialData, words: str
) -> None:
    with pytest.raises(Stopped):
        trained(pretraining(), tmp_path, stop_after=1)
    kept = (tmp_path / PROGRESS).read_bytes()
    with pytest.raises(CheckpointError, match=f"{words}; use the options it began with, or delete {PROGRESS}"):
        trained(pretraining(SMALL.model_copy(update=change)), tmp_path, data=data)
    assert (tmp_path / PROGRESS).read_bytes() == kept


def test_damaged_progress_is_told(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        trained(pretraining(), tmp_path, stop_after=1)
    content = bytearray((tmp_path / PROGRESS).read_bytes())
    content[-3] ^= 1
    (tmp_path / PROGRESS).write_bytes(content)
    with pytest.raises(CheckpointError, match="the checksum differs"):
        trained(pretraining(), tmp_path)


# Export


def test_a_pre_trained_folder_starts_a_fine_tuning(tmp_path: Path) -> None:
    source = pretraining().net
    save_backbone(source, tmp_path, {"objective": "pre-training"})
    back, card = load_pretrained(tmp_path)
    assert backbone_digest(back) == backbone_digest(source) == card.sha256
    assert card.meta == {"objective": "pre-training"}
    assert {name for name, p in back.named_parameters() if not p.requires_grad} == {
        f"{part}pos_embed_{m}" for part in ("", "decoder_") for m in "av"
    }
    net = finetuning().net
    report = load_official(net, weights_file(tmp_path))
    assert report.kind == "pretrained"
    for name, value in net.state_dict().items():
        assert name.startswith(("mlp_head.", "blocks_fu.")) or torch.equal(value, source.state_dict()[name])


def test_a_pre_trained_folder_is_no_source_model(tmp_path: Path) -> None:
    save_backbone(pretraining().net, tmp_path, {})
    for load in (load_meta, load_backbone):
        with pytest.raises(CheckpointError, match="no head; name it as 'init', or fine-tune it"):
            load(tmp_path)
    with pytest.raises(CheckpointError, match=r"no checkpoint file '.*gone', and no folder"):
        weights_file(tmp_path / "gone")


def test_a_changed_tensor_shows(tmp_path: Path) -> None:
    save_backbone(pretraining().net, tmp_path, {})
    card = json.loads((tmp_path / "pretrained.json").read_text())
    (tmp_path / "pretrained.json").write_text(json.dumps({**card, "sha256": "0" * 64}))
    with pytest.raises(CheckpointError, match="its description says 000000000000"):
        load_pretrained(tmp_path)
