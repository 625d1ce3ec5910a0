"""Folder pairs: what is found, what is refused, and how recordings are told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmbench.config import DataConfig
from mmbench.data.folders import FolderSource, cifar10_av, folder_pairs, urbansound8k_av
from mmbench.data.store import build_store
from mmbench.errors import ConfigError, DataError

SOUND, VISION = "Dataset_v3_sound", "Dataset_v3_vision"


def write_pair(root: Path, label: str, stem: str, dirs: tuple[str, str] = (SOUND, VISION), rate: int = 44100) -> None:
    """A stereo FLAC and a 32x32 PNG."""
    for folder in dirs:
        (root / folder / label).mkdir(parents=True, exist_ok=True)
    value = sum(map(ord, label + stem)) % 200
    t = np.arange(rate // 4) / rate
    wave = 0.3 * np.sin(2 * np.pi * (200 + 10 * value) * t)
    soundfile.write(root / dirs[0] / label / f"{stem}.flac", np.stack([wave, 0 * wave], axis=1), rate)
    Image.fromarray(np.full((32, 32, 3), value, np.uint8)).save(root / dirs[1] / label / f"{stem}.PNG")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for label in ("dog", "cat"):
        for stem in ("s1_a", "s1_b", "s2_a"):
            write_pair(tmp_path / "set", label, stem)
    return tmp_path / "set"


def test_unusual_rates_and_sizes_become_features(root: Path, tmp_path: Path) -> None:
    config = DataConfig(name="folder-pairs", root=root, group_pattern=r"^(s\d)_")
    store = build_store(folder_pairs(config), 64, 48, tmp_path / "cache")
    assert store.classes == ("cat", "dog") and store.groups == ("s1", "s1", "s2") * 2
    batch = store.batch(store.ids)
    assert batch.image.shape == (6, 3, 48, 48) and batch.wave_lengths.tolist() == [4000] * 6
    assert batch.frames.tolist() == [23] * 6 and batch.label.tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.wave.abs().amax() > 0.25


def test_any_two_folders_and_a_chosen_class_order(tmp_path: Path) -> None:
    for label in ("b", "a", "unused"):
        write_pair(tmp_path, label, "x", ("clips", "stills"))
    config = DataConfig(name="folder-pairs", root=tmp_path, audio_dir="clips", vision_dir="stills", classes=("b", "a"))
    source = folder_pairs(config)
    assert source.classes == ("b", "a") and [item.id for item in source.items] == ["b/x", "a/x"]
    with pytest.raises(DataError, match=r"no class folder 'c'.*a, b, unused"):
        folder_pairs(config.model_copy(update={"classes": ("c",)}))


def test_unpaired_files_are_counted_and_named(root: Path, tmp_path: Path) -> None:
    (root / VISION / "cat" / "s1_a.PNG").unlink()
    (root / SOUND / "dog" / "s2_a.flac").unlink()
    source = folder_pairs(DataConfig(name="folder-pairs", root=root))
    with pytest.raises(DataError, match=r"2 samples.*cat/s1_a\.flac: a sound .*dog/s2_a\.PNG: a picture without"):
        build_store(source, 64, 32, tmp_path / "cache")
    store = build_store(source, 64, 32, tmp_path / "cache", "skip")
    assert len(store) == 4 and {entry.id for entry in store.skipped} == {"cat/s1_a", "dog/s2_a"}


def test_two_sounds_of_one_name_are_refused(root: Path) -> None:
    soundfile.write(root / SOUND / "cat" / "s1_a.wav", np.zeros(4000), 16000)
    problems = folder_pairs(DataConfig(name="folder-pairs", root=root)).problems
    assert [(entry.path, entry.reason) for entry in problems] == [
        (f"{SOUND}/cat/s1_a.wav", "another file has the same name but for its suffix")
    ]


def test_hidden_and_foreign_files_are_passed_over(root: Path) -> None:
    (root / SOUND / ".cache").mkdir()
    (root / SOUND / "cat" / ".s1_a.wav").write_bytes(b"x")
    (root / SOUND / "cat" / "readme.txt").write_text("x")
    (root / SOUND / "cat" / "loop").symlink_to("loop")
    source = folder_pairs(DataConfig(name="folder-pairs", root=root))
    assert len(source.items) == 6 and source.problems == () and source.classes == ("cat", "dog")


def test_urbansound_names_tell_recording_and_class(tmp_path: Path) -> None:
    for stem in ("100032-3-0-0", "100032-3-0-7", "100263-3-1-0", "7061-6-0-0"):
        write_pair(tmp_path, "dog_bark", stem)
    source = urbansound8k_av(DataConfig(name="urbansound8k-av", root=tmp_path))
    assert [item.group for item in source.items] == ["100032", "100032", "100263"]
    assert [(entry.id, entry.reason) for entry in source.problems] == [
        ("dog_bark/7061-6-0-0", "its name says class gun_shot, its folder dog_bark")
    ]


def test_without_a_pattern_each_file_is_its_own_group(root: Path) -> None:
    source = cifar10_av(DataConfig(name="cifar10-av", root=root))
    assert len({item.group for item in source.items}) == 6


def test_fingerprint_follows_files_not_place(root: Path, tmp_path: Path) -> None:
    def listed(folder: Path) -> FolderSource:
        return folder_pairs(DataConfig(name="folder-pairs", root=folder))

    before = listed(root).fingerprint()
    moved = root.rename(tmp_path / "moved")
    assert listed(moved).fingerprint() == before
    write_pair(moved, "cat", "s1_a", rate=16000)
    assert listed(moved).fingerprint() != before


def test_refusals_name_what_is_missing(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs 'root'"):
        folder_pairs(DataConfig(name="folder-pairs"))
    with pytest.raises(ConfigError, match="takes no 'samples'"):
        folder_pairs(DataConfig(name="folder-pairs", root=root, samples=5))
    with pytest.raises(ConfigError, match="has no group"):
        folder_pairs(DataConfig(name="folder-pairs", root=root, group_pattern="s1"))
    with pytest.raises(ConfigError, match="not a regular expression"):
        folder_pairs(DataConfig(name="folder-pairs", root=root, group_pattern="("))
    with pytest.raises(DataError, match="audio_dir"):
        folder_pairs(DataConfig(name="folder-pairs", root=tmp_path))
    (root / SOUND / "bird").mkdir()
    (root / SOUND / "bird" / "x.m4a").write_bytes(b"x")
    with pytest.raises(DataError, match="no pair in class bird"):
        folder_pairs(DataConfig(name="folder-pairs", root=root))
