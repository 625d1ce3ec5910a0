"""A store larger than one file should be: in shards, it is the same store; and memory does not follow its size."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from manifests import config_of, entry, numbers_of

from mmbench.data import shard_writer
from mmbench.data.embedded import SyntheticSource
from mmbench.data.manifest import cavmae_manifest
from mmbench.data.store import Store, build_store, open_store
from mmbench.errors import StoreError

FRAMES, SIZE, SAMPLES = 128, 32, 23
LIMIT = 200_000  # bytes: three samples of sound features, and of the rest more


def build(cache: Path) -> Store:
    return build_store(SyntheticSource(SAMPLES, 0), FRAMES, SIZE, cache)


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Store, Store]:
    """The same data set in one shard and in many."""
    whole = build(tmp_path / "whole")
    monkeypatch.setattr(shard_writer, "SHARD_BYTES", LIMIT)
    return whole, build(tmp_path / "cut")


def test_many_shards_hold_what_one_holds(stores: tuple[Store, Store]) -> None:
    whole, cut = stores
    assert {path.name for path in whole.folder.glob("*.npy")} == {"wave.npy", "fbank.npy", "image.npy"}
    count = len(list(cut.folder.glob("image*.npy")))
    assert count == 8 and (cut.folder / "fbank-0007.npy").exists()
    assert max(path.stat().st_size for path in cut.folder.glob("*.npy")) <= LIMIT
    for kind in ("wave", "fbank", "image"):
        parts = [np.load(path) for path in sorted(cut.folder.glob(f"{kind}*.npy"), key=lambda path: path.stem + "-")]
        assert len(parts) == count and np.array_equal(np.concatenate(parts), np.load(whole.folder / f"{kind}.npy"))
    assert cut.digest == whole.digest and cut.folder.name == whole.folder.name
    picked = [cut.ids[row] for row in (22, 0, 3, 2, 21, 3, 11)]
    for store in (cut, pickle.loads(pickle.dumps(cut))):
        ours, theirs = store.batch(picked), whole.batch(picked)
        for part in ("wave", "fbank", "image", "frames", "wave_lengths", "label"):
            assert torch.equal(getattr(ours, part), getattr(theirs, part))
    assert cut.batch(()).image.shape == (0, 3, SIZE, SIZE)


def test_films_lie_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [entry(tmp_path, f"clip{number}_0", "/m/aaa", range(3)) for number in range(5)]
    monkeypatch.setattr(shard_writer, "SHARD_BYTES", 20_000)
    store = build_store(cavmae_manifest(config_of(tmp_path, entries, frames=3)), 32, 16, tmp_path / "cache")
    assert len(list(store.folder.glob("image*.npy"))) > 1
    film = store.batch([store.ids[row] for row in (4, 0, 2)]).film
    assert film is not None and film.length == 3
    assert numbers_of(film.at(torch.tensor([2, 0, 1]))) == [2, 0, 1]


def flip(folder: Path) -> None:
    path = folder / "wave-0003.npy"
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


def swap(folder: Path) -> None:
    """All of their sizes stay."""
    for kind in ("wave", "fbank", "image"):
        first, second = folder / f"{kind}-0001.npy", folder / f"{kind}-0002.npy"
        first.rename(folder / "aside")
        second.rename(first)
        (folder / "aside").rename(second)


@pytest.mark.parametrize(
    "harm, message",
    [
        (flip, r"wave-0003\.npy has changed"),
        (swap, r"wave-0001\.npy has changed"),
        (lambda folder: (folder / "image-0002.npy").unlink(), r"not a whole store .*image-0002\.npy"),
        (lambda folder: (folder / "image-0007.npy").replace(folder / "image-0002.npy"), "not a whole store"),
    ],
)
def test_a_shard_that_is_not_the_one_that_was_written_is_found(
    stores: tuple[Store, Store], harm: Callable[[Path], object], message: str
) -> None:
    _, cut = stores
    harm(cut.folder)
    with pytest.raises(StoreError, match=message):
        open_store(cut.folder)


def memory_bytes(clips: int, folder: Path) -> tuple[int, int, int]:
    """At most while building, after reading everything; and the size of the store."""
    script = Path(__file__).with_name("many_clips.py")
    words = [sys.executable, str(script), str(clips), str(folder)]
    told = subprocess.run(words, capture_output=True, text=True, check=True, timeout=600).stdout.split()
    return int(told[0]), int(told[1]), int(told[3])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is told by Linux alone")
def test_memory_does_not_follow_the_number_of_clips(tmp_path: Path) -> None:
    """Names and labels must be held, 1 kB a clip; of the clips themselves, 20 kB here, nothing may stay."""
    built, read, _ = memory_bytes(200, tmp_path / "few")
    built_many, read_many, size = memory_bytes(2000, tmp_path / "many")
    assert size > 35 * 2**20
    assert built_many - built < 8 * 2**20 and read_many - read < 8 * 2**20
