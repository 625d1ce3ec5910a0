"""The store: built once, whole or not at all, and every changed byte is found."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from mmbench.config import DataConfig
from mmbench.data import shard_writer, store_writer
from mmbench.data.embedded import SyntheticSource
from mmbench.data.features import fbank
from mmbench.data.folders import folder_pairs
from mmbench.data.store import Store, build_store, open_store
from mmbench.errors import DataError

FRAMES, SIZE = 128, 32


def build(cache: Path, samples: int = 20, seed: int = 0) -> Store:
    return build_store(SyntheticSource(samples, seed), FRAMES, SIZE, cache)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return build(tmp_path_factory.mktemp("cache"))


def pairs(root: Path, names: dict[str, list[str]]) -> DataConfig:
    """A folder set with a distinct short sound and picture per name."""
    value = 0
    for label, stems in names.items():
        for kind in ("sound", "vision"):
            (root / f"Dataset_v3_{kind}" / label).mkdir(parents=True, exist_ok=True)
        for stem in stems:
            value += 1
            wave = 0.1 * np.sin(np.arange(2000 + 160 * value) * 0.01 * value)
            soundfile.write(root / "Dataset_v3_sound" / label / f"{stem}.wav", wave, 16000)
            picture = np.full((40, 50, 3), value, dtype=np.uint8)
            Image.fromarray(picture).save(root / "Dataset_v3_vision" / label / f"{stem}.png")
    return DataConfig(name="folder-pairs", root=root)


def test_batch_holds_what_the_source_gives(store: Store) -> None:
    source = SyntheticSource(20, 0)
    ids = [source.items[7].id, source.items[3].id]
    batch = store.batch(ids)
    assert batch.ids == tuple(ids) and batch.label.tolist() == [7, 3]
    for row, item in enumerate((source.items[7], source.items[3])):
        pair = source.read(item, SIZE)
        assert np.abs(batch.wave[row].numpy() - pair.wave).max() <= 0.5 / 32768
        assert (batch.image[row].numpy() == pair.image.transpose(2, 0, 1)).all()
    assert batch.fbank.shape == (2, FRAMES, 128) and batch.frames.tolist() == [128, 128]
    again, _ = fbank(batch.wave, batch.wave_lengths, FRAMES)
    assert (again - batch.fbank).abs().max() < 1e-5


def test_a_sample_alone_equals_itself_in_a_batch(tmp_path: Path) -> None:
    config = pairs(tmp_path / "set", {"a": ["x", "y", "z"], "b": ["u"]})
    store = build_store(folder_pairs(config), 64, SIZE, tmp_path / "cache")
    together = store.batch(store.ids)
    for row, name in enumerate(store.ids):
        alone = store.batch([name])
        length = int(alone.wave_lengths[0])
        assert torch.equal(alone.wave[0], together.wave[row, :length])
        assert (together.wave[row, length:] == 0).all()
        for part in ("fbank", "image", "frames", "label", "wave_lengths"):
            assert torch.equal(getattr(alone, part)[0], getattr(together, part)[row])


def test_a_batch_owns_its_tensors(store: Store) -> None:
    first = store.batch(store.ids[:2])
    for part in (first.wave, first.image, first.fbank):
        part.zero_()
    assert store.batch(store.ids[:2]).fbank.abs().sum() > 0
    assert store.batch(store.ids[:2]).image.sum() > 0


def test_a_second_build_reads_nothing(tmp_path: Path) -> None:
    first = build(tmp_path)
    calls: list[int] = []
    again = build_store(SyntheticSource(20, 0), FRAMES, SIZE, tmp_path, "raise", lambda done, total: calls.append(done))
    assert calls == [] and again.folder == first.folder and again.digest == first.digest
    assert build(tmp_path, seed=1).folder != first.folder


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    build_store(SyntheticSource(70, 0), FRAMES, SIZE, tmp_path, "raise", lambda *now: calls.append(now))
    assert calls[-1] == (70, 70) and calls == sorted(calls)


def test_pickled_store_reads_the_same(store: Store) -> None:
    assert torch.equal(pickle.loads(pickle.dumps(store)).batch(store.ids[:3]).fbank, store.batch(store.ids[:3]).fbank)


def test_unknown_sample_is_named(store: Store) -> None:
    with pytest.raises(DataError, match="no sample 'nobody'"):
        store.batch(["nobody"])


@pytest.mark.parametrize("name", ["wave.npy", "fbank.npy", "image.npy"])
def test_a_changed_byte_is_found(tmp_path: Path, name: str) -> None:
    store = build(tmp_path, samples=5)
    store.verify()
    path = store.folder / name
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=name):
        open_store(store.folder).verify()


def test_a_changed_or_lost_index_is_found(tmp_path: Path) -> None:
    store = build(tmp_path, samples=5)
    index = store.folder / "index.json"
    text = index.read_text()
    index.write_text(text.replace("session-00000", "session-00001", 1))
    with pytest.raises(DataError, match="changed"):
        open_store(store.folder)
    index.write_text(text[:100])
    with pytest.raises(DataError, match="not a whole store"):
        open_store(store.folder)


WRONG = {
    "frames": lambda index: index.update(frames=2**40),
    "frame_counts": lambda index: index.update(frames=10),
    "wave_lengths": lambda index: index["contents"]["wave_lengths"].__setitem__(slice(2), [-16000, 48000]),
    "labels": lambda index: index["contents"].update(labels=[[99]] * 5),
    "number of labels": lambda index: index["contents"].update(labels=[[0, 1]] * 5),
    "ids": lambda index: index["contents"].update(ids=[5] * 5),
    "groups": lambda index: index["contents"].update(groups=[None] * 5),
    "image_size": lambda index: index.update(image_size=1.5),
}


@pytest.mark.parametrize("what", WRONG)
def test_an_index_that_nobody_wrote_is_refused_before_it_is_believed(tmp_path: Path, what: str) -> None:
    store = build(tmp_path, samples=5)
    path = store.folder / "index.json"
    fields = json.loads(path.read_text())
    WRONG[what](fields)
    rest = {key: value for key, value in fields.items() if key != "checksum"}
    checksum = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**rest, "checksum": checksum}))
    with pytest.raises(DataError, match=f"its index holds wrong .*{what}"):
        open_store(store.folder)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", ["index.json", "wave.npy"])
def test_a_pipe_in_a_store_is_not_waited_for(tmp_path: Path, name: str) -> None:
    store = build(tmp_path, samples=5)
    (store.folder / name).unlink()
    os.mkfifo(store.folder / name)
    with pytest.raises(DataError, match="no plain file"):
        open_store(store.folder)


def test_digest_follows_content_not_place(tmp_path: Path) -> None:
    names = {"a": ["x", "y"], "b": ["u"]}
    one = build_store(folder_pairs(pairs(tmp_path / "one", names)), 64, SIZE, tmp_path / "cache")
    two = build_store(folder_pairs(pairs(tmp_path / "two", names)), 64, SIZE, tmp_path / "cache")
    assert one.digest == two.digest
    changed = pairs(tmp_path / "two", names)
    soundfile.write(tmp_path / "two" / "Dataset_v3_sound" / "a" / "x.wav", np.zeros(3000), 16000)
    three = build_store(folder_pairs(changed), 64, SIZE, tmp_path / "cache")
    assert three.digest != one.digest and three.silent == ("a/x",)


def test_broken_files_stop_the_build_or_are_listed(tmp_path: Path) -> None:
    config = pairs(tmp_path / "set", {"a": ["x", "y", "z"], "b": ["u"]})
    (tmp_path / "set" / "Dataset_v3_sound" / "a" / "y.wav").write_bytes(b"")
    source = folder_pairs(config)
    with pytest.raises(DataError, match=r"a/y\.wav"):
        build_store(source, 64, SIZE, tmp_path / "cache")
    assert list((tmp_path / "cache").glob("[!.]*")) == []
    store = build_store(source, 64, SIZE, tmp_path / "cache", "skip")
    assert store.ids == ("a/x", "a/z", "b/u")
    assert [(entry.id, entry.path) for entry in store.skipped] == [("a/y", "Dataset_v3_sound/a/y.wav")]
    with pytest.raises(DataError, match=r"1 samples .*a/y\.wav"):
        build_store(source, 64, SIZE, tmp_path / "cache", "raise")
    whole = build_store(folder_pairs(pairs(tmp_path / "set", {"a": ["x", "y", "z"], "b": ["u"]})), 64, SIZE, tmp_path)
    assert whole.digest != store.digest


def test_one_pair_under_two_labels_is_a_contradiction(tmp_path: Path) -> None:
    config = pairs(tmp_path / "set", {"a": ["x"], "b": ["u"]})
    for kind, suffix in (("sound", "wav"), ("vision", "png")):
        folder = tmp_path / "set" / f"Dataset_v3_{kind}"
        (folder / "b" / f"copy.{suffix}").write_bytes((folder / "a" / f"x.{suffix}").read_bytes())
    with pytest.raises(DataError, match="same sound and picture as a/x"):
        build_store(folder_pairs(config), 64, SIZE, tmp_path / "cache")
    store = build_store(folder_pairs(config), 64, SIZE, tmp_path / "cache", "skip")
    assert store.ids == ("a/x", "b/u") and store.skipped[0].id == "b/copy"


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object, rows: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shard_writer.ArrayFile, "append", full)
    with pytest.raises(DataError, match="No space left on device"):
        build(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


SLOW_BUILDER = """
import sys, time
from pathlib import Path
from mmbench.data.embedded import SyntheticSource
from mmbench.data.store import build_store
def slow(done, total):
    print(done, flush=True)
    time.sleep(60)
build_store(SyntheticSource(130, 0), 128, 32, Path(sys.argv[1]), "raise", slow)
"""


def test_a_killed_builder_leaves_no_store_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    builder = subprocess.Popen([sys.executable, "-c", SLOW_BUILDER, str(tmp_path)], stdout=subprocess.PIPE)
    assert builder.stdout is not None and builder.stdout.readline() == b"64\n"
    builder.send_signal(signal.SIGKILL)
    builder.wait()
    builder.stdout.close()
    assert [path for path in tmp_path.iterdir() if not path.name.startswith(".")] == []
    assert len(list(tmp_path.glob(".*.part-*"))) == 1
    store = build(tmp_path, samples=130)
    store.verify()
    assert list(tmp_path.glob(".*.part-*")) == []


def test_two_builders_at_once_make_one_store(tmp_path: Path) -> None:
    counts: list[int] = []
    found: list[Store] = []

    def work() -> None:
        def progress(done: int, total: int) -> None:
            counts.append(done)
            time.sleep(0.05)

        found.append(build_store(SyntheticSource(20, 0), FRAMES, SIZE, tmp_path, "raise", progress))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [20] and len({store.digest for store in found}) == 1
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1


def test_builders_without_locks_keep_the_first_store(tmp_path: Path) -> None:
    first = build(tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "x").write_text("second")
    store_writer.replace_folder(scratch, first.folder)
    open_store(first.folder).verify()
