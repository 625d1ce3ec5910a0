"""CAV-MAE manifests: single- and multi-label, frames with their fallback, every broken entry named."""

from __future__ import annotations

from pathlib import Path

import pytest
from manifests import config_of, entry, numbers_of

from mmbench.config import SplitConfig
from mmbench.data.manifest import cavmae_manifest
from mmbench.data.splits import split
from mmbench.data.store import build_store, open_store
from mmbench.errors import ConfigError, DataError


def test_single_label_clips_with_their_middle_frame(tmp_path: Path) -> None:
    first = entry(tmp_path, "film_A_000010", "/m/aaa", (0, 5, 9))
    entries = [first, entry(tmp_path, "film_A_000020", "/m/bbb", (1, 3, 8))]
    source = cavmae_manifest(config_of(tmp_path, entries))
    assert source.classes == ("Rain on a roof", "Door bell, old", "Dog") and not source.static_images
    assert [item.group for item in source.items] == ["film_A", "film_A"]
    store = build_store(source, 32, 16, tmp_path / "cache")
    batch = store.batch(store.ids)
    assert batch.label.tolist() == [0, 1]
    assert numbers_of(batch.image) == [5, 3]


def test_several_labels_become_multi_hot(tmp_path: Path) -> None:
    entries = [entry(tmp_path, "a_0", "/m/ccc,/m/aaa"), entry(tmp_path, "b_0", "/m/bbb")]
    store = build_store(cavmae_manifest(config_of(tmp_path, entries, multi_label=True)), 32, 16, tmp_path / "cache")
    assert store.batch(store.ids).label.tolist() == [[1, 0, 1], [0, 1, 0]]


def test_every_broken_entry_is_named(tmp_path: Path) -> None:
    good = entry(tmp_path, "good_0", "/m/aaa")
    entries = [
        good,
        entry(tmp_path, "unknown_0", "/m/zzz"),
        entry(tmp_path, "many_0", "/m/aaa,/m/bbb"),
        entry(tmp_path, "later_0", "/m/aaa", (6, 7)),
        {**good, "video_id": "deaf_0", "wav": "audio/none.wav"},
        {**good, "video_id": "../../etc"},
        {key: good[key] for key in ("video_id", "wav", "video_path")},
        "text",
        good,
    ]
    source = cavmae_manifest(config_of(tmp_path, entries))
    reasons = [entry.reason for entry in source.problems]
    expected = (
        "'/m/zzz' is not in",
        "2 labels",
        "no picture frame_5/later_0.jpg",
        "no sound audio/none.wav",
        "plain file name",
        "'labels' is missing",
        "not an object but str",
        "given twice",
    )
    for reason, part in zip(reasons, expected, strict=True):
        assert part in reason
    with pytest.raises(DataError, match=r"8 samples .*clips\.json entry 1 .unknown_0.*and 3 more"):
        build_store(source, 32, 16, tmp_path / "cache")
    store = build_store(source, 32, 16, tmp_path / "cache", "skip")
    assert store.ids == ("good_0",) and len(store.skipped) == 8


def test_unreadable_lists_are_named(tmp_path: Path) -> None:
    config = config_of(tmp_path, [entry(tmp_path, "a_0", "/m/aaa")])
    for text, message in (("{", "cannot read manifest"), ("[]", 'key "data"'), ('{"data": []}', "no usable clip")):
        (tmp_path / "clips.json").write_text(text)
        with pytest.raises(DataError, match=message):
            cavmae_manifest(config)
    for text, message in (
        ("a,b\n1,2\n", "no column index, mid, display_name"),
        ("index,mid,display_name\n", "lists no class"),
        ("index,mid,display_name\n0,/m/a,x\n5,/m/b,y\n", "index '5' where 1"),
        ("index,mid,display_name\n0,/m/a,x\n1,/m/a,y\n", "twice"),
    ):
        (tmp_path / "labels.csv").write_text(text)
        with pytest.raises(DataError, match=message):
            cavmae_manifest(config)


def test_settings_that_do_not_apply_are_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path, [entry(tmp_path, "a_0", "/m/aaa")])
    with pytest.raises(ConfigError, match="needs 'label_csv'"):
        cavmae_manifest(config.model_copy(update={"label_csv": None}))
    with pytest.raises(ConfigError, match="takes no 'classes'"):
        cavmae_manifest(config.model_copy(update={"classes": ("a",)}))


def test_a_listed_split_is_that_of_the_entries(tmp_path: Path) -> None:
    told = {**{f"a{n}_0": "train" for n in range(8)}, "b_0": "test", "b_1": "test", "c_0": "val"}
    entries = [{**entry(tmp_path, name, "/m/aaa"), "split": part} for name, part in told.items()]
    listed = SplitConfig(kind="listed")
    config = config_of(tmp_path, entries, split=listed)
    store = build_store(cavmae_manifest(config), 32, 16, tmp_path / "cache")
    parts = split(open_store(store.folder).items, listed)
    assert (parts.train, parts.val, parts.test) == (tuple(f"a{n}_0" for n in range(8)), ("c_0",), ("b_0", "b_1"))
    assert parts.kind == "listed" and not parts.leaks
    plain = build_store(cavmae_manifest(config_of(tmp_path, entries)), 32, 16, tmp_path / "cache")
    assert plain.folder != store.folder and plain.digest != store.digest and plain.items[0].split is None
    assert "splits" not in (plain.folder / "index.json").read_text()


def test_a_listed_split_without_val_cuts_it_from_train(tmp_path: Path) -> None:
    told = {**{f"film{n % 5}_{n}": "train" for n in range(20)}, "film0_99": "test"}
    entries = [{**entry(tmp_path, name, "/m/aaa"), "split": part} for name, part in told.items()]
    listed = SplitConfig(kind="listed", val=0.2)
    items = cavmae_manifest(config_of(tmp_path, entries, split=listed)).items
    parts = split(items, listed)
    assert parts.test == ("film0_99",) and len(parts.val) == 4 and len({name[:5] for name in parts.val}) == 1
    assert set(parts.train) | set(parts.val) == set(told) - {"film0_99"} and not set(parts.train) & set(parts.val)
    assert parts.leaks and "1 of 5 recordings" in parts.note  # as the list has it


def test_a_split_that_is_not_listed_is_named(tmp_path: Path) -> None:
    told = [("a_0", "train"), ("b_0", "test"), ("c_0", "tset"), ("d_0", None)]
    entries = [{**entry(tmp_path, name, "/m/aaa"), **({"split": part} if part else {})} for name, part in told]
    listed = SplitConfig(kind="listed")
    source = cavmae_manifest(config_of(tmp_path, entries, split=listed))
    assert [problem.reason for problem in source.problems] == [
        "its 'split' is 'tset', but split.kind: listed needs train, val, test",
        "its 'split' is None, but split.kind: listed needs train, val, test",
    ]
    with pytest.raises(DataError, match="listed finds no sample for val; only a manifest"):
        split(source.items, listed)  # one recording of train cannot be cut
    with pytest.raises(DataError, match="listed finds no sample for train, val, test; only a manifest"):
        split(cavmae_manifest(config_of(tmp_path, entries)).items, listed)
