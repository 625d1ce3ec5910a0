"""The embedded data set: repeatable, ambiguous where it is meant to be, and learnable elsewhere."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mmbench.config import DataConfig, SplitConfig
from mmbench.data.batch import Batch
from mmbench.data.embedded import KINDS, SyntheticSource, synthetic_av
from mmbench.data.features import fbank
from mmbench.data.splits import split
from mmbench.errors import ConfigError
from mmbench.registry import datasets
from mmbench.samples import write_samples


def test_ten_classes_share_sounds_or_pictures_never_both() -> None:
    assert len({(kind.sound, kind.picture) for kind in KINDS}) == len(KINDS) == 10
    sounds = Counter(kind.sound for kind in KINDS)
    pictures = Counter(kind.picture for kind in KINDS)
    # Families that one modality can tell, over classes: the best accuracy it can reach alone.
    assert len(sounds) / 10 == len(pictures) / 10 == 0.7
    assert all(sounds[kind.sound] > 1 or pictures[kind.picture] > 1 for kind in KINDS)


def test_a_sample_depends_on_seed_and_name_alone() -> None:
    few, many = SyntheticSource(10, 0), SyntheticSource(30, 0)
    for one, other in zip(few.items, many.items, strict=False):
        assert one == other
    first, again = few.read(few.items[4], 32), many.read(many.items[4], 32)
    assert (first.wave == again.wave).all() and (first.image == again.image).all()
    other_seed = SyntheticSource(10, 1).read(few.items[4], 32)
    assert (first.wave != other_seed.wave).any() and (first.image != other_seed.image).any()
    larger = few.read(few.items[4], 64)
    assert larger.image.shape == (64, 64, 3) and (larger.wave == first.wave).all()


def test_samples_are_sound() -> None:
    source = SyntheticSource(40, 3)
    for item in source.items:
        pair = source.read(item, 32)
        assert pair.wave.dtype == np.float32 and pair.image.dtype == np.uint8
        assert np.isfinite(pair.wave).all() and 0.005 < np.abs(pair.wave).max() < 1
        assert pair.image.std() > 5
        mel, frames = fbank(torch.from_numpy(pair.wave)[None], torch.tensor([len(pair.wave)]), 128)
        assert frames.tolist() == [128] and torch.isfinite(mel).all()


def test_sessions_hold_one_of_each_class_and_stay_whole() -> None:
    source = SyntheticSource(200, 0)
    cut = split(source.items, SplitConfig(), source.classes)
    assert not cut.leaks and [len(part) for part in (cut.train, cut.val, cut.test)] == [120, 20, 60]


def nearest_mean_accuracy(features: Tensor, labels: Tensor) -> float:
    """Leave-half-out: a plain yardstick of what a feature tells."""
    half = len(labels) // 2
    means = torch.stack([features[:half][labels[:half] == c].mean(0) for c in range(10)])
    found = torch.cdist(features[half:], means).argmin(1)
    return float((found == labels[half:]).float().mean())


def test_sound_alone_tells_families_but_not_their_members() -> None:
    source = SyntheticSource(400, 0)
    labels = torch.tensor([item.labels[0] for item in source.items])
    waves = torch.stack([torch.from_numpy(source.read(item, 16).wave) for item in source.items])
    mel, _ = fbank(waves, torch.full((400,), waves.shape[1]), 128)
    spectrum = mel.mean(1)  # (B, 128)
    accuracy = nearest_mean_accuracy(spectrum - spectrum.mean(1, keepdim=True), labels)
    assert 0.3 < accuracy < 0.75


def test_it_is_registered_and_refuses_what_only_files_have(tmp_path: Path) -> None:
    assert "synthetic-av" in datasets().names()
    source = datasets().load("synthetic-av")(DataConfig(name="synthetic-av", samples=30, seed=2))
    assert source == SyntheticSource(30, 2)
    with pytest.raises(ConfigError, match="takes no 'root'"):
        synthetic_av(DataConfig(name="synthetic-av", root=tmp_path))


def test_written_samples_can_be_seen_and_heard(tmp_path: Path) -> None:
    write_samples(SyntheticSource(40, seed=0), tmp_path, rows=2, image_size=16)
    assert (tmp_path / "pictures.png").stat().st_size > 1000
    assert len(list(tmp_path.glob("*.wav"))) == 20


def test_batch_selects_and_moves_every_part() -> None:
    batch = Batch(
        audio=torch.arange(3.0)[:, None, None].expand(3, 4, 128),
        image=torch.arange(3.0)[:, None, None, None].expand(3, 3, 2, 2),
        label=torch.tensor([5, 6, 7]),
        ids=("a", "b", "c"),
        case=("x", "y", "z"),
        available=torch.tensor([[True, True], [True, False], [False, True]]),
    )
    picked = batch.select([2, 0])
    assert picked.ids == ("c", "a") and picked.case == ("z", "x") and len(picked) == 2
    assert picked.label is not None and picked.label.tolist() == [7, 5]
    assert picked.audio[:, 0, 0].tolist() == [2, 0] and picked.image[:, 0, 0, 0].tolist() == [2, 0]
    assert picked.available is not None and picked.available.tolist() == [[False, True], [True, True]]
    moved = batch.to("meta")
    assert {part.device.type for part in (moved.audio, moved.image, moved.label, moved.available)} == {"meta"}
    blind = Batch(batch.audio, batch.image, None, batch.ids).select(torch.tensor([1]))
    assert blind.case is None and blind.available is None and blind.label is None
