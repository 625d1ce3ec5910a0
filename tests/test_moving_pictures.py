"""Samples with several pictures: what is stored, what training and tests show of them, and a camera that freezes."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from manifests import config_of, entry, numbers_of
from torch import Tensor
from typer.testing import CliRunner

from mmbench.cases import Case, parse_case
from mmbench.cli import app
from mmbench.config import BackboneSpec, DataConfig, SplitConfig
from mmbench.data.embedded import SyntheticSource, synthetic_av
from mmbench.data.features import normalise_image
from mmbench.data.folders import folder_pairs
from mmbench.data.manifest import cavmae_manifest
from mmbench.data.source import Item, Pair
from mmbench.data.store import Store, build_store
from mmbench.errors import ConfigError, DataError
from mmbench.feed import EvalFeed, TrainFeed, TrialData
from mmbench.freeze import write_sets
from mmbench.pipeline import SetDigest
from mmbench.prepare import data_facts, prepare_data, with_frozen
from mmbench.shown_samples import read_samples

FRAMES, CLIPS, MIDS = 10, 12, ("/m/aaa", "/m/bbb", "/m/ccc")
COMPLETE = Case("complete")
FROZEN = [parse_case(f"sensor/frozen_frame@{severity}") for severity in range(1, 6)]
SHADES = normalise_image(torch.arange(FRAMES)[:, None, None, None].expand(-1, 3, 1, 1).mul(10).add(1).byte())


def films(folder: Path, frames: int = FRAMES, clips: int = CLIPS) -> DataConfig:
    """Clips of three classes with so many frames each."""
    entries = [entry(folder, f"clip{n}_0", MIDS[n % 3], range(frames)) for n in range(clips)]
    return config_of(folder, entries, frames=frames, split=SplitConfig(kind="random", test=0.4, val=0.2))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataConfig, TrialData]:
    config = films(tmp_path_factory.mktemp("films"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        return config, prepare_data(config, BackboneSpec())


@pytest.fixture
def data(prepared: tuple[DataConfig, TrialData]) -> TrialData:
    return prepared[1]


def seen(image: Tensor) -> list[int]:
    """Which frame each normalised picture of (B, 3, H, W) is."""
    means = image.mean((2, 3), keepdim=True)  # (B, 3, 1, 1)
    return [int((one - SHADES).abs().sum((1, 2, 3)).argmin()) for one in means]


def evaluated(data: TrialData, case: Case, size: int = 64) -> tuple[list[int], str]:
    """The frames that a test shows, and the digest of the set."""
    digest = SetDigest()
    batches = list(EvalFeed(data, "test", case, size).batches(digest))
    return [number for batch in batches for number in seen(batch.image)], digest.hexdigest()


def trained(
    data: TrialData, epoch: int, ids: Sequence[str], case: Case = COMPLETE, views: int | None = None
) -> list[int]:
    return seen(TrainFeed(data, 0, (case,), views).load(epoch, ids).image)


def test_all_pictures_are_stored_and_the_middle_one_stands_for_them(data: TrialData) -> None:
    batch = data.store.batch(data.store.ids)
    assert data.pictures == data.store.pictures == FRAMES and not data.still_pictures
    assert numbers_of(batch.image) == [5] * CLIPS
    assert batch.film is not None and batch.film.length == FRAMES
    for number in range(FRAMES):
        assert numbers_of(batch.film.at(torch.full((CLIPS,), number))) == [number] * CLIPS
    few = batch.select([7, 2])
    assert few.film is not None and few.film.rows.tolist() == [7, 2] and few.ids == (batch.ids[7], batch.ids[2])
    assert numbers_of(few.film.at(torch.tensor([0, 9]))) == [0, 9]
    copy = pickle.loads(pickle.dumps(data.store))
    assert copy.pictures == FRAMES and copy.digest == data.store.digest
    data.store.verify()


def test_one_picture_is_stored_as_ever(tmp_path: Path) -> None:
    config = films(tmp_path, clips=3)
    plain = config.model_copy(update={"frames": 1})
    stores = {c.frames: build_store(cavmae_manifest(c), 32, 16, tmp_path / "cache") for c in (plain, config)}
    assert np.load(stores[1].folder / "image.npy").shape == (3, 3, 16, 16)
    assert stores[1].pictures == 1 and stores[1].batch(stores[1].ids).film is None
    assert numbers_of(stores[1].batch(stores[1].ids).image) == [5] * 3
    assert stores[1].folder != stores[10].folder and stores[1].digest != stores[10].digest


@pytest.mark.parametrize(("frames", "middle"), [(2, 1), (3, 1), (16, 8)])
def test_the_middle_of_any_number(tmp_path: Path, frames: int, middle: int) -> None:
    store = build_store(cavmae_manifest(films(tmp_path, frames, clips=3)), 32, 16, tmp_path / "cache")
    assert numbers_of(store.batch(store.ids).image) == [middle] * 3


def test_every_picture_counts(tmp_path: Path) -> None:
    def built() -> Store:
        return build_store(cavmae_manifest(config), 32, 16, tmp_path / "cache")

    config = films(tmp_path, clips=3)
    before = built()
    frame = tmp_path / "frames" / "frame_0" / "clip1_0.jpg"
    frame.write_bytes((tmp_path / "frames" / "frame_9" / "clip1_0.jpg").read_bytes())
    after = built()
    assert after.folder != before.folder and after.digest != before.digest


def test_training_draws_a_picture_per_sample_and_epoch(data: TrialData) -> None:
    ids = data.splits.train
    epochs = [trained(data, epoch, ids) for epoch in range(40)]
    counts = np.bincount(np.concatenate(epochs), minlength=FRAMES)
    assert counts.min() > counts.mean() / 3 and counts.max() < 2 * counts.mean()
    assert len(set(epochs[0])) > 1 and epochs[0] != epochs[1]
    alone = [trained(data, 3, [id])[0] for id in reversed(ids)]
    assert alone[::-1] == epochs[3], "the batch plays a part"
    assert trained(data, 3, ids, views=2) == epochs[1], "a view shows another picture when it comes again"


def test_training_with_a_frozen_camera_shows_what_came_before(data: TrialData) -> None:
    ids = data.splits.train
    for epoch in range(4):
        drawn = trained(data, epoch, ids)
        assert trained(data, epoch, ids, FROZEN[2]) == [max(number - 3, 0) for number in drawn]


def test_tests_show_the_middle_or_what_a_frozen_camera_still_shows(data: TrialData) -> None:
    cases = (COMPLETE, *FROZEN)
    found = [evaluated(data, case) for case in cases]
    assert [set(numbers) for numbers, _ in found] == [{5}, {4}, {3}, {2}, {1}, {0}]
    assert [evaluated(data, case, 1) for case in cases] == found, "the size of batches plays a part"
    assert len({digest for _, digest in found}) == len(cases)
    validated = EvalFeed(data, "val", COMPLETE, 64).batches()
    assert {number for batch in validated for number in seen(batch.image)} == {5}


def test_a_frozen_camera_joins_other_corruptions(data: TrialData) -> None:
    (batch,) = EvalFeed(data, "test", Case("both", "sensor/gain_clip@3", "sensor/frozen_frame@5"), 64).batches()
    (clean,) = EvalFeed(data, "test", COMPLETE, 64).batches()
    assert set(seen(batch.image)) == {0} and not torch.equal(batch.audio, clean.audio)
    assert batch.affected is not None and batch.affected.all()


def test_frozen_sets_hold_what_is_shown(data: TrialData, tmp_path: Path) -> None:
    write_sets(data, FROZEN[:2], tmp_path)
    for case in FROZEN[:2]:
        assert evaluated(with_frozen(data, tmp_path, FROZEN[:2]), case) == evaluated(data, case)


def test_where_it_applies(data: TrialData) -> None:
    late = parse_case("sensor/desync@1")
    assert data.unmet(FROZEN[0]) is None and data.unmet(late) is None
    single = replace(data, pictures=1)
    assert single.unmet(FROZEN[0]) == "not applicable: one picture a sample" and single.unmet(late) is None
    still = replace(single, still_pictures=True)
    assert {still.unmet(case) for case in (FROZEN[0], late)} == {"not applicable: still pictures"}


def test_a_record_tells(prepared: tuple[DataConfig, TrialData]) -> None:
    note = data_facts(*prepared).note
    assert "10 pictures a sample: training draws one, a test shows the middle one" in note
    assert "pictures a sample" not in data_facts(prepared[0], replace(prepared[1], pictures=1)).note


def test_what_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    films(tmp_path, clips=3)
    monkeypatch.chdir(tmp_path)
    suite = tmp_path / "suite.yaml"
    data = "{name: cavmae-manifest, manifest: clips.json, label_csv: labels.csv, frames: 10}"
    suite.write_text(f"name: films\nmethods: [source]\ndatasets: [{data}]\n")
    assert seen(read_samples(str(suite)).under(FROZEN[3]).batch.image) == [1, 1, 1]
    result = CliRunner().invoke(app, ["show", "sensor/frozen_frame", "--dataset", str(suite), "--out", "look"])
    assert result.exit_code == 0 and "not applicable" not in result.output
    assert [path.name for path in (tmp_path / "look").iterdir()] == ["sensor-frozen_frame.png"]
    assert "moving-pictures" in CliRunner().invoke(app, ["show", "sensor/frozen_frame"]).output


def test_a_clip_with_too_few_or_too_many_pictures_is_named(tmp_path: Path) -> None:
    config = films(tmp_path, 4, clips=3)
    (tmp_path / "frames" / "frame_2" / "clip1_0.jpg").unlink()
    entry(tmp_path, "clip2_0", "/m/ccc", [4])
    source = cavmae_manifest(config)
    assert [(problem.id, problem.reason) for problem in source.problems] == [
        ("clip1_0", "no picture frame_2/clip1_0.jpg in frames, but frames: 4"),
        ("clip2_0", "a picture frame_4/clip2_0.jpg in frames, but frames: 4"),
    ]
    with pytest.raises(DataError, match=r"clip1_0.*no picture frame_2/clip1_0\.jpg"):
        build_store(source, 32, 16, tmp_path / "cache")
    assert build_store(source, 32, 16, tmp_path / "cache", "skip").ids == ("clip0_0",)


def test_a_broken_picture_of_a_film_is_named(tmp_path: Path) -> None:
    config = films(tmp_path, 4, clips=3)
    (tmp_path / "frames" / "frame_3" / "clip1_0.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"frame_3/clip1_0\.jpg: not a readable picture"):
        build_store(cavmae_manifest(config), 32, 16, tmp_path / "cache")
    store = build_store(cavmae_manifest(config), 32, 16, tmp_path / "cache", "skip")
    assert store.ids == ("clip0_0", "clip2_0") and store.pictures == 4


def test_still_pictures_take_no_frames(tmp_path: Path) -> None:
    for listing, config in (
        (folder_pairs, DataConfig(name="folder-pairs", root=tmp_path, frames=10)),
        (synthetic_av, DataConfig(name="synthetic-av", frames=10)),
    ):
        with pytest.raises(ConfigError, match=r"holds still pictures; frames: 10 needs a manifest"):
            listing(config)
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        DataConfig(name="cavmae-manifest", frames=0)


@dataclass(frozen=True)
class Uneven(SyntheticSource):
    """A data set of which one sample is a film."""

    def read(self, item: Item, image_size: int) -> Pair:
        pair = super().read(item, image_size)
        return replace(pair, image=np.stack([pair.image] * 2)) if item == self.items[3] else pair


def test_all_samples_have_as_many_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"shape \(2, 3, 16, 16\), the first one \(3, 16, 16\); all must agree"):
        build_store(Uneven(6, 0), 32, 16, tmp_path)
