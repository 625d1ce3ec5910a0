"""Checkpoints: documented keys load, anything else is refused by name."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mmbench.backbone.cavmae import CAVMAEFT
from mmbench.backbone.checkpoint import (
    backbone_digest,
    load_backbone,
    load_meta,
    load_official,
    read_state,
    save_backbone,
)
from mmbench.backbone.config import BackboneConfig, preset
from mmbench.backbone.pretrain import CAVMAE
from mmbench.errors import CheckpointError

TINY = preset("cavmae-tiny")
PLAIN = replace(TINY, fusion="none")
FORK = replace(TINY, fusion="as-published")


def model_of(config: BackboneConfig = TINY, seed: int = 0) -> CAVMAEFT:
    return CAVMAEFT(config, torch.Generator().manual_seed(seed))


def pretrained() -> dict[str, Tensor]:
    return CAVMAE(TINY, torch.Generator().manual_seed(9)).state_dict()


def published(path: Path, state: dict[str, Any]) -> Path:
    """Written as the authors do: from inside DataParallel."""
    torch.save({f"module.{name}": value for name, value in state.items()}, path)
    return path


# Official checkpoints


@pytest.mark.parametrize("config", [PLAIN, TINY], ids=["plain", "gated"])
def test_a_pretraining_checkpoint_loads_with_the_documented_keys(tmp_path: Path, config: BackboneConfig) -> None:
    state, model = pretrained(), model_of(config)
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_official(model, published(tmp_path / "audio_model.pth", state))
    assert report.kind == "pretrained"
    assert set(report.missing) == {name for name in fresh if name.startswith(("mlp_head.", "blocks_fu."))}
    assert set(report.unexpected) == state.keys() - fresh.keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, fresh[name] if name in report.missing else state[name]), name


def test_the_base_checkpoint_leaves_173_decoder_keys(tmp_path: Path) -> None:
    """Counted on the names; base-size tensors are not needed for it."""
    with torch.device("meta"):
        names = CAVMAE(preset("cavmae-base")).state_dict().keys() - model_of(preset("cavmae-base")).state_dict().keys()
    assert len(names) == 173


def test_a_fine_tuned_checkpoint_loads_whole(tmp_path: Path) -> None:
    source, model = model_of(PLAIN, seed=4), model_of(PLAIN)
    report = load_official(model, published(tmp_path / "vgg.pth", source.state_dict()))
    assert (report.kind, report.missing, report.unexpected) == ("finetuned", (), ())
    assert backbone_digest(model) == backbone_digest(source)


def fork_state() -> dict[str, Tensor]:
    state = model_of(FORK, seed=4).state_dict()
    block = {name.split(".", 2)[2]: value for name, value in state.items() if name.startswith("blocks_fu.")}
    for index in range(TINY.depth):
        state |= {f"blocks_fu_pl.{index}.{name}": value.clone() for name, value in block.items()}
    for name in ("0.weight", "0.bias", "1.weight", "1.bias"):
        state[f"mlp_head_prompt.{name}"] = state[f"mlp_head.{name}"].clone()
    return {**state, "additional_token": torch.zeros(1, 16, TINY.embed_dim)}


def test_a_checkpoint_of_the_published_prompt_code_loads(tmp_path: Path) -> None:
    state, model = fork_state(), model_of(FORK)
    report = load_official(model, published(tmp_path / "complete.pth", state))
    assert (report.kind, report.missing) == ("finetuned", ())
    assert set(report.unexpected) == state.keys() - model.state_dict().keys()
    assert torch.equal(model.blocks_fu[0].mlp_a.fc1.weight, state["blocks_fu.0.mlp_a.fc1.weight"])


@pytest.mark.parametrize("config", [PLAIN, TINY], ids=["plain", "gated"])
def test_a_published_fusion_block_needs_a_model_that_has_it(tmp_path: Path, config: BackboneConfig) -> None:
    path = published(tmp_path / "complete.pth", fork_state())
    with pytest.raises(CheckpointError, match="try fusion 'as-published'"):
        load_official(model_of(config), path)


def test_another_class_count_says_how_to_proceed(tmp_path: Path) -> None:
    source = model_of(replace(PLAIN, n_classes=309))
    path, model = published(tmp_path / "vgg.pth", source.state_dict()), model_of(PLAIN)
    before = backbone_digest(model)
    with pytest.raises(CheckpointError, match="fine-tuned on 309 classes, the backbone has 10; set n_classes to 309"):
        load_official(model, path)
    assert backbone_digest(model) == before
    report = load_official(model, path, new_head=True)
    assert report.kind == "finetuned"
    assert set(report.missing) == {f"mlp_head.{name}" for name in ("0.weight", "0.bias", "1.weight", "1.bias")}
    assert torch.equal(model.blocks_a[0].mlp.fc1.weight, source.blocks_a[0].mlp.fc1.weight)


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: without(s, "blocks_v.2.mlp.fc1.bias"), r"missing \(1\):\s+blocks_v.2.mlp.fc1.bias 256"),
        (lambda s: without(s, "decoder_norm.bias"), r"absent from a pre-training file \(1\):\s+decoder_norm.bias"),
        (lambda s: {**s, "extra.weight": torch.zeros(2, 3)}, r"unexpected \(1\):\s+extra.weight 2 3"),
        (
            lambda s: {**s, "pos_embed_a": torch.zeros(1, 32, 64)},
            r"another shape \(1\):\s+pos_embed_a 1 32 64 not 1 64 64",
        ),
        (lambda s: {**s, "mlp_head.0.bias": torch.zeros(64)}, r"missing \(3\)"),
    ],
    ids=["missing", "truncated-decoder", "unexpected", "shape", "half-a-head"],
)
def test_undocumented_differences_are_listed(tmp_path: Path, change: Any, words: str) -> None:
    path, model = published(tmp_path / "odd.pth", change(pretrained())), model_of()
    before = backbone_digest(model)
    with pytest.raises(CheckpointError, match=words):
        load_official(model, path)
    assert backbone_digest(model) == before


# Files that cannot be read


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint file '.*gone.pth'"):
        read_state(tmp_path / "gone.pth")
    for name in ("cut.pth", "cut.safetensors"):
        (tmp_path / name).write_bytes(b"\x80\x02 not a checkpoint")
        with pytest.raises(CheckpointError, match=f"cannot read checkpoint '.*{name}'"):
            read_state(tmp_path / name)
    whole = published(tmp_path / "whole.pth", pretrained()).read_bytes()
    (tmp_path / "half.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"cannot read checkpoint '.*half.pth'"):
        read_state(tmp_path / "half.pth")


class Hostile:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_checkpoint_never_runs(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    torch.save({"a": Hostile(trace)}, tmp_path / "zip.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps({"a": Hostile(trace)}))
    for name in ("zip.pth", "raw.pth"):
        with pytest.raises(CheckpointError):
            read_state(tmp_path / name)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "an empty dict"),
        ([torch.zeros(1)], "a list"),
        ({"epoch": 3}, "'epoch' is a int, not a named tensor"),
        ({"w": torch.tensor([1.0, float("nan")])}, "tensor 'w' holds NaN"),
        ({"w": torch.zeros(1), "module.w": torch.zeros(1)}, "'w' occurs twice"),
    ],
)
def test_content_that_is_no_state_is_refused(tmp_path: Path, content: Any, words: str) -> None:
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=words):
        read_state(tmp_path / "odd.pth")


def test_safetensors_are_read_like_the_original_format(tmp_path: Path) -> None:
    state = pretrained()
    save_file(state, tmp_path / "model.safetensors")
    read = read_state(tmp_path / "model.safetensors")
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)


# Our own backbones


def test_a_backbone_survives_saving(tmp_path: Path) -> None:
    model, folder = model_of(seed=4), tmp_path / "bb"
    saved = save_backbone(model, folder, {"trained_on": "synthetic-av"})
    loaded, meta = load_backbone(folder)
    assert meta == saved == load_meta(folder)
    assert (meta.config, dict(meta.meta)) == (TINY, {"trained_on": "synthetic-av"})
    assert meta.sha256 == backbone_digest(loaded) == backbone_digest(model)
    assert sorted(path.name for path in folder.iterdir()) == ["backbone.json", "backbone.safetensors"]
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_the_digest_sees_values_shapes_and_names() -> None:
    model = model_of()
    before = backbone_digest(model)
    assert before == backbone_digest(model_of())
    model.modality_a.data[0, 0, 0] += 1
    assert backbone_digest(model) != before
    row, column = torch.nn.Linear(4, 1, bias=False), torch.nn.Linear(1, 4, bias=False)
    column.weight.data = row.weight.data.T.clone()
    assert backbone_digest(row) != backbone_digest(column)
    assert backbone_digest(torch.nn.Sequential(row)) != backbone_digest(row)


def test_an_altered_backbone_is_refused(tmp_path: Path) -> None:
    model = model_of()
    save_backbone(model, tmp_path, {})
    state = {**model.state_dict(), "modality_a": torch.zeros(1, 1, 64)}
    save_file(state, tmp_path / "backbone.safetensors")
    with pytest.raises(CheckpointError, match=r"has digest .* its description says"):
        load_backbone(tmp_path)
    save_file(without(state, "modality_a"), tmp_path / "backbone.safetensors")
    with pytest.raises(CheckpointError, match=r"does not match its description.*modality_a"):
        load_backbone(tmp_path)


@pytest.mark.parametrize("damage", ["config", "sha256", "meta", "unknown", "text"])
def test_a_broken_description_is_refused(tmp_path: Path, damage: str) -> None:
    save_backbone(model_of(), tmp_path, {})
    path = tmp_path / "backbone.json"
    values = json.loads(path.read_text())
    if damage == "unknown":
        values["config"]["depht"] = 3
    else:
        values.pop(damage, None)
    path.write_text("{" if damage == "text" else json.dumps(values))
    with pytest.raises(CheckpointError, match=r"description '.*backbone.json' is broken"):
        load_backbone(tmp_path)


def test_a_folder_without_a_backbone_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"no backbone in '{tmp_path}'"):
        load_backbone(tmp_path)


def test_a_failed_write_keeps_the_old_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_backbone(model_of(), tmp_path, {})

    def full_disk(state: dict[str, Tensor], path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("mmbench.backbone.checkpoint.save_file", full_disk)
    with pytest.raises(OSError, match="no space left"):
        save_backbone(model_of(seed=1), tmp_path, {})
    assert backbone_digest(load_backbone(tmp_path)[0]) == backbone_digest(model_of())
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_with_code_in_it_is_refused_without_advice_to_run_it(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (print, ("ran",))

    path = tmp_path / "model.pth"
    torch.save({"weight": Code()}, path)
    with pytest.raises(CheckpointError, match="holds code beside its tensors, which is never run") as caught:
        read_state(path)
    assert "weights_only" not in str(caught.value)
